"""OmniQuant: learnable clipping and learnable equivalent transformations, trained block by block (Shao et al. 2024).

Of every block, the ranges of its weights' grids (``lwc_grid``) and a scale and shift for what each LayerNorm gives to
its consumers (``rescale``) descend the error of the block's output, with straight-through rounding. A block is trained
on what the quantized blocks before it give, against what the float blocks give.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wmq_jax.quant import calibration, paths, weights
from wmq_jax.quant import grid as grids
from wmq_jax.quant.block_inputs import check_block_inputs, check_outputs, sampled_inputs
from wmq_jax.quant.equalization import (
    SMALLEST_SCALE,
    channel_statistics,
    check_following,
    check_order,
    check_topology,
    foldable,
    rescale,
    rescale_statistics,
    smoothing_scale,
)
from wmq_jax.quant.float_function import check_float_function
from wmq_jax.quant.learned_clipping import INITIAL_FACTOR, lwc_grid
from wmq_jax.quant.matrices import as_matrices, reshape_like
from wmq_jax.quant.quantizer import fake_quant_tokens, per_token_quantizer
from wmq_jax.quant.taps import thread
from wmq_jax.quant.topology import Block, Stack, Topology
from wmq_jax.quant.transform import State, Transform, block_params, mark_codes, replace_block, unless_none

PyTree = Any

TRANSFORM = "transform"
CLIPPING = "clipping"


@dataclasses.dataclass(frozen=True)
class OmniQuantSpec:
    """What training does; static, so equal ones share what is compiled.

    Attributes:
      weight: how kernels are quantized; its bits are None, they are data.
      epochs: passes over the samples. 0: initial scales, and rounding to ``untrained_grid`` without clipping.
      batch: samples a step, in order.
      optimizer: ``init`` and ``update`` as of an optax transformation, over ``{'transform': ..., 'clipping': ...}``.
      scale_limits, include_zero: of weights' scales and of tokens' ranges; see ``omniquant``.
      keep_best: keep what training ended with only if its loss over all samples is below that of what it began with,
        and of rounding to ``untrained_grid``, with the initial scales and without any. The published training keeps
        its end.
      untrained_grid: of weights without training.
    """

    weight: weights.WeightSpec
    epochs: int = 0
    batch: int = 4
    optimizer: Any = None
    scale_limits: tuple[float, float] = weights.SCALE_LIMITS
    include_zero: bool = True
    keep_best: bool = False
    untrained_grid: weights.GridFn = weights.absmax_grid


class OmniQuantBlock(NamedTuple):
    """What ``omniquant_block`` trained.

    Attributes:
      params: of the block, quantized.
      learned: ``{'transform': {consumer: {'scale', 'shift'}}, 'clipping': {site: {'upper', 'lower'}}}``; clipping is
        that of training also where rounding without it was kept.
      losses: (steps,), before each step.
      output, target: of the quantized and of the float block: the next block's inputs.
      codes: name of a kernel -> its integers.
    """

    params: PyTree
    learned: PyTree
    losses: jax.Array
    output: jax.Array
    target: jax.Array
    codes: dict[str, weights.QuantizedKernel]


def omniquant(
    bits,
    group_size: int | None = None,
    layout: str = "padded",
    act_bits=None,
    alpha: float = 0.5,
    epochs: int = 0,
    batch: int = 4,
    optimizer: Any = None,
    released: bool = False,
) -> Transform:
    """Trains and quantizes the kernels of every block of the topology.

    Scales start as SmoothQuant's, shifts at 0, clipping factors at 4. Statistics of sites follow the scales and
    shifts. A shift needs a bias in the LayerNorm and in its consumers; a pair without is scaled only. (The released
    code adds a bias of zeros; give the model one to have the shift.)

    Args:
      bits: 2..15, or None, 16 or 32 for none; may be traced.
      group_size, layout: see ``weights.WeightSpec``.
      act_bits: while training, quantize the inputs of sites per token to these bits; none for weights alone.
      alpha: of the initial scales.
      epochs: passes over the sampled inputs. 0 is what the released study runs: initial scales, and plain
        round-to-nearest. Its training fails (temporary weights are None, clipping factors are not registered); what
        trains here is the repaired definition.
      batch: samples a step.
      optimizer: for ``epochs`` above 0: an optax transformation over ``{'transform': ..., 'clipping': ...}``, such as
        ``optax.multi_transform({'transform': optax.adamw(5e-3, weight_decay=0), 'clipping': optax.adamw(1e-2,
        weight_decay=0)}, {'transform': 'transform', 'clipping': 'clipping'})``. Pass one object to compile once.
        One program trains the same every time; in another (``shard_map`` beside ``jit``) last bits differ, and with
        them what training ends with.
      released: weights' scales kept in 1e-5..1e4 (without training, at 2^-23 or above) and tokens' ranges not extended
        to 0, as in the released quantizers, and what training ended with kept even if it raised the block's error or
        is no number.

    Raises:
      ValueError: epochs without an optimizer; and from ``check``: no topology, no sampled block input, no statistics of
        channels, a kernel whose inputs are not the channels of its tap (a convolution's), a pair whose re-scaling
        changes what its block computes, NaN or infinity; the site is named. From ``apply``: a float block gives NaN or
        infinity.
    """
    _check_settings(epochs, batch, optimizer, alpha)
    limits = weights.RELEASED_SCALE_LIMITS if released else weights.SCALE_LIMITS
    spec = OmniQuantSpec(
        dataclasses.replace(weights.WeightSpec(bits, group_size, layout), bits=None),
        epochs,
        batch,
        optimizer,
        limits,
        include_zero=not released,
        keep_best=not released,
        untrained_grid=weights.released_absmax_grid if released else weights.absmax_grid,
    )
    bits, act_bits = grids.canonical_bits(bits), grids.canonical_bits(act_bits)

    def check(state: State, topology: Topology | None = None) -> None:
        check_topology(state, topology, "omniquant")
        channel_statistics(state, topology, foldable, "omniquant")
        check_block_inputs(state, topology, "omniquant", spec.weight)
        check_following(state, topology, foldable)
        check_order(state, topology, "omniquant", foldable)
        check_float_function(state, topology, foldable)

    def apply(state: State, topology: Topology | None = None) -> State:
        check_order(state, topology, "omniquant", foldable)
        for stack in topology.stacks:
            state = _quantize_stack(state, stack, bits, act_bits, alpha, spec)
        return state

    def mark(state: State, topology: Topology | None = None) -> State:
        return mark_codes(state, topology.kernels())

    return unless_none(bits, Transform(check, apply, mark))


def _check_settings(epochs, batch, optimizer, alpha) -> None:
    if not isinstance(epochs, int) or epochs < 0 or (epochs and optimizer is None):
        raise ValueError(f"omniquant takes epochs of 0, or more with an optimizer; got {epochs} and {optimizer}")
    if epochs and not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(f"omniquant's optimizer must be one of optax, such as optax.adam(5e-3), not {optimizer!r}")
    if not isinstance(batch, int) or batch < 1:
        raise ValueError(f"omniquant's batch must be 1 or more samples, not {batch}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"omniquant's alpha must be 0..1, not {alpha}")


def _quantize_stack(state: State, stack: Stack, bits, act_bits, alpha: float, spec: OmniQuantSpec) -> State:
    """Every block after those before it: on what they give quantized, against what they give in float."""
    x, mask = sampled_inputs(state.statistics, stack)
    target = x
    for path, block in stack:
        sites = calibration.site_statistics(state.statistics)
        pairs = [(pair, pair.consumers[0]) for pair in foldable(block)]
        maxima = {consumer: sites[paths.join(path, consumer)].absmax() for _, consumer in pairs}
        part = block_params(state, path)
        view, matrices = as_matrices(block, part)
        learned = initial(matrices, maxima, alpha, view, spec)
        trained = omniquant_block(matrices, learned, x, target, mask, bits, act_bits, view, spec)
        x, target = trained.output, trained.target
        check_outputs(path, target)
        state = replace_block(state, path, reshape_like(trained.params, part), block.sites, trained.codes, bits)
        statistics = state.statistics
        for pair, consumer in pairs:
            moved = trained.learned[TRANSFORM][consumer]
            statistics = rescale_statistics(statistics, path, pair, moved["scale"], moved.get("shift", 0.0))
        state = state._replace(statistics=statistics)
    return state


@functools.partial(jax.jit, static_argnames=("block", "spec"))
def initial(params: PyTree, maxima: dict[str, jax.Array], alpha, block: Block, spec: OmniQuantSpec) -> PyTree:
    """What is trained, before training: see ``OmniQuantBlock.learned``.

    Args:
      params: of the block.
      maxima: first consumer of each LayerNorm's pair -> (C,) largest magnitudes of its input.
      alpha: of ``smoothing_scale``.
      block, spec: static.
    """
    transform = {}
    for pair in foldable(block):
        name = pair.consumers[0]
        transform[name] = {"scale": smoothing_scale(params, pair, maxima[name], alpha)}
        if all("bias" in paths.subtree(params, owner) for owner in (pair.producer, *pair.consumers)):
            transform[name]["shift"] = jnp.zeros_like(transform[name]["scale"])
    clipping = {}
    for site in block.sites:
        rows, groups, _ = weights.group_shape(paths.subtree(params, site)["kernel"].shape, spec.weight)
        factor = jnp.full((rows, groups, 1), INITIAL_FACTOR)
        clipping[site] = {"upper": factor, "lower": factor}
    return {TRANSFORM: transform, CLIPPING: clipping}


@functools.partial(jax.jit, static_argnames=("block", "spec"))
def omniquant_block(
    params: PyTree,
    learned: PyTree,
    x: jax.Array,
    target_input: jax.Array,
    mask: jax.Array,
    bits,
    act_bits,
    block: Block,
    spec: OmniQuantSpec,
) -> OmniQuantBlock:
    """OmniQuant on one block.

    Args:
      params: of the float block.
      learned: of ``initial``.
      x, target_input: (n, ..., C) what the quantized and the float blocks before this one give, channels last.
      mask: (n, ...), 1 where a token counts.
      bits, act_bits: 2..15, act_bits also ``NO_BITS``; may be traced.
      block, spec: static.
    """
    target = block.apply(params, target_input)
    losses, clipped = jnp.zeros(0), True
    if spec.epochs:
        begun = learned
        learned, losses = _train(params, learned, x, target, mask, bits, act_bits, block, spec)
        if spec.keep_best:
            candidates = [(learned, True), (begun, True), (begun, False), (_unchanged(begun), False)]
            learned, clipped = _best(candidates, params, x, target, mask, bits, act_bits, block, spec)
    quantized, codes = transformed(params, learned, bits, block, spec, jnp.round, clipped)
    output = _with_quantized_inputs(quantized, x, act_bits, block, spec, jnp.round)
    codes = {name: weights.with_integers(found) for name, found in codes.items()}
    return OmniQuantBlock(quantized, learned, losses, output, target, codes)


def block_loss(
    learned,
    params,
    x,
    target,
    mask,
    bits,
    act_bits,
    block: Block,
    spec: OmniQuantSpec,
    clipped: bool | jax.Array = True,
) -> jax.Array:
    """Mean squared error of the quantized block, with straight-through rounding; ``clipped`` as in ``transformed``."""
    rounding = grids.straight_through_round
    quantized, _ = transformed(params, learned, bits, block, spec, rounding, clipped)
    output = _with_quantized_inputs(quantized, x, act_bits, block, spec, rounding)
    weight = mask.reshape(mask.shape + (1,) * (output.ndim - mask.ndim))
    values = mask.sum() * (output.size // mask.size)
    return (weight * (output - target) ** 2).sum() / jnp.maximum(values, 1)


def transformed(
    params: PyTree,
    learned: PyTree,
    bits,
    block: Block,
    spec: OmniQuantSpec,
    rounding,
    clipped: bool | jax.Array = True,
) -> tuple[PyTree, dict[str, weights.QuantizedKernel]]:
    """The block re-scaled, shifted, clipped and rounded by what was learned, and its kernels' codes.

    ``clipped``: round to the learned grids; otherwise, and without training, to ``spec.untrained_grid``. May be traced.
    """
    for pair in foldable(block):
        moved = learned[TRANSFORM][pair.consumers[0]]
        params = rescale(params, pair, moved["scale"], moved.get("shift"))
    codes, floats = {}, {}
    for site in block.sites:
        name, factors = f"{site}/kernel", learned[CLIPPING][site]

        def grid_fn(groups, bits):
            if not spec.epochs:
                return spec.untrained_grid(groups, bits)
            grid = lwc_grid(groups, bits, factors["upper"], factors["lower"], scale_limits=spec.scale_limits)
            if clipped is True:
                return grid
            return jax.tree.map(functools.partial(jnp.where, clipped), grid, spec.untrained_grid(groups, bits))

        kernel = paths.subtree(params, name)
        codes[name] = weights.encode_kernel(kernel, bits, spec.weight, grid_fn, rounding)
        floats[name] = weights.decoded_or(kernel, codes[name], bits)
    return paths.nest(floats, params), codes


def _train(params, learned, x, target, mask, bits, act_bits, block: Block, spec: OmniQuantSpec):
    """What was learned after all epochs, and the loss before each step."""
    samples = len(x)
    batches = -(-samples // spec.batch)
    # The last batch may be short: sample 0 fills it up and does not count.
    order = np.concatenate([np.arange(samples), np.zeros(batches * spec.batch - samples, int)]).reshape(batches, -1)
    counts = (np.arange(batches * spec.batch) < samples).astype(np.float32).reshape(batches, -1)

    def step(carry, batch):
        learned, state = carry
        learned = _positive(learned)
        chosen, count = batch
        counted = jnp.einsum("b...,b->b...", mask[chosen], count)
        loss, gradient = jax.value_and_grad(block_loss)(
            learned, params, x[chosen], target[chosen], counted, bits, act_bits, block, spec
        )
        updates, state = spec.optimizer.update(gradient, state, learned)
        return (jax.tree.map(jnp.add, learned, updates), state), loss

    schedule = (np.tile(order, (spec.epochs, 1)), np.tile(counts, (spec.epochs, 1)))
    (learned, _), losses = jax.lax.scan(step, (learned, spec.optimizer.init(learned)), schedule)
    return _positive(learned), losses


def _best(
    candidates: list[tuple[PyTree, bool]], params, x, target, mask, bits, act_bits, block: Block, spec: OmniQuantSpec
) -> tuple[PyTree, jax.Array]:
    """The (learned, clipped) of the lowest loss over all samples; one whose loss is no number never is."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *candidates)

    def loss(candidate: tuple[PyTree, jax.Array]) -> jax.Array:
        learned, clipped = candidate
        return block_loss(learned, params, x, target, mask, bits, act_bits, block, spec, clipped)

    losses = jax.lax.map(loss, stacked)
    best = jnp.nanargmin(losses)
    return jax.tree.map(lambda leaf: leaf[best], stacked)


def _unchanged(learned: PyTree) -> PyTree:
    """With scales of 1 and shifts of 0, which leave the block as it is."""
    transform = {
        name: {field: jnp.full_like(value, field == "scale") for field, value in moved.items()}
        for name, moved in learned[TRANSFORM].items()
    }
    return {**learned, TRANSFORM: transform}


def _positive(learned: PyTree) -> PyTree:
    """What was learned, with scales that a step has taken to 0 or below at the smallest one."""
    transform = {
        name: {**moved, "scale": jnp.maximum(moved["scale"], SMALLEST_SCALE)}
        for name, moved in learned[TRANSFORM].items()
    }
    return {**learned, TRANSFORM: transform}


def _with_quantized_inputs(params, x, act_bits, block: Block, spec: OmniQuantSpec, rounding) -> jax.Array:
    """The block's output with the inputs of its sites quantized per token; ``NO_BITS`` leaves them as they are."""
    quantizer = per_token_quantizer(act_bits, include_zero=spec.include_zero)
    output, _ = thread(block.apply, lambda name, _, x: (fake_quant_tokens(x, quantizer, rounding), None))({}, params, x)
    return output
