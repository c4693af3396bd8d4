"""Round-to-nearest, SmoothQuant and AWQ, ours and Qwix's, on the bundled world model: error of an imagined rollout.

Qwix (https://github.com/google/qwix) quantizes the same Dense layers here; its rules match their module paths alone,
since it would quantize attention's products of activations too.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wmq_jax import quant
from wmq_jax import quantized as q
from wmq_jax.checkpoints.native import bundled_model_path, load_model
from wmq_jax.data import Normalizer
from wmq_jax.envs import make_env
from wmq_jax.models import WorldModel, WorldModelConfig, normalize_image
from wmq_jax.runtime.devices import configure
from wmq_jax.training.generate import random_position

PyTree = Any
METHODS = ("rtn", "smoothquant", "awq")


@dataclasses.dataclass(frozen=True)
class Setting:
    """Bits of weights, the group that shares a scale, and bits of activations per token."""

    weight_bits: int
    group_size: int | None = None
    act_bits: int | None = None

    @property
    def text(self) -> str:
        """In the grammar of variants."""
        group = "" if self.group_size is None else f"g{self.group_size}"
        return f"w{self.weight_bits}{group}" + ("" if self.act_bits is None else f"a{self.act_bits}-token")


SETTINGS = (Setting(8, act_bits=8), Setting(4), Setting(4, 32))


def sections(config: Mapping[str, Any]) -> dict[str, Callable[[], dict[str, float]]]:
    """What is measured, by title.

    Raises:
      ValueError: Qwix is not installed.
    """
    qwix_modules()
    configure()
    checkpoint = load_model(bundled_model_path())
    model = WorldModel(checkpoint.config.replace(decoder=None))
    params = jax.device_put({name: part for name, part in checkpoint.params.items() if name != "decoder"})
    batches = [rollouts(model.config, checkpoint.normalizer, config["inputs"], seed) for seed in (0, 1)]
    comparison = Comparison(model, params, *batches)
    return {setting.text: functools.partial(errors, comparison, setting) for setting in SETTINGS} | {
        "conventions": functools.partial(conventions, comparison)
    }


def qwix_modules() -> tuple[Any, Any, Any]:
    """``qwix``, and its contributed SmoothQuant and AWQ.

    Raises:
      ValueError: it is not installed.
    """
    try:
        import qwix
        from qwix.contrib import awq, smooth_quant
    except ImportError as error:
        raise ValueError(f"the comparison needs Qwix: pip install '.[qwix]' ({error})") from None
    return qwix, smooth_quant, awq


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """A float model, inputs to calibrate with and inputs to compare on: arguments of ``WorldModel.rollout``."""

    model: WorldModel
    params: PyTree
    calibration: tuple
    held_out: tuple

    @functools.cached_property
    def exact(self) -> jax.Array:
        """What the float model imagines."""
        return imagined(self.model, {"params": self.params}, self.held_out)

    @functools.cached_property
    def statistics(self) -> PyTree:
        """What our methods need of the calibration inputs."""
        return q.calibrate(self.model, {"params": self.params}, [self.calibration])

    def error(self, outputs: jax.Array) -> float:
        """Relative error of imagined frames, in the L2 norm over all of them."""
        return float(jnp.linalg.norm(outputs - self.exact) / jnp.linalg.norm(self.exact))


def errors(comparison: Comparison, setting: Setting) -> dict[str, float]:
    """Errors of every method, ours and Qwix's, and of our SmoothQuant with activations left alone as Qwix's does."""
    found = {}
    for method in METHODS:
        found[f"{method}, ours"] = comparison.error(ours(comparison, method, setting))
        if setting.act_bits and method == "smoothquant":
            weights_only = dataclasses.replace(setting, act_bits=None)
            found["smoothquant, ours, activations in float"] = comparison.error(ours(comparison, method, weights_only))
        run, variables = qwix_model(comparison, method, setting)
        found[f"{method}, Qwix"] = comparison.error(imagined(run, variables, comparison.held_out))
    return found


def conventions(comparison: Comparison) -> dict[str, float]:
    """What Qwix does, found by running it: its scale, and which calls round activations.

    The largest weight of a channel lies half way between two codes in this convention, so the last digit decides there.
    """
    qwix, _, _ = qwix_modules()
    kernel = jnp.asarray(np.random.default_rng(0).standard_normal((64, 64), np.float32))
    found = {}
    largest = jnp.abs(kernel) == jnp.abs(kernel).max(0)
    for bits, kind in _TYPES.items():
        codes = qwix.quantize(kernel, kind, channelwise_axes=(1,))
        convention = jnp.abs(kernel).max(0) / (2 ** (bits - 1) - 0.5)
        found[f"int{bits}: largest scale over absmax / (2^(b-1) - 0.5)"] = float((codes.scale[0] / convention).max())
        found[f"int{bits}: smallest"] = float((codes.scale[0] / convention).min())
        rounded = quant.fake_quant_weight(kernel, quant.WeightSpec(bits))
        differs = jnp.abs(qwix.dequantize(codes) - rounded) > convention / 2
        found[f"int{bits}: weights in another code than ours, the largest of a channel"] = int(
            (differs & largest).sum()
        )
        found[f"int{bits}: weights in another code than ours, all others"] = int((differs & ~largest).sum())
    for method in METHODS:
        run, variables = qwix_model(comparison, method, SETTINGS[0])
        call = jax.make_jaxpr(lambda variables: run.apply(variables, *comparison.held_out, method="rollout"))(variables)
        found[f"{method}: roundings in a call at {SETTINGS[0].text}"] = str(call).count("round[")
    return found


def imagined(model: WorldModel, variables: PyTree, batch: tuple) -> jax.Array:
    """Visual latents of the frames that a model imagines."""
    rollout = jax.jit(lambda variables: model.apply(variables, *batch, method="rollout").visual)
    return rollout(variables)[:, batch[0].shape[1] :]


def ours(comparison: Comparison, method: str, setting: Setting) -> jax.Array:
    """What the model imagines that a method of ours quantized."""
    spec = q.parse_variant(f"{method}:{setting.text}")
    table = q.build_variants(comparison.model.config, comparison.params, [spec], comparison.statistics)
    apply = q.quantized_apply(comparison.model)
    visual, *_ = batch = comparison.held_out
    rollout = jax.jit(lambda variables: apply(variables, *batch, method="rollout").visual)
    return rollout(jax.tree.map(lambda leaf: leaf[0], table))[:, visual.shape[1] :]


_TYPES = {8: jnp.int8, 4: jnp.int4}


def qwix_model(comparison: Comparison, method: str, setting: Setting) -> tuple[WorldModel, PyTree]:
    """The model and the variables that Qwix's method makes of it."""
    qwix, smooth_quant, awq = qwix_modules()
    sites = (site for module in q.sites(comparison.model.config).values() for site in module)
    rule = dict(
        module_path="|".join(map(re.escape, sites)),
        weight_qtype=_TYPES[setting.weight_bits],
        act_qtype=_TYPES[setting.act_bits] if setting.act_bits else None,
        tile_size=setting.group_size,
    )
    intercepted = lambda provider: qwix.quantize_model(comparison.model, provider, methods=("rollout",))
    rounded = intercepted(qwix.PtqProvider([qwix.QuantizationRule(**rule)]))
    initial = functools.partial(rounded.init, jax.random.key(0), *comparison.calibration, method="rollout")
    abstract = jax.eval_shape(initial)["params"]
    if method == "rtn":
        return rounded, {"params": qwix.quantize_params(comparison.params, abstract)}
    if method == "awq":
        rules = [awq.AwqRule(**rule)]
        calibration, inference = awq.AwqCalibrationProvider(rules), awq.AwqInferenceProvider(rules)
        quantize = awq.quantize_params
    else:
        # Its calibration asks for a type of activations, whatever becomes of them.
        rules = [smooth_quant.SqRule(**rule | {"act_qtype": jnp.int8})]
        calibration, inference = smooth_quant.SqCalibrationProvider(rules), smooth_quant.SqInferenceProvider(rules)
        quantize = smooth_quant.quantize_params
    variables = {"params": comparison.params}
    observed = intercepted(calibration)
    _, seen = observed.apply(variables, *comparison.calibration, method="rollout", mutable="quant_stats")
    return intercepted(inference), {"params": quantize(comparison.params, abstract, seen["quant_stats"])}


def rollouts(config: WorldModelConfig, normalizer: Normalizer, count: int, seed: int, horizon: int = 5) -> tuple:
    """Arguments of ``WorldModel.rollout``: random places in Wall and actions as a planner samples them."""
    env = make_env("wall", image_size=config.image_size)
    keys = jax.random.split(jax.random.key(seed), 2)
    positions = jax.vmap(lambda key: random_position(key, env))(jax.random.split(keys[0], count))
    observation = jax.vmap(env.observe)(positions)
    actions = jax.random.normal(keys[1], (count, horizon, config.action_dim))
    return (
        normalize_image(observation.visual)[:, None],
        jnp.asarray(normalizer.normalize_proprio(observation.proprio))[:, None],
        actions,
    )
