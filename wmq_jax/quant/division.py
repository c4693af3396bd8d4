"""Division that rounds correctly on every platform: an ulp decides where a value on a rounding boundary goes."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Divide = Callable[[jax.Array, jax.Array], jax.Array]


def stable_divide(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x / y`` by the platform's own division, whatever is broadcast; correctly rounded (IEEE 754) on a CPU.

    XLA rewrites a division by a broadcast value into a multiplication by its reciprocal, which is an ulp off in a
    quarter to half of all cases, and whether it does changes between ``jit``, ``vmap`` and eager calls. Behind a select
    that reads both operands, the divisor is no broadcast any more, and the barrier keeps constants from being folded
    into one. Where ``x + y`` is NaN, so is ``x / y``.
    """
    return jnp.divide(*_operands(x, y))


def exact_divide(x: jax.Array, y: jax.Array) -> jax.Array:
    """``stable_divide``, correctly rounded on every platform.

    A GPU divides within two ulps (``div.full.f32``), other accelerators by an approximate reciprocal. That puts the
    largest weight of every second row a whole step away from where a CPU puts it: it lies on a rounding boundary, at
    7.5 steps of a 4-bit grid. So the quotient is corrected there in integer arithmetic. It makes programs larger, which
    what runs once for a set of weights can afford; activations lie on boundaries by chance alone.
    """
    x, y = _operands(x, y)
    if y.dtype != jnp.float32:
        return x / y
    return jax.lax.platform_dependent(x, y, cpu=jnp.divide, default=_corrected_divide)


def _operands(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``x`` and ``y`` in one shape and dtype, the divisor such that XLA takes it for no broadcast."""
    both = x + jax.lax.optimization_barrier(jnp.asarray(y))
    divisor = jnp.where(jnp.isnan(both), both, y)
    return jnp.broadcast_to(x, divisor.shape).astype(divisor.dtype), divisor


@jax.jit
def _corrected_divide(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x / y`` of float32 in two steps towards the nearest quotient, with the gradients of ``x / y``."""
    rough = x / y
    exact = nearest_quotient(nearest_quotient(rough, x, y), x, y)
    return rough + jax.lax.stop_gradient(jnp.where(exact == rough, 0.0, exact - rough))


def nearest_quotient(quotient: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """``quotient``, or its neighbour that is nearer to ``x / y``; float32, of one shape.

    The remainder ``x - quotient * y`` is taken of the significands as integers. Their products have 48 bits, but the
    remainder is smaller than 2**27 where the quotient is within two ulps, so arithmetic modulo 2**32 has it exactly,
    and no contraction or reordering of floating point can change it. A quotient that is zero, subnormal or infinite, or
    comes from such values, stays as it is.
    """
    bits = [jax.lax.bitcast_convert_type(value, jnp.int32) for value in (quotient, x, y)]
    exponent_q, exponent_x, exponent_y = ((b >> 23) & 0xFF for b in bits)
    significand_q, significand_x, significand_y = ((b & 0x7FFFFF) | 0x800000 for b in bits)
    shift = exponent_x - exponent_q - exponent_y + (127 + 23)
    remainder = (significand_x << shift) - significand_q * significand_y
    # In half ulps of the quotient; below a power of two, ulps are half as large.
    halves = jnp.where((significand_q == 0x800000) & (remainder < 0), 4 * remainder, 2 * remainder)
    step = (halves > significand_y).astype(jnp.int32) - (halves < -significand_y).astype(jnp.int32)
    normal = [(0 < exponent) & (exponent < 255) for exponent in (exponent_q, exponent_x, exponent_y)]
    moved = jax.lax.bitcast_convert_type(bits[0] + step, jnp.float32)
    return jnp.where(normal[0] & normal[1] & normal[2], moved, quotient)
