"""Name maps between the state dicts of the official DINO-WM modules and the parameter tree of `WorldModel`.

A state dict maps dotted names to numpy arrays in the layouts of the original: linear (out, in), convolution
(out, in, kh, kw), one-dimensional convolution (out, in, k), transposed convolution (in, out, kh, kw). Nothing here
reads a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from wmq_jax.io.wording import listed
from wmq_jax.models import WorldModel, WorldModelConfig

MODULES = ("encoder", "predictor", "proprio_encoder", "action_encoder", "decoder")

State = Mapping[str, np.ndarray]


class _Layout(NamedTuple):
    """How an array is laid out there: functions to our layout and back."""

    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[np.ndarray], np.ndarray]


_MOST_NAMED = 500  # of each kind in a message; the largest published model has 464 weights
_SAME = _Layout(lambda w: w, lambda w: w)
_LINEAR = _Layout(np.transpose, np.transpose)
_CONV = _Layout(lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1))
# Flax's transposed convolution with `transpose_kernel` keeps (kh, kw, out, in).
_TRANSPOSED_CONV = _CONV
# A convolution over time of width 1 is a linear map.
_CONV_OVER_TIME = _Layout(lambda w: w[:, :, 0].T, lambda w: w.T[:, :, None])


class Weight(NamedTuple):
    """One weight under both names.

    Attributes:
      path: its path in our parameter tree.
      name: its name in the official state dict.
      layout: how to convert it.
    """

    path: tuple[str, ...]
    name: str
    layout: _Layout


def _affine(path: str, name: str, layout: _Layout, bias: bool = True) -> Iterator[Weight]:
    """A kernel and its bias."""
    yield Weight((*path.split("/"), "kernel"), f"{name}.weight", layout)
    if bias:
        yield Weight((*path.split("/"), "bias"), f"{name}.bias", _SAME)


def _norm(path: str, name: str) -> Iterator[Weight]:
    yield Weight((*path.split("/"), "scale"), f"{name}.weight", _SAME)
    yield Weight((*path.split("/"), "bias"), f"{name}.bias", _SAME)


def _encoder(config: WorldModelConfig) -> Iterator[Weight]:
    """DINOv2's own names, behind the wrapper's `base_model`."""
    base = "encoder.base_model"
    yield Weight(("encoder", "cls_token"), f"{base}.cls_token", _SAME)
    yield Weight(("encoder", "pos_embed"), f"{base}.pos_embed", _SAME)
    if config.encoder.registers:
        yield Weight(("encoder", "register_tokens"), f"{base}.register_tokens", _SAME)
    yield from _affine("encoder/patch_embed", f"{base}.patch_embed.proj", _CONV)
    for i in range(config.encoder.depth):
        ours, theirs = f"encoder/blocks_{i}", f"{base}.blocks.{i}"
        for norm in ("norm1", "norm2"):
            yield from _norm(f"{ours}/{norm}", f"{theirs}.{norm}")
        for linear in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            yield from _affine(f"{ours}/{linear.replace('.', '/')}", f"{theirs}.{linear}", _LINEAR)
        for scale in ("ls1", "ls2"):
            yield Weight(("encoder", f"blocks_{i}", scale, "gamma"), f"{theirs}.{scale}.gamma", _SAME)
    yield from _norm("encoder/norm", f"{base}.norm")


def _predictor(config: WorldModelConfig) -> Iterator[Weight]:
    """The original numbers the parts of a layer: 0 is attention, 1 the MLP, whose members 0, 1 and 4 have weights."""
    c = config.predictor
    yield Weight(("predictor", "pos_embedding"), "predictor.pos_embedding", _SAME)
    for i in range(c.depth):
        ours, theirs = f"predictor/layers_{i}", f"predictor.transformer.layers.{i}"
        yield from _norm(f"{ours}/attn/norm", f"{theirs}.0.norm")
        yield from _affine(f"{ours}/attn/to_qkv", f"{theirs}.0.to_qkv", _LINEAR, bias=c.qkv_bias)
        if not (c.heads == 1 and c.dim_head == config.predictor_dim):
            yield from _affine(f"{ours}/attn/to_out", f"{theirs}.0.to_out.0", _LINEAR)
        yield from _norm(f"{ours}/ff/norm", f"{theirs}.1.net.0")
        yield from _affine(f"{ours}/ff/fc1", f"{theirs}.1.net.1", _LINEAR)
        yield from _affine(f"{ours}/ff/fc2", f"{theirs}.1.net.4", _LINEAR)
    yield from _norm("predictor/norm", "predictor.transformer.norm")


def _vqvae_decoder(config: WorldModelConfig) -> Iterator[Weight]:
    """Two stacks whose blocks are numbered through: a convolution, residual blocks, ReLU, up, ReLU, up."""
    blocks = config.decoder.n_res_block
    if config.decoder.quantize:
        for name in ("embed", "cluster_size", "embed_avg"):
            yield Weight(("decoder", "codebook", name), f"decoder.quantize_b.{name}", _SAME)
    for ours, theirs in (("decoder/upsample", "decoder.upsample_b.blocks"), ("decoder/decode", "decoder.dec.blocks")):
        yield from _affine(f"{ours}/conv_in", f"{theirs}.0", _CONV)
        for i in range(blocks):
            yield from _affine(f"{ours}/res_blocks_{i}/conv1", f"{theirs}.{1 + i}.conv.1", _CONV)
            yield from _affine(f"{ours}/res_blocks_{i}/conv2", f"{theirs}.{1 + i}.conv.3", _CONV)
        yield from _affine(f"{ours}/up1", f"{theirs}.{blocks + 2}", _TRANSPOSED_CONV)
        yield from _affine(f"{ours}/up2", f"{theirs}.{blocks + 4}", _TRANSPOSED_CONV)


def _transposed_conv_decoder(config: WorldModelConfig) -> Iterator[Weight]:
    yield from _affine("decoder/fc", "decoder.network.0", _LINEAR)
    for i in range(5):
        yield from _affine(f"decoder/ups_{i}", f"decoder.network.{3 + 2 * i}", _TRANSPOSED_CONV)


def weights(config: WorldModelConfig) -> list[Weight]:
    """Every weight that the official modules of this configuration have, under both names."""
    found = [*_encoder(config), *_predictor(config)]
    for module in ("proprio_encoder", "action_encoder"):
        found += _affine(f"{module}/proj", f"{module}.patch_embed", _CONV_OVER_TIME)
    if config.decoder is not None:
        decoder = _vqvae_decoder if config.decoder.kind == "vqvae" else _transposed_conv_decoder
        found += decoder(config)
    return found


def is_unused(config: WorldModelConfig, name: str) -> bool:
    """Whether this is a weight that the original stores and its forward pass never reads."""
    if name == "encoder.base_model.mask_token":
        return True
    codebook = ("embed", "cluster_size", "embed_avg")
    has_codebook = config.decoder is not None and not config.decoder.quantize
    return has_codebook and name in {f"decoder.quantize_b.{part}" for part in codebook}


def parameter_shapes(config: WorldModelConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Path and shape of every parameter of a model, without computing any."""
    side, hist = config.image_size, config.num_hist
    sizes = ((side, side, 3), (config.proprio_dim,), (config.action_dim,))
    inputs = [jax.ShapeDtypeStruct((1, hist, *size), np.float32) for size in sizes]
    variables = jax.eval_shape(WorldModel(config).init, jax.random.key(0), *inputs)
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(variables["params"]).items()}


def from_torch(state: State, config: WorldModelConfig) -> dict[str, Any]:
    """Converts an official state dict to the `params` of a `WorldModel`.

    Args:
      state: dotted name -> array, the module first: `encoder.base_model.*` (DINOv2 names), `predictor.*`,
        `proprio_encoder.*`, `action_encoder.*` and `decoder.*`.
      config: the model's configuration.

    Returns:
      The parameter tree, float32 numpy arrays.

    Raises:
      ValueError: names every weight that is missing, surplus or of another shape than the configuration says; or the
        configuration standardises latents, which official models do not. Weights that the original stores without using
        them (DINOv2's mask token, the codebook of a decoder that does not quantize) may be there or not.
    """
    if config.standardize_latents:
        raise ValueError("official weights have no latent statistics: standardize_latents must be false.")
    wanted = weights(config)
    shapes = parameter_shapes(config)
    known = {w.name for w in wanted}
    missing = [w.name for w in wanted if w.name not in state]
    surplus = [name for name in state if name not in known and not is_unused(config, name)]
    shaped, params = [], {}
    for weight in wanted:
        if weight.name not in state:
            continue
        theirs = state[weight.name]
        shape = weight.layout.theirs(np.broadcast_to(np.float32(0), shapes[weight.path])).shape
        if np.shape(theirs) != shape:
            shaped.append(f"{weight.name} with {np.shape(theirs)} instead of {shape}")
        else:
            params[weight.path] = np.ascontiguousarray(weight.layout.ours(np.asarray(theirs, np.float32)))
    problems = [
        f"{kind} ({len(names)}): {listed(names, _MOST_NAMED)}"
        for kind, names in (("missing", missing), ("surplus", surplus), ("of other shapes", shaped))
        if names
    ]
    if problems:
        raise ValueError(f"these weights do not fit the model's configuration: {'; '.join(problems)}.")
    return traverse_util.unflatten_dict(params)


def to_torch(params: Mapping[str, Any], config: WorldModelConfig) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`: an official state dict from the `params` of a `WorldModel`.

    Raises:
      ValueError: a parameter is missing, or the model has one that the official modules lack (standardised latents).
    """
    flat = traverse_util.flatten_dict(dict(params))
    wanted = {w.path: w for w in weights(config)}
    missing = sorted("/".join(path) for path in wanted if path not in flat)
    surplus = sorted("/".join(path) for path in flat if path not in wanted)
    if missing or surplus:
        raise ValueError(f"these parameters have no official counterpart: {surplus}; these are missing: {missing}.")
    return {w.name: np.ascontiguousarray(w.layout.theirs(np.asarray(flat[w.path]))) for w in wanted.values()}
