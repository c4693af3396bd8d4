"""OMSE: ranges that minimise the squared error of rounding, found by search.

Clipping the few largest values makes the steps of all others finer. The best trade is searched for on a grid of
shrinking factors, for every group of a weight or for a site's activations. Source: Choukroun et al., "Low-bit
Quantization of Neural Networks for Efficient Inference" (2019); the grids of factors are those of arXiv 2602.02110's
released code.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from wmq_jax.quant import grid as grids
from wmq_jax.quant.division import exact_divide
from wmq_jax.quant.per_kernel import KERNELS, per_kernel
from wmq_jax.quant.quantizer import fake_quant, static_quantizer
from wmq_jax.quant.rules import Rule
from wmq_jax.quant.transform import Transform
from wmq_jax.quant.weights import RELEASED_SCALE_LIMITS, SCALE_LIMITS, WeightSpec


@dataclasses.dataclass(frozen=True)
class ClippingSearch:
    """A grid function: the symmetric grid of ``r * max|w|`` with the smallest error, over factors r.

    ``s(r) = r * max|w| / (2**(bits-1) - 1)`` for ``points`` equally spaced r in ``lowest..1``; every group takes the r
    that minimises ``sum((w_hat - w)**2)``, the smallest of equals.

    Attributes:
      points, lowest: the factors.
      scale_limits: bounds of s.
    """

    points: int = 101
    lowest: float = 0.35
    scale_limits: tuple[float, float] = SCALE_LIMITS

    def __call__(self, groups: jax.Array, bits) -> grids.Grid:
        """The grids of ``groups`` (R, n, g)."""
        qmin, qmax = grids.signed_limits(bits)
        absmax = jnp.abs(groups).max(-1, keepdims=True)
        zero = jnp.zeros_like(absmax)

        def grid_of(factor):
            return grids.Grid(jnp.clip(exact_divide(factor * absmax, qmax), *self.scale_limits), zero, qmin, qmax)

        def error_of(grid):
            return ((grids.decode(grids.encode(groups, grid), grid) - groups) ** 2).sum(-1, keepdims=True)

        def better(best, factor):
            error, scale = best
            grid = grid_of(factor)
            found = error_of(grid)
            improved = found < error
            return (jnp.where(improved, found, error), jnp.where(improved, grid.scale, scale)), None

        # One factor after the other: memory does not grow with their number.
        start = (jnp.full_like(absmax, jnp.inf), grid_of(1.0).scale)
        (_, scale), _ = jax.lax.scan(better, start, self._factors())
        return grids.Grid(scale, zero, qmin, qmax)

    def _factors(self) -> np.ndarray:
        # In float64 and rounded once, as the released loop computes them.
        steps = max(self.points - 1, 1)
        return (self.lowest + np.arange(self.points) * ((1 - self.lowest) / steps)).astype(np.float32)


omse_grid = ClippingSearch()
released_omse_grid = ClippingSearch(scale_limits=RELEASED_SCALE_LIMITS)


def omse(
    bits,
    group_size: int | None = None,
    layout: str = "padded",
    output_axes: tuple[int, ...] | None = None,
    rules: Sequence[Rule] = (KERNELS,),
    released_limits: bool = False,
) -> Transform:
    """Rounds weights to symmetric grids whose ranges minimise the squared error; see ``ClippingSearch``.

    Args:
      bits: 2..15, or None, 16 or 32 for none; may be traced.
      group_size, layout, output_axes: see ``weights.WeightSpec``.
      rules: see ``per_kernel``.
      released_limits: keep scales in 1e-5..1e4, as the released code does: weights below 5e-6 become 0.
    """
    grid_fn = released_omse_grid if released_limits else omse_grid
    return per_kernel(WeightSpec(bits, group_size, layout, output_axes), grid_fn, rules)


@functools.partial(jax.jit, static_argnames=("include_zero", "points"))
def omse_range(
    minimum: jax.Array,
    maximum: jax.Array,
    bits,
    values: jax.Array,
    weights: jax.Array,
    include_zero: bool = True,
    points: int = 90,
) -> tuple[jax.Array, jax.Array]:
    """The range ``(1 - 0.01 i) * (minimum, maximum)``, i = 0..points-1, that rounds ``values`` best.

    Best is the smallest squared error.

    Args:
      minimum, maximum: scalars, the observed range.
      bits: 2..15 or none; may be traced.
      values: (n, C) tokens that were seen.
      weights: (n,) how much each counts; 0 for none.
      include_zero: as in ``static_quantizer``, for which the range is meant.

    Returns:
      The smallest and the largest value of the range, scalars; that of the smallest i among equals.
    """

    def error_of(factor):
        quantizer = static_quantizer(factor * minimum, factor * maximum, bits, include_zero=include_zero)
        return (weights[:, None] * (fake_quant(values, quantizer) - values) ** 2).sum()

    factors = jnp.asarray((1.0 - 0.01 * np.arange(points)).astype(np.float32))
    best = factors[jnp.argmin(jax.lax.map(error_of, factors))]
    return best * minimum, best * maximum
