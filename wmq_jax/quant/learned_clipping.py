"""Learnable weight clipping: grids whose ranges are trained (OmniQuant, Shao et al. 2024, equation 2).

Every group's largest and smallest value are multiplied by the sigmoid of a factor, and gradients reach the factors
through the scale, with straight-through rounding.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from wmq_jax.quant import grid as grids
from wmq_jax.quant.division import exact_divide
from wmq_jax.quant.weights import SCALE_LIMITS

# sigmoid(4) = 0.982: hardly any clipping, and a gradient that is not yet flat.
INITIAL_FACTOR = 4.0

_RELEASED_ZERO_POINT_LIMIT = 1e4


def lwc_grid(
    groups: jax.Array,
    bits,
    upper: jax.Array,
    lower: jax.Array,
    symmetric: bool = True,
    released: bool = False,
    scale_limits: tuple[float, float] = SCALE_LIMITS,
) -> grids.Grid:
    """The grid of ``sigmoid(lower) * min .. sigmoid(upper) * max`` of every group.

    Symmetric: ``s = max(|max'|, |min'|) / (2**(bits-1) - 1)``, ``z = 2**(bits-1) - 1``.
    Asymmetric: ``s = (max' - min') / Q``, ``z = round(-min' / s)``. Codes are ``0..Q``, ``Q = 2**bits - 1``.

    Args:
      groups: (R, n, g).
      bits: 2..15; may be traced.
      upper, lower: (R, n, 1), or what broadcasts with it.
      symmetric: which of the two.
      released: keep the asymmetric range as it is. By default it is extended to contain 0, without which z leaves the
        codes for groups of one sign.
      scale_limits: bounds of s; ``RELEASED_SCALE_LIMITS`` are those of the released code.
    """
    smallest, largest = grids.differentiable_range(groups)
    low, high = jax.nn.sigmoid(lower) * smallest, jax.nn.sigmoid(upper) * largest
    bottom, top = grids.unsigned_limits(bits)
    if symmetric:
        half = grids.signed_limits(bits)[1]
        scale = exact_divide(jnp.maximum(jnp.abs(high), jnp.abs(low)), half)
        scale = jnp.clip(scale, *scale_limits)
        return grids.Grid(scale, jnp.broadcast_to(half, scale.shape), bottom, top)
    if not released:
        low, high = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
    scale = jnp.clip(grids.step_between(low, high, top), *scale_limits)
    limit = _RELEASED_ZERO_POINT_LIMIT if released else top
    return grids.Grid(scale, jnp.round(jnp.clip(exact_divide(-low, scale), -limit, limit)), bottom, top)
