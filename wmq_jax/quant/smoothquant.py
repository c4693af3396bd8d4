"""SmoothQuant: outliers of activations move into the weights, where they are easier to quantize (Xiao et al. 2023)."""

from __future__ import annotations

import functools
from typing import Any

import jax

from wmq_jax.quant import calibration, paths
from wmq_jax.quant.equalization import (
    channel_statistics,
    check_order,
    check_topology,
    foldable,
    rescale,
    rescale_statistics,
    rescaled_kernels,
    smoothing_scale,
)
from wmq_jax.quant.float_function import check_float_function
from wmq_jax.quant.matrices import as_matrices, reshape_like
from wmq_jax.quant.topology import LINEAR, NORM, Pair, Topology
from wmq_jax.quant.transform import State, Transform, block_params, replace_block


def smoothquant(alpha: float = 0.5, linear: bool = False) -> Transform:
    """Moves ``s = max|x|**alpha / max|w|**(1 - alpha)`` of every channel from activations into weights.

    It quantizes nothing: compose it with what does, ``chain(smoothquant(0.5), rtn(8), static_activations(8))``. The
    function of the float model stays; statistics follow. The released code does the same for LayerNorm -> Dense, with
    alpha 0.5.

    Args:
      alpha: 0 leaves activations as they are where weights are flat, 1 makes them flat.
      linear: treat pairs of two Dense layers too, where the topology states that this is exact.

    Needs a topology and statistics of ``channel_ranges``. ValueError from ``check`` if a site has none, and, where
    inputs of blocks were sampled too, if re-scaling a pair changes what its block computes.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in 0..1, not {alpha}")
    treated = functools.partial(foldable, kinds=(NORM, LINEAR) if linear else (NORM,))

    def check(state: State, topology: Topology | None = None) -> None:
        check_topology(state, topology, "smoothquant")
        channel_statistics(state, topology, treated, "smoothquant")
        check_order(state, topology, "smoothquant", treated, rounds=False)
        check_float_function(state, topology, treated)

    def apply(state: State, topology: Topology | None = None) -> State:
        check_order(state, topology, "smoothquant", treated, rounds=False)
        seen = calibration.site_statistics(state.statistics)
        statistics = state.statistics
        for path, block in topology.blocks():
            pairs = tuple(treated(block))
            maxima = [seen[paths.join(path, pair.consumers[0])].absmax() for pair in pairs]
            part = block_params(state, path)
            smoothed, scales = _smooth(as_matrices(block, part)[1], maxima, alpha, pairs)
            changed = rescaled_kernels(block, treated)
            state = replace_block(state, path, reshape_like(smoothed, part), changed)
            for pair, scale in zip(pairs, scales):
                statistics = rescale_statistics(statistics, path, pair, scale)
        return state._replace(statistics=statistics)

    return Transform(check, apply)


@functools.partial(jax.jit, static_argnames="pairs")
def _smooth(params: Any, maxima: list[jax.Array], alpha: float, pairs: tuple[Pair, ...]) -> tuple[Any, list[jax.Array]]:
    """A block's parameters after smoothing its pairs one after the other, and their scales."""
    scales = []
    for pair, absmax in zip(pairs, maxima):
        scales.append(smoothing_scale(params, pair, absmax, alpha))
        params = rescale(params, pair, scales[-1])
    return params, scales
