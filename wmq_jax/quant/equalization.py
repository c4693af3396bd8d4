"""Moving scale between a producer and its consumers without changing the function.

Dividing the channels of what a site reads and multiplying the rows of its kernel leaves the product as it was, but
changes which values have to share a quantization step. SmoothQuant, AWQ and OmniQuant differ in how they choose the
scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wmq_jax.quant import calibration, paths
from wmq_jax.quant.matrices import as_matrices
from wmq_jax.quant.quantizer import OFF, STATIC
from wmq_jax.quant.statistics import ChannelRange
from wmq_jax.quant.topology import NORM, Block, Pair, Topology
from wmq_jax.quant.transform import State, block_params

PyTree = Any

# The pairs of a block that a method treats.
Pairs = Callable[[Block], Sequence[Pair]]

# A scale below this is taken as this, by all released methods.
SMALLEST_SCALE = 1e-5


def smoothing_scale(params: PyTree, pair: Pair, absmax: jax.Array, alpha: float) -> jax.Array:
    """SmoothQuant's scale of a pair: ``max|x|**alpha / max|w|**(1 - alpha)`` of every channel.

    Source: Xiao et al. 2023, equation 4.

    Args:
      params: of the block.
      pair: whose consumers' kernels (C, ...) give ``max|w|``, over all of them.
      absmax: (C,) largest magnitude of every channel of the consumers' input.
      alpha: how much of the difficulty moves from activations to weights, 0..1.
    """
    magnitudes = [_magnitude(paths.subtree(params, consumer)["kernel"]) for consumer in pair.consumers]
    weight = jnp.maximum(jnp.stack(magnitudes).max(0), SMALLEST_SCALE)
    scale = jnp.maximum(absmax, SMALLEST_SCALE) ** alpha / weight ** (1 - alpha)
    return bounded(params, pair, jnp.maximum(scale, SMALLEST_SCALE))


def bounded(params: PyTree, pair: Pair, scale: jax.Array) -> jax.Array:
    """The scale of a pair, larger where its producer's dtype could not hold what is divided by it (float16 ends at
    65504)."""
    if pair.producer is None:
        return scale
    producer = paths.subtree(params, pair.producer)
    gain = producer[_gain(pair)]
    largest = jnp.abs(gain[..., pair.first : pair.first + scale.shape[0]].astype(jnp.float32))
    largest = largest.reshape(-1, scale.shape[0]).max(0)
    if producer.get("bias") is not None:
        bias = producer["bias"][pair.first : pair.first + scale.shape[0]]
        largest = jnp.maximum(largest, jnp.abs(bias.astype(jnp.float32)))
    return jnp.maximum(scale, largest / (0.5 * float(jnp.finfo(gain.dtype).max)))


def rescale(params: PyTree, pair: Pair, scale: jax.Array, shift: jax.Array | None = None) -> PyTree:
    """The block with ``(x - shift) / scale`` at the input of the pair's consumers, the same function otherwise.

    A LayerNorm takes ``gain / scale`` and ``(bias - shift) / scale``; a Dense producer the same in the channels that
    feed the consumers. Consumers take ``scale * W`` and, with a shift, ``bias + shift @ W``.

    Args:
      params: of the block.
      pair: its producer is not None.
      scale: (C,) positive.
      shift: (C,), or None for none. Consumers without a bias get one.

    Raises:
      ValueError: there is a shift, and the producer has no bias that could take it.
    """
    changed = {pair.producer: _divided(paths.subtree(params, pair.producer), pair, scale, shift)}
    for consumer in pair.consumers:
        changed[consumer] = _multiplied(paths.subtree(params, consumer), scale, shift)
    return paths.nest(changed, params)


def rescale_statistics(statistics: PyTree, path: str, pair: Pair, scale: jax.Array, shift=0.0) -> PyTree:
    """Statistics after ``rescale`` of a pair of the block at ``path``; None stays None.

    Raises:
      ValueError: a consumer's statistic does not know its channels.
    """
    if statistics is None:
        return None
    followers = _followers(calibration.site_statistics(statistics), path, pair)
    moved = {paths.join(site, calibration.INPUT): seen.rescaled(scale, shift) for site, seen in followers.items()}
    return paths.nest(moved, statistics)


def check_topology(state: State, topology: Topology | None, method: str) -> None:
    """Checks on the host that there is a topology, and that the parameters have what it names, finite and as matrices.

    Raises:
      ValueError: there is none, it has no blocks or one of them twice, a pair scales what is no site, a name is not
        there, a kernel of several axes does not say which are inputs, or a block has NaN or infinity.
    """
    if topology is None:
        raise ValueError(f"{method} needs a topology: quantize(transform, params, statistics, topology)")
    if not topology.blocks():
        raise ValueError(f"{method} treats the blocks of a topology, but this one has none")
    names = paths.named_leaves(state.params)
    _check_description(topology)
    for path, block in topology.blocks():
        wanted = [paths.join(path, site, "kernel") for site in block.sites]
        wanted += [paths.join(path, pair.producer, _gain(pair)) for pair in block.pairs if pair.producer is not None]
        missing = [name for name in wanted if name not in names]
        if missing:
            raise ValueError(
                f"the topology names '{missing[0]}', which the parameters lack; kernels, biases and gains have the "
                "names that Flax gives them"
            )
        for site in block.sites:
            name = paths.join(path, site, "kernel")
            shape = tuple(names[name].shape)
            if len(shape) != 2 and site not in dict(block.input_axes):
                raise ValueError(
                    f"{method} takes kernels of two axes, or of several where the block's input_axes says how many are "
                    f"inputs; '{name}' has shape {shape}"
                )
        # All of a block: searches compare outputs, and what is not finite in one reaches the blocks after it.
        floating = lambda name: jnp.issubdtype(jnp.result_type(names[name]), jnp.floating)
        inside = [name for name in names if name.startswith(path and f"{path}/") and floating(name)]
        paths.check_finite("weight", {name: names[name] for name in inside})


def check_order(state: State, topology: Topology, method: str, pairs: Pairs, rounds: bool = True) -> None:
    """Checks that nothing is quantized yet that a method changes: its codes or its static range were made for other
    scales and shifts. Where bits are unknown (under ``jit``), ranges are not looked at.

    Args:
      state, topology: of the model.
      method: its name.
      pairs: ``block -> pairs`` that it re-scales.
      rounds: it changes every site's kernel, not only those of the pairs.

    Raises:
      ValueError: naming the first site that is.
    """
    quantizers = paths.named_leaves(state.quant)
    for path, block in topology.blocks():
        for site in block.sites if rounds else rescaled_kernels(block, pairs):
            if paths.join(path, site, "kernel") in state.codes:
                raise ValueError(
                    f"{method} comes after a transform that rounded '{paths.join(path, site, 'kernel')}', which it "
                    "changes: put it first in the chain"
                )
        for name in (name for pair in pairs(block) if pair.producer is not None for name in pair.consumers):
            site = paths.join(path, name)
            mode = quantizers.get(paths.join(site, calibration.INPUT, "mode"), OFF)
            if paths.is_known(mode) and bool(np.any(np.asarray(mode) == STATIC)):
                raise ValueError(
                    f"{method} comes after static_activations, whose range of site '{site}' it changes: put it first "
                    "in the chain"
                )


def rescaled_kernels(block: Block, pairs: Pairs) -> list[str]:
    """The sites of a block whose kernels a re-scaling of these pairs changes."""
    changed = {name for pair in pairs(block) for name in (pair.producer, *pair.consumers)}
    return [site for site in block.sites if site in changed]


def channel_statistics(state: State, topology: Topology, pairs: Pairs, method: str) -> None:
    """Checks on the host that every consumer of the chosen pairs has a finite statistic of its channels.

    Raises:
      ValueError: naming the first site that has none, or none of the inputs of its kernel.
    """
    seen = {} if state.statistics is None else calibration.site_statistics(state.statistics)
    wanted = {}
    for path, block in topology.blocks():
        consumers = [consumer for pair in pairs(block) for consumer in pair.consumers]
        _, matrices = as_matrices(block, block_params(state, path))
        wanted |= {paths.join(path, name): paths.subtree(matrices, name)["kernel"].shape[0] for name in consumers}
    for site, rows in wanted.items():
        if not isinstance(seen.get(site), ChannelRange):
            raise ValueError(
                f"{method} needs statistics of the channels of site '{site}'; observe with channel_ranges()"
            )
        channels = seen[site].minimum.shape[-1]
        if channels != rows:
            raise ValueError(
                f"{method} cannot treat site '{site}': its kernel has {rows} inputs, but {channels} channels pass it"
            )
    calibration.check_statistics({site: seen[site] for site in wanted})


def check_following(state: State, topology: Topology, pairs: Pairs) -> None:
    """Checks that the statistics which are there can follow a re-scaling of the chosen pairs.

    Args:
      state: its statistics may be None.
      topology: of the model.
      pairs: ``block -> pairs`` that are going to be re-scaled.

    Raises:
      ValueError: naming the first site whose statistic does not know its channels.
    """
    for path, block in topology.blocks():
        for pair in pairs(block):
            if state.statistics is not None and pair.producer is not None:
                _followers(calibration.site_statistics(state.statistics), path, pair)


def foldable(block: Block, kinds: tuple[str, ...] = (NORM,)) -> list[Pair]:
    """The pairs of a block whose producer can be divided, of these kinds."""
    return [pair for pair in block.pairs if pair.producer is not None and pair.kind in kinds]


def _followers(seen: dict[str, Any], path: str, pair: Pair) -> dict[str, ChannelRange]:
    """The statistics of a pair's consumers that there are."""
    sites = [site for site in (paths.join(path, name) for name in pair.consumers) if site in seen]
    for site in sites:
        if not isinstance(seen[site], ChannelRange):
            raise ValueError(
                f"the {type(seen[site]).__name__} of site '{site}' cannot follow a re-scaling of channels; observe "
                f"with channel_ranges(), or calibrate again afterwards and pass no statistics on"
            )
    return {site: seen[site] for site in sites}


def _check_description(topology: Topology) -> None:
    paths_seen = set()
    for path, block in topology.blocks():
        if path in paths_seen:
            raise ValueError(f"the topology names block '{path}' twice")
        paths_seen.add(path)
        _check_pairs(path, block)
        for consumer in (consumer for pair in block.pairs for consumer in pair.consumers):
            if consumer not in block.sites:
                raise ValueError(
                    f"a pair of block '{path}' has the consumer '{consumer}', which is none of the block's sites: "
                    f"{', '.join(block.sites)}"
                )


def _check_pairs(path: str, block: Block) -> None:
    """Each channel is divided once, and multiplied back once: otherwise the block would compute something else."""
    divided, multiplied = set(), set()
    for pair in block.pairs:
        if pair.producer is None:
            continue
        if (pair.producer, pair.first) in divided:
            raise ValueError(
                f"two pairs of block '{path}' have the producer '{pair.producer}'; name all that it feeds as consumers "
                "of one"
            )
        divided.add((pair.producer, pair.first))
        for consumer in pair.consumers:
            if consumer in multiplied:
                raise ValueError(f"two pairs of block '{path}' with a producer have the consumer '{consumer}'")
            multiplied.add(consumer)


def _gain(pair: Pair) -> str:
    return "scale" if pair.kind == NORM else "kernel"


def _magnitude(kernel: jax.Array) -> jax.Array:
    """Largest magnitude of every row of a kernel (C, ...), float32."""
    return jnp.abs(kernel.astype(jnp.float32)).reshape(kernel.shape[0], -1).max(1)


def _divided(producer: dict, pair: Pair, scale: jax.Array, shift: jax.Array | None) -> dict:
    gain, bias = (None if leaf is None else jnp.asarray(leaf) for leaf in (producer[_gain(pair)], producer.get("bias")))
    stop = pair.first + scale.shape[0]
    channels = (..., slice(pair.first, stop))
    # In the precision of the scale, as the consumers take it, or the two would not cancel.
    out = {**producer, _gain(pair): gain.at[channels].set((gain[channels] / scale).astype(gain.dtype))}
    if bias is None and shift is not None:
        raise ValueError(f"a shift needs a bias in its producer; '{pair.producer}' has none")
    if bias is not None:
        moved = bias[channels] if shift is None else bias[channels] - shift
        out["bias"] = bias.at[channels].set((moved / scale).astype(bias.dtype))
    return out


def _multiplied(consumer: dict, scale: jax.Array, shift: jax.Array | None) -> dict:
    kernel = consumer["kernel"]
    column = scale.reshape(-1, *(1,) * (kernel.ndim - 1))
    out = {**consumer, "kernel": (kernel * column).astype(kernel.dtype)}
    if shift is not None:
        moved = jnp.tensordot(shift, kernel, 1)
        out["bias"] = (moved + consumer.get("bias", 0)).astype(kernel.dtype)
    return out
