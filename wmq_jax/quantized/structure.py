"""The structure of DINO-WM as quantization sees it: modules, sites, blocks.

A *site* is a Dense of the transformer blocks, named by its module path ('encoder/blocks_0/attn/qkv'): its kernel is
quantized as a weight, its input as an activation. Everything else stays in floating point (norms, softmax, patch
embedding, position tables, biases, LayerScale, the proprioception and action encoders).
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from wmq_jax import quant
from wmq_jax.models import WorldModelConfig
from wmq_jax.models.dinov2 import Block as DinoBlock
from wmq_jax.models.dinov2 import Mlp
from wmq_jax.models.predictor import FeedForward
from wmq_jax.models.predictor import Layer as PredictorLayer
from wmq_jax.quant import linen, paths

PyTree = Any

MODULES = ("encoder", "predictor")


def sites(config: WorldModelConfig) -> dict[str, tuple[str, ...]]:
    """Names of the quantized sites of each module, in the order in which they run."""
    encoder = ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")
    predictor = ("attn/to_qkv", *(("attn/to_out",) if _has_projection(config) else ()), "ff/fc1", "ff/fc2")
    return {
        "encoder": tuple(f"encoder/blocks_{i}/{name}" for i in range(config.encoder.depth) for name in encoder),
        "predictor": tuple(f"predictor/layers_{i}/{name}" for i in range(config.predictor.depth) for name in predictor),
    }


def site_rules(config: WorldModelConfig, module: str, leaf: str = "") -> tuple[str, ...]:
    """Rules that match the sites of ``module``, or their parameters called ``leaf``."""
    suffix = f"/{leaf}" if leaf else ""
    return tuple(re.escape(site + suffix) for site in sites(config)[module])


def topology(config: WorldModelConfig, released_search: bool = False) -> quant.Topology:
    """The blocks of encoder and predictor: LayerNorm -> qkv, LayerNorm -> fc1, values -> projection, GELU -> fc2.

    Args:
      config: the model.
      released_search: AWQ compares outputs of the MLP, evaluated on the input of fc1, instead of the block's. In the
        predictor, whose MLP begins with the LayerNorm, that applies the LayerNorm twice (a defect of the released
        code).
    """
    encoder, predictor = config.encoder, config.predictor
    width = config.predictor_dim
    inner = predictor.heads * predictor.dim_head
    blocks = {
        "encoder": _transformer_block(
            linen.ModuleApply(DinoBlock(encoder)),
            norms=("norm1", "norm2"),
            attention=("attn/qkv", "attn/proj"),
            mlp=("mlp/fc1", "mlp/fc2"),
            inner=encoder.width,
            part=quant.Part("mlp", linen.ModuleApply(Mlp(encoder.width, encoder.mlp_dim))) if released_search else None,
        ),
        "predictor": _transformer_block(
            linen.ModuleApply(PredictorLayer(predictor, width, config.tokens_per_frame), output=0),
            norms=("attn/norm", "ff/norm"),
            attention=("attn/to_qkv", "attn/to_out" if _has_projection(config) else None),
            mlp=("ff/fc1", "ff/fc2"),
            inner=inner,
            part=quant.Part("ff", linen.ModuleApply(FeedForward(predictor, width))) if released_search else None,
        ),
    }
    paths_of = {
        "encoder": [f"encoder/blocks_{i}" for i in range(encoder.depth)],
        "predictor": [f"predictor/layers_{i}" for i in range(predictor.depth)],
    }
    return quant.Topology(tuple(tuple((path, blocks[module]) for path in paths_of[module]) for module in MODULES))


def _transformer_block(apply, norms, attention, mlp, inner: int, part) -> quant.Block:
    """A pre-norm transformer block whose fused qkv has ``inner`` outputs for each of queries, keys and values."""
    (qkv, projection), (fc1, fc2) = attention, mlp
    pairs = [quant.Pair(norms[0], (qkv,))]
    if projection is not None:
        # Attention's output is a weighted mean of values, channel by channel.
        pairs.append(quant.Pair(qkv, (projection,), quant.LINEAR, first=2 * inner))
    pairs += [quant.Pair(norms[1], (fc1,), part=part), quant.Pair(None, (fc2,), part=None)]
    sites_in_order = tuple(site for site in (qkv, projection, fc1, fc2) if site is not None)
    return quant.Block(apply, sites_in_order, tuple(pairs), queries_keys=((qkv, 2 * inner),))


def _has_projection(config: WorldModelConfig) -> bool:
    """A single head of full width has no output projection."""
    return config.predictor.heads > 1 or config.predictor.dim_head != config.predictor_dim


def with_qkv_bias(config: WorldModelConfig, params: PyTree) -> tuple[WorldModelConfig, PyTree]:
    """The same function with a bias in the predictor's to_qkv, zeros where there was none.

    OmniQuant's shift needs that bias; all variants of a table have it then.
    """
    inner = 3 * config.predictor.heads * config.predictor.dim_head
    layers = [f"predictor/layers_{i}/attn/to_qkv" for i in range(config.predictor.depth)]
    missing = [layer for layer in layers if "bias" not in paths.subtree(params, layer)]
    biases = {f"{layer}/bias": np.zeros(inner, np.float32) for layer in missing}
    return config.replace(predictor=config.predictor.replace(qkv_bias=True)), paths.nest(biases, params)
