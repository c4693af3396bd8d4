"""AWQ: scales that protect the weights that large activations meet, and clipping, both searched (Lin et al. 2024).

Rounding errors matter in proportion to the activations they are multiplied with. Multiplying a row of a kernel by
s > 1 and dividing its activation by s shrinks that row's relative error; the best exponent of ``s = mean|x|**ratio`` is
searched for by the error of the block's output. Then every group of weights is clipped where that lowers the error of
its partial sums.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wmq_jax.quant import grid, paths, weights
from wmq_jax.quant.block_inputs import capture, check_block_inputs, check_outputs, mean_over, sampled_inputs
from wmq_jax.quant.equalization import (
    bounded,
    check_following,
    check_order,
    check_topology,
    rescale,
    rescale_statistics,
)
from wmq_jax.quant.float_function import check_float_function
from wmq_jax.quant.matrices import as_matrices, reshape_like
from wmq_jax.quant.topology import Block, Pair, Topology
from wmq_jax.quant.transform import State, Transform, block_params, mark_codes, replace_block, unless_none

PyTree = Any

_SMALLEST_SCALE = 1e-4


@dataclasses.dataclass(frozen=True)
class AWQSpec:
    """What a search does; static, so equal ones share what is compiled.

    Attributes:
      weight: how kernels are quantized; its bits are None, they are data.
      scaled: regular expression over the first consumer of a pair; pairs that match are scaled. '.*fc1' is the released
        choice, '.*' every pair, as in the original AWQ.
      clip: search for clipping at all.
      clip_queries_keys: clip the outputs that only decide attention weights too, as the released code does; the
        original AWQ spares them.
      grid_fn: of the rounding in the end.
      search_grid: of the rounding inside the searches. The released code searches with an asymmetric grid for weights
        that are then rounded to a symmetric one.
      ratios: exponents searched: 0, 1/ratios, ...
      clips: clipping levels searched, ``1 - k / 20`` of the largest magnitude.
      tokens: the clipping search looks at about this many, drawn at random.
      rounded: round in the end; False leaves floats for another transform (pairs without a producer are then skipped).
      stale_grids: search in a block that is rounded already, to grids of its kernels as they were before anything was
        scaled or clipped, and round to these grids in the end, as the released code does.
      strided: the clipping search takes one token in every so many, as the released code does. Of sequences of one
        length that can be the same position of each.
    """

    weight: weights.WeightSpec
    scaled: str = ".*"
    clip: bool = True
    clip_queries_keys: bool = False
    grid_fn: weights.GridFn = weights.absmax_grid
    search_grid: weights.GridFn = weights.absmax_grid
    ratios: int = 20
    clips: int = 10
    tokens: int = 512
    rounded: bool = True
    stale_grids: bool = False
    strided: bool = False

    def pairs(self, block: Block) -> tuple[Pair, ...]:
        """The pairs of a block that are scaled."""
        chosen = (pair for pair in block.pairs if re.fullmatch(self.scaled, pair.consumers[0]))
        return tuple(pair for pair in chosen if self.rounded or pair.producer is not None)


class AWQBlock(NamedTuple):
    """What ``awq_block`` found.

    Attributes:
      params: of the block.
      output: of the block before anything changed, (n, ..., C): the next block's input.
      scales: consumer -> (C,), of every pair that was scaled.
      losses: consumer -> (ratios,), errors of the scale search.
      limits: site -> (outputs, groups), where weights were clipped.
      codes: name of a kernel -> its integers; none if nothing was rounded.
    """

    params: PyTree
    output: jax.Array
    scales: dict[str, jax.Array]
    losses: dict[str, jax.Array]
    limits: dict[str, jax.Array]
    codes: dict[str, weights.QuantizedKernel]


def awq(
    bits,
    group_size: int | None = None,
    layout: str = "padded",
    scaled: str = ".*",
    clip: bool = True,
    clip_queries_keys: bool = False,
    grid_fn: weights.GridFn = weights.absmax_grid,
    search_grid: weights.GridFn | None = None,
    rounded: bool = True,
    stale_grids: bool = False,
    strided: bool = False,
) -> Transform:
    """Scales, clips and rounds the kernels of every block of the topology.

    Needs a topology and, in the statistics, a sample of the input of each stack's first block
    (``linen.observe(blocks=...)``); later blocks see what the float blocks before them make of it. Statistics of
    sites, where there are any, follow the scales, as those of ``channel_ranges`` can.

    The released study scales LayerNorm -> fc1 only (``scaled='.*fc1'``), clips queries and keys too
    (``clip_queries_keys=True``), searches with ``released_range_grid`` for weights rounded to ``absmax_grid``
    afterwards, cuts groups from the flattened matrix (``layout='flat'``), compares outputs of the MLP (the topology's
    ``Pair.part``), searches in a network whose quantizers are calibrated and on, and stay as they are
    (``stale_grids=True``; clearly worse), and clips for tokens at regular distances (``strided=True``).

    Args:
      bits: 2..15, or None, 16 or 32 for none; may be traced.
      group_size, layout: see ``weights.WeightSpec``.
      scaled, clip, clip_queries_keys, grid_fn, search_grid, rounded, stale_grids, strided: see ``AWQSpec``;
        ``search_grid`` defaults to ``grid_fn``.

    Raises:
      ValueError: ``stale_grids`` without rounding; and from ``check``: no topology, a ``scaled`` that matches no pair,
        no sampled block input, statistics that cannot follow, a kernel whose inputs are not the channels of its tap (a
        convolution's), a pair whose re-scaling changes what its block computes, NaN or infinity; the site is named.
        From ``apply``: a block gives NaN or infinity.
    """
    try:
        re.compile(scaled)
    except re.error as error:
        raise ValueError(f"awq: scaled={scaled!r} is no regular expression: {error}") from None
    if stale_grids and not rounded:
        raise ValueError("awq: stale_grids needs rounded=True, since another transform would round to grids of its own")
    spec = AWQSpec(
        dataclasses.replace(weights.WeightSpec(bits, group_size, layout), bits=None),
        scaled,
        clip,
        clip_queries_keys,
        grid_fn,
        grid_fn if search_grid is None else search_grid,
        rounded=rounded,
        stale_grids=stale_grids,
        strided=strided,
    )
    bits = grid.canonical_bits(bits)

    def check(state: State, topology: Topology | None = None) -> None:
        check_topology(state, topology, "awq")
        check_scaled(topology, spec)
        check_block_inputs(state, topology, "awq", spec.weight)
        check_following(state, topology, spec.pairs)
        check_order(state, topology, "awq", spec.pairs)
        check_float_function(state, topology, spec.pairs)

    def apply(state: State, topology: Topology | None = None) -> State:
        check_order(state, topology, "awq", spec.pairs)
        statistics = state.statistics
        for stack in topology.stacks:
            x, mask = sampled_inputs(state.statistics, stack)
            for path, block in stack:
                part = block_params(state, path)
                view, matrices = as_matrices(block, part)
                found = awq_block(matrices, x, mask, bits, view, spec)
                changed = reshape_like(found.params, part)
                state, x = replace_block(state, path, changed, block.sites, found.codes, bits), found.output
                check_outputs(path, x)
                for pair in spec.pairs(block):
                    if pair.producer is not None:
                        statistics = rescale_statistics(statistics, path, pair, found.scales[pair.consumers[0]])
        return state._replace(statistics=statistics)

    def mark(state: State, topology: Topology | None = None) -> State:
        return mark_codes(state, topology.kernels()) if rounded else state

    return unless_none(bits, Transform(check, apply, mark))


def check_scaled(topology: Topology, spec: AWQSpec) -> None:
    """Checks that ``spec.scaled`` matches a pair, if there are pairs.

    Raises:
      ValueError: it matches none; those that there are are listed.
    """
    first = sorted({pair.consumers[0] for _, block in topology.blocks() for pair in block.pairs})
    if first and not any(spec.pairs(block) for _, block in topology.blocks()):
        raise ValueError(f"awq: scaled={spec.scaled!r} matches no pair; the first consumers are {', '.join(first)}")


@functools.partial(jax.jit, static_argnames=("block", "spec"))
def awq_block(params: PyTree, x: jax.Array, mask: jax.Array, bits, block: Block, spec: AWQSpec) -> AWQBlock:
    """AWQ on one block.

    Args:
      params: of the block; kernels of sites are matrices (see ``as_matrices``).
      x: (n, ..., C) inputs of the block, channels last.
      mask: (n, ...), 1 where a token counts.
      bits: 2..15; may be traced.
      block, spec: static.
    """
    stale = _stale_grids(params, block, bits, spec) if spec.stale_grids else {}
    as_run = functools.partial(_rounded_kernels, grid_fns=stale, bits=bits, spec=spec)
    output, inputs = capture(block, as_run(params), x)
    scales, losses, beside, limits, codes = {}, {}, {}, {}, {}
    for pair in spec.pairs(block):
        name = pair.consumers[0]
        found, losses[name] = _search_scale(params, as_run, x, output, inputs, mask, bits, block, pair, spec)
        scales[name] = bounded(params, pair, found)
        if pair.producer is None:
            beside |= dict.fromkeys(pair.consumers, scales[name])
        else:
            params = rescale(params, pair, scales[name])
            inputs |= {consumer: inputs[consumer] / scales[name] for consumer in pair.consumers}
    for site in block.sites:
        exact = paths.subtree(params, site)["kernel"]
        # A scale that no producer can take is applied around the rounding of the kernel: Q(W s) / s.
        scale = beside[site][:, None] if site in beside else jnp.ones((exact.shape[0], 1), jnp.float32)
        kernel = exact.astype(jnp.float32) * scale
        if spec.clip:
            spared = 0 if spec.clip_queries_keys else dict(block.queries_keys).get(site, 0)
            limits[site] = search_clip(kernel, inputs[site] / scale[:, 0], mask, bits, spec)
            limits[site] = limits[site].at[:spared].set(jnp.inf)
            kernel = _clipped(kernel, limits[site], spec)
        result = (kernel / scale).astype(exact.dtype)
        if spec.rounded:
            divisor = scale if site in beside else None
            grid_fn = stale.get(site, spec.grid_fn)
            found = weights.encode_kernel(kernel, bits, spec.weight, grid_fn, exact=exact, divisor=divisor)
            result, codes[f"{site}/kernel"] = weights.decoded_or(result, found, bits), weights.with_integers(found)
        params = paths.nest({f"{site}/kernel": result}, params)
    return AWQBlock(params, output, scales, losses, limits, codes)


def _stale_grids(params: PyTree, block: Block, bits, spec: AWQSpec) -> dict[str, weights.GridFn]:
    """Site -> the grids of its kernel as it is now, whatever it becomes."""

    def grid_fn(site):
        grids = spec.grid_fn(weights.to_groups(paths.subtree(params, site)["kernel"], spec.weight), bits)
        return lambda groups, bits: grids

    return {site: grid_fn(site) for site in block.sites}


def _rounded_kernels(params: PyTree, grid_fns: dict[str, weights.GridFn], bits, spec: AWQSpec) -> PyTree:
    """The block with the kernels of these sites rounded."""
    round_site = lambda site: weights.round_to_grids(
        paths.subtree(params, site)["kernel"], bits, spec.weight, grid_fns[site]
    )
    return paths.nest({f"{site}/kernel": round_site(site) for site in grid_fns}, params)


def _search_scale(params, as_run, x, output, inputs, mask, bits, block: Block, pair: Pair, spec: AWQSpec):
    """The scale (C,) of a pair with the smallest error, and the error of every ratio; ``as_run`` of parameters runs."""
    if pair.part is not None:
        seen, path, apply = inputs[pair.consumers[0]], pair.part.path, pair.part.apply
        target = apply(paths.subtree(as_run(params), path), seen)
    else:
        seen, path, apply, target = x, "", block.apply, output
    magnitude = mean_over(mask, jnp.abs(inputs[pair.consumers[0]]))

    def scale_of(ratio):
        scale = jnp.maximum(magnitude**ratio, _SMALLEST_SCALE)
        return scale / jnp.sqrt(scale.max() * scale.min())

    def loss_of(ratio):
        scale = scale_of(ratio)[:, None]

        def rounded(name):
            kernel = paths.subtree(params, name)["kernel"]
            scaled = weights.round_to_grids(kernel * scale, bits, spec.weight, spec.search_grid)
            return (scaled / scale).astype(kernel.dtype)

        changed = paths.nest({f"{name}/kernel": rounded(name) for name in pair.consumers}, params)
        return mean_over(mask, (apply(paths.subtree(as_run(changed), path), seen) - target) ** 2).mean()

    ratios = jnp.arange(spec.ratios, dtype=jnp.float32) / spec.ratios
    losses = jax.lax.map(loss_of, ratios)
    return scale_of(ratios[jnp.nanargmin(losses)]), losses


def search_clip(kernel: jax.Array, x: jax.Array, mask: jax.Array, bits, spec: AWQSpec) -> jax.Array:
    """The limit (outputs, groups) of every group of a kernel (C, outputs) by the error of its partial sums."""
    groups_spec = _clip_groups(kernel, spec)
    groups = weights.to_groups(kernel, groups_spec)
    tokens = x.reshape(-1, x.shape[-1])
    counts = mask.reshape(-1)
    chosen = _chosen_tokens(counts, spec)
    tokens, counts = tokens[chosen], counts[chosen]
    columns = weights.to_groups(tokens.T, groups_spec)  # (tokens, groups, values of a group)
    absmax = jnp.abs(groups).max(-1)

    def better(best, level):
        error, limit = best
        tried = absmax * level
        clipped = weights.round_to_grids(_clipped(kernel, tried, spec), bits, spec.weight, spec.search_grid)
        change = weights.to_groups(clipped, groups_spec) - groups
        sums = jnp.einsum("tng,rng->trn", columns, change)
        found = jnp.einsum("t,trn->rn", counts, sums**2)
        improved = found < error
        return (jnp.where(improved, found, error), jnp.where(improved, tried, limit)), None

    start = (jnp.full_like(absmax, jnp.inf), absmax)
    # Rounded once: a group that is clipped on both sides has its zero point half way between two codes.
    levels = (1 - np.arange(spec.clips) / 20).astype(np.float32)
    (_, limit), _ = jax.lax.scan(better, start, levels)
    return limit


def _chosen_tokens(counts: jax.Array, spec: AWQSpec) -> slice | jax.Array:
    """About ``spec.tokens`` places of ``counts`` (n,), 0 where a token does not count."""
    stride = max(1, len(counts) // spec.tokens)
    if stride == 1 or spec.strided:
        return slice(None, None, stride)
    drawn = np.random.default_rng(0).random(len(counts), np.float32)
    return jax.lax.top_k(jnp.where(counts > 0, drawn, -1.0), -(-len(counts) // stride))[1]


def _clipped(kernel: jax.Array, limit: jax.Array, spec: AWQSpec) -> jax.Array:
    groups_spec = _clip_groups(kernel, spec)
    groups = weights.to_groups(kernel, groups_spec)
    return weights.from_groups(jnp.clip(groups, -limit[..., None], limit[..., None]), kernel.shape, groups_spec)


def _clip_groups(kernel: jax.Array, spec: AWQSpec) -> weights.WeightSpec:
    """Groups that are clipped together: those of the rounding, or whole rows where flat groups straddle them."""
    size = spec.weight.group_size
    straddling = spec.weight.layout == "flat" and size is not None and kernel.shape[0] % size
    return weights.WeightSpec(None, None if straddling else size)
