"""Integer grids: which codes a number of bits can write, and rounding onto them.

A bit-width is data. ``bits`` is a Python integer or an int32 array (traced under
``jit`` and ``vmap``), so one compiled program serves every width. Widths are 2..15;
``None``, 16 and 32 all mean "leave it in floating point" and become ``NO_BITS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wmq_jax.quant.division import Divide, exact_divide

MIN_BITS = 2
MAX_BITS = 15
NO_BITS = 16

# The smallest scale of the released code: float32's machine epsilon, so that a constant zero does not divide by zero.
EPSILON = float(np.finfo(np.float32).eps)
# The smallest scale otherwise: it lets values of any useful size through, and its square is still a normal number, so
# that gradients of a group of zeros are finite.
SMALLEST_SCALE = 2.0**-60

Rounding = Callable[[jax.Array], jax.Array]


class Grid(NamedTuple):
    """An affine integer grid: codes ``qmin..qmax`` stand for ``(code - zero_point) * scale``.

    Every field is a float32 array; shapes broadcast against the values they quantize.
    """

    scale: jax.Array
    zero_point: jax.Array
    qmin: jax.Array
    qmax: jax.Array


def canonical_bits(bits) -> int | jax.Array:
    """``bits`` as the core uses it: 2..15, or ``NO_BITS`` for None, 16 and 32.

    A tracer's value is unknown: below 2 it counts as 2, and 16 and above mean none.

    Raises:
      TypeError: ``bits`` is neither None nor an integer or an integer array.
      ValueError: a known width is not 2..15, 16 or 32.
    """
    if bits is None:
        return NO_BITS
    known = isinstance(bits, (int, np.integer, np.ndarray, jax.Array)) and not isinstance(bits, bool)
    if not known or not jnp.issubdtype(jnp.result_type(bits), jnp.integer):
        raise TypeError(f"bits must be an integer or None, not {bits!r}")
    if isinstance(bits, jax.core.Tracer):
        return jnp.maximum(bits, MIN_BITS)
    values = np.asarray(bits)
    wrong = (values != 32) & ((values < MIN_BITS) | (values > NO_BITS))
    if wrong.any():
        raise ValueError(
            f"bits must be {MIN_BITS}..{MAX_BITS}, or None, 16 or 32 for no quantization; got {values[wrong].flat[0]}"
        )
    if values.ndim:
        return jnp.minimum(jnp.asarray(bits, jnp.int32), NO_BITS)
    return min(int(values), NO_BITS)


def is_quantized(bits) -> jax.Array:
    """Whether ``bits`` asks for quantization at all (bool, the shape of ``bits``)."""
    return jnp.less(bits, NO_BITS)


def levels(bits) -> jax.Array:
    """Steps between the smallest and the largest code, ``2**bits - 1``, float32 and exact."""
    # An integer shift: jnp.exp2 is not exact (8192.004 at 13 bits).
    shift = jnp.minimum(jnp.asarray(bits, jnp.int32), NO_BITS)
    return (jnp.left_shift(jnp.int32(1), shift) - 1).astype(jnp.float32)


def signed_limits(bits) -> tuple[jax.Array, jax.Array]:
    """``(-2**(bits-1), 2**(bits-1) - 1)``, float32 and exact."""
    half = (levels(bits) + 1) / 2
    return -half, half - 1


def unsigned_limits(bits) -> tuple[jax.Array, jax.Array]:
    """``(0, 2**bits - 1)``, float32 and exact."""
    top = levels(bits)
    return jnp.zeros_like(top), top


def step_between(low: jax.Array, high: jax.Array, steps: jax.Array, divide: Divide = exact_divide) -> jax.Array:
    """``(high - low) / steps``, finite also where ``high - low`` is beyond float32.

    The same bits as the equation where that is finite: a power of two changes none. What codes at the ends of such a
    grid stand for may still overflow, by half a step; transforms refuse such values (``paths.check_finite``).
    """
    # A value, not two branches: XLA factors constants out of a difference, and would overflow again.
    half = jnp.where(jnp.isinf(high - low), 0.5, 1.0)
    return divide(high * half - low * half, steps) / half


def straight_through_round(x: jax.Array) -> jax.Array:
    """Round half to even, with the gradient of the identity (Bengio et al., 2013).

    Pass it as ``rounding`` where gradients are wanted; inference uses ``jnp.round``.
    """
    return x + jax.lax.stop_gradient(jnp.round(x) - x)


def differentiable_range(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The smallest and the largest value along the last axis of x (..., n), each (..., 1); gradients reach one element.

    The gradient of a maximum is shared among the elements that equal it. XLA may compute ``x`` twice, an ulp apart:
    once for the maximum and once for the comparison. Then none equals it, and the share is 0/0.
    """
    smallest, largest = (jnp.expand_dims(index, -1) for index in (x.argmin(-1), x.argmax(-1)))
    return jnp.take_along_axis(x, smallest, -1), jnp.take_along_axis(x, largest, -1)


def encode(
    x: jax.Array,
    grid: Grid,
    zero_point_first=False,
    rounding: Rounding = jnp.round,
    divide: Divide = exact_divide,
) -> jax.Array:
    """The codes of ``x`` on ``grid``, as floats of integer value.

    ``clip(round(x / s) + z)``, or ``clip(round(x / s + z))`` where ``zero_point_first`` (a bool
    array, so the order is data too). The two differ only in ties, and only for odd ``z``. Where ``divide`` is
    ``stable_divide``, a value within an ulp of a rounding boundary may go either way on an accelerator.
    """
    before = jnp.where(zero_point_first, grid.zero_point, 0.0)
    after = grid.zero_point - before
    return _clip(rounding(divide(x, grid.scale) + before) + after, grid.qmin, grid.qmax)


def decode(codes: jax.Array, grid: Grid) -> jax.Array:
    """The values that ``codes`` stand for, ``(codes - z) * s``."""
    return (codes - grid.zero_point) * grid.scale


def _clip(x: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """``jnp.clip`` with the full gradient at the ends, where clip halves it: codes often lie exactly on them."""
    return jnp.where(x < low, low, jnp.where(x > high, high, x))
