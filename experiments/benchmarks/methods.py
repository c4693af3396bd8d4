"""How long the methods of quantization take and how much memory, at the official size: random weights, random samples.

Each method runs in a process of its own, whose peak memory is then its own. It runs twice, the second time with nothing
left to compile.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.common import in_a_process, peak_bytes, random_params
from wmq_jax import quant
from wmq_jax import quantized as q
from wmq_jax.models import PredictorConfig, ViTConfig, WorldModelConfig, official_config
from wmq_jax.runtime.devices import configure

PyTree = Any

SIZES = ("official", "tiny")


def sections(config: Mapping[str, Any]) -> dict[str, Callable[[], dict[str, float]]]:
    """What is measured, by title.

    Raises:
      ValueError: a method or a size that there is not.
    """
    configure()  # what is recorded of the run is asked here; each measuring process does the same
    model_config(config["size"])
    variants = [f"{method}:{config['bits']}" for method in config["methods"].split()]
    for variant in variants:
        q.parse_variant(variant)
    return {variant: functools.partial(in_a_process, measure, variant, config["size"]) for variant in variants}


def measure(variant: str, size: str) -> dict[str, float]:
    """Seconds to quantize a whole model, those that the first time takes longer, and the process's peak memory.

    The latter are tracing and compiling: a second build finds every program. A model's weights and samples are in
    memory before the clock starts, and count as memory.
    """
    configure()
    specs = [q.parse_variant(variant)]
    config = model_config(size)
    params = random_params(config)
    if q.needs_qkv_bias(specs):
        config, params = q.with_qkv_bias(config, params)
    statistics = random_statistics(config, params, **q.needed_samples(specs)) if q.needs_statistics(specs[0]) else None

    def build() -> float:
        began = time.perf_counter()
        jax.block_until_ready(q.build_variants(config, params, specs, statistics))
        return time.perf_counter() - began

    first, seconds = build(), build()
    return {
        "seconds": seconds,
        "compilation seconds": first - seconds,
        "peak memory GB": peak_bytes() / 1e9,
    }


def model_config(size: str) -> WorldModelConfig:
    """The official model of the Wall task without a decoder, or one of the same structure that takes seconds.

    Raises:
      ValueError: there is no such size.
    """
    if size not in SIZES:
        raise ValueError(f"--config.size must be one of {', '.join(SIZES)}, not {size!r}")
    config = official_config("wall").replace(decoder=None)
    if size == "official":
        return config
    return config.replace(
        encoder=ViTConfig(width=12, depth=2, heads=2, mlp_dim=16, table_grid=2),
        predictor=PredictorConfig(depth=1, heads=2, dim_head=6, mlp_dim=16),
        image_size=32,
    )


def random_statistics(config: WorldModelConfig, params: PyTree, tokens: int, sequences: int) -> PyTree:
    """What calibration with one-frame inputs would have kept, of normal numbers."""
    image = jnp.zeros((1, 1, config.image_size, config.image_size, 3))
    batch = (image, jnp.zeros((1, 1, config.proprio_dim)), jnp.zeros((1, 1, config.action_dim)))
    observe = q.observe(config, tokens, sequences)
    shapes = jax.eval_shape(observe, {"params": params}, None, *batch)
    random = np.random.default_rng(0)

    def fill(shape: Any) -> Any:
        normal = lambda field: random.standard_normal(getattr(shape, field).shape, np.float32)
        ones = dict(count=np.int32(1), priority=np.ones(shape.priority.shape, np.float32))
        if isinstance(shape, quant.Sequences):
            length = np.full(shape.length.shape, shape.inputs.shape[1], np.int32)
            return shape._replace(inputs=normal("inputs"), length=length, **ones)
        largest = 3 + np.abs(normal("maximum"))
        return shape._replace(minimum=-largest, maximum=largest, tokens=normal("tokens"), **ones)

    return jax.device_put(jax.tree.map(fill, shapes, is_leaf=quant.statistics.is_statistic))
