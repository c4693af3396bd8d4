"""Activation quantizers: a small pytree of traced arrays, and the function that applies one.

What a quantizer does is chosen by its values, not by its type, so variants that quantize per
tensor, per token or not at all stack into one table and run in one compiled program.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wmq_jax.quant import grid as grids
from wmq_jax.quant.division import exact_divide, stable_divide

PyTree = Any

OFF = 0
STATIC = 1
PER_TOKEN = 2

# Bounds that the released per-token quantizer puts on its scale and zero point.
_RELEASED_SCALE_FLOOR = 1e-5
_RELEASED_LIMIT = 1e4
_HUGE = float(np.finfo(np.float32).max)


class Quantizer(NamedTuple):
    """How one site quantizes its input. All fields are arrays of one shape, () unless stacked.

    Attributes:
      mode: int32; ``OFF``, ``STATIC`` (the scale and zero point below) or ``PER_TOKEN`` (both
        computed from each token, the last axis of the input).
      scale: float32, step of the static grid.
      zero_point: float32 of integer value, code of the static grid that stands for 0.
      qmin, qmax: float32 of integer value, first and last code.
      zero_point_first: bool; ``round(x/s + z)`` instead of ``round(x/s) + z``.
      include_zero: bool, read by ``PER_TOKEN`` only; see ``per_token_quantizer``.
    """

    mode: jax.Array
    scale: jax.Array
    zero_point: jax.Array
    qmin: jax.Array
    qmax: jax.Array
    zero_point_first: jax.Array
    include_zero: jax.Array


def scales_of(quantizers: PyTree) -> PyTree:
    """The scale of every quantizer in a tree, float32: what an optimizer can learn of static ones."""
    return jax.tree.map(lambda leaf: leaf.scale, quantizers, is_leaf=is_quantizer)


def with_scales(quantizers: PyTree, scales: PyTree) -> PyTree:
    """Quantizers with other scales, as of ``scales_of``; everything else of them is whole numbers, which have no
    gradient:

        loss = lambda scales: measure(apply({"params": params, "quant": with_scales(quantizers, scales)}, x))
        jax.grad(loss)(scales_of(quantizers))
    """
    return jax.tree.map(lambda leaf, scale: leaf._replace(scale=scale), quantizers, scales, is_leaf=is_quantizer)


def is_quantizer(node: Any) -> bool:
    """Whether ``node`` is a quantizer (rather than a container of quantizers)."""
    return isinstance(node, Quantizer)


def static_quantizer(minimum, maximum, bits, *, include_zero: bool = True, zero_point_first: bool = True) -> Quantizer:
    """A per-tensor quantizer for values seen between ``minimum`` and ``maximum``.

    ``s = max((max - min) / Q, eps)``, ``z = clip(round(-min / s), 0, Q)``, ``Q = 2**bits - 1``.

    Args:
      minimum, maximum: float arrays of one shape, the observed range; a leading axis makes a
        stack of quantizers (one for each scanned layer).
      bits: 2..15 or none; an integer or an int32 array that broadcasts with the range.
      include_zero: extend the range to contain 0. False keeps it as observed, which is the
        released behaviour: ``z`` is then clipped for one-sided data, what lies beyond
        ``Q * s`` is cut off, and scales are at least 2^-23.
      zero_point_first: round after adding the zero point, as the released code does.
    """
    bits = grids.canonical_bits(bits)
    low, high = jnp.asarray(minimum, jnp.float32), jnp.asarray(maximum, jnp.float32)
    if include_zero:
        low, high = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
    qmin, qmax = grids.unsigned_limits(bits)
    floor = jnp.where(include_zero, grids.SMALLEST_SCALE, grids.EPSILON)
    scale = jnp.maximum(grids.step_between(low, high, qmax), floor)
    zero_point = jnp.clip(-jnp.round(exact_divide(low, scale)), qmin, qmax)
    mode = jnp.where(grids.is_quantized(bits), STATIC, OFF)
    return _broadcast_fields(mode, scale, zero_point, qmin, qmax, zero_point_first, include_zero)


def per_token_quantizer(bits, *, include_zero: bool = True, zero_point_first: bool = False) -> Quantizer:
    """A dynamic quantizer: every token (last axis) gets the grid of its own range.

    No token ever sees another one, so no element of a batch influences another's result.

    Args:
      bits: 2..15 or none; an integer, or an int32 array for a stack of quantizers.
      include_zero: extend each token's range to contain 0; a constant token then comes back
        as itself to an ulp. False is the released behaviour: the range as observed, the scale clipped to
        [1e-5, 1e4] and the zero point to +-1e4 (not to the codes), by which a constant beyond
        +-0.1 comes back as about +-0.1.
      zero_point_first: round after adding the zero point; the released code rounds before.
    """
    bits = grids.canonical_bits(bits)
    qmin, qmax = grids.unsigned_limits(bits)
    mode = jnp.where(grids.is_quantized(bits), PER_TOKEN, OFF)
    return _broadcast_fields(mode, jnp.ones_like(qmax), qmin, qmin, qmax, zero_point_first, include_zero)


def no_quantizer() -> Quantizer:
    """A quantizer that returns its input bit for bit."""
    return per_token_quantizer(None)


def fake_quant_at(site: str, x: jax.Array, quantizer: Quantizer, rounding: grids.Rounding = jnp.round) -> jax.Array:
    """``fake_quant`` at the input of a site.

    Raises:
      TypeError: as ``fake_quant``, naming the site.
      ValueError: there are several quantizers, of layers of a scan, and this is none.
    """
    if jnp.ndim(quantizer.mode):
        raise ValueError(
            f"site '{site}' has quantizers of shape {jnp.shape(quantizer.mode)}, but is in no scan of that length"
        )
    try:
        return fake_quant(x, quantizer, rounding)
    except TypeError as error:
        raise TypeError(f"site '{site}': {error}") from None


@functools.partial(jax.jit, static_argnames="rounding")
def fake_quant(x: jax.Array, quantizer: Quantizer, rounding: grids.Rounding = jnp.round) -> jax.Array:
    """``x`` quantized and expanded again.

    Args:
      x: (..., C) floating-point array; its shape and dtype are kept (the arithmetic is float32).
      quantizer: its mode is a scalar; a static scale and zero point may be arrays that broadcast with ``x``.
      rounding: ``straight_through_round`` where gradients are wanted.

    Raises:
      TypeError: ``x`` is not a floating-point array of at least one axis.
    """
    if x.ndim == 0 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"fake_quant takes a floating-point array of at least one axis, not {x.dtype}{list(x.shape)}")

    def static() -> jax.Array:
        grid = grids.Grid(quantizer.scale, quantizer.zero_point, quantizer.qmin, quantizer.qmax)
        return _on_grid(x, grid, quantizer, rounding)

    def per_token() -> jax.Array:
        return _on_grid(x, _token_grid(_widen(x), quantizer, rounding), quantizer, rounding)

    # A switch stays a real branch under lax.map and equals the chosen branch bit for bit, which
    # a chain of selects inside one fused expression does not.
    return jax.lax.switch(quantizer.mode, (lambda: x, static, per_token))


def fake_quant_tokens(x: jax.Array, quantizer: Quantizer, rounding: grids.Rounding = jnp.round) -> jax.Array:
    """``fake_quant`` for a quantizer that is known to be per token or off: a select in place of the switch.

    It costs the work also where the quantizer is off, and compiles several times faster under differentiation.
    """
    tokens = _on_grid(x, _token_grid(_widen(x), quantizer, rounding), quantizer, rounding)
    return jnp.where(quantizer.mode == OFF, x, tokens)


def _on_grid(x: jax.Array, grid: grids.Grid, quantizer: Quantizer, rounding: grids.Rounding) -> jax.Array:
    codes = grids.encode(_widen(x), grid, quantizer.zero_point_first, rounding, stable_divide)
    return grids.decode(codes, grid).astype(x.dtype)


def _token_grid(x: jax.Array, quantizer: Quantizer, rounding: grids.Rounding) -> grids.Grid:
    """The grid of each token of ``x`` (..., C): fields of shape (..., 1)."""
    if rounding is jnp.round:  # stops gradients at the codes; they shall not pass by the range either
        x = jax.lax.stop_gradient(x)
        low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    else:
        low, high = grids.differentiable_range(x)
    sound = quantizer.include_zero
    low = jnp.where(sound, jnp.minimum(low, 0.0), low)
    high = jnp.where(sound, jnp.maximum(high, 0.0), high)
    steps = quantizer.qmax - quantizer.qmin
    floor = jnp.where(sound, grids.SMALLEST_SCALE, _RELEASED_SCALE_FLOOR)
    scale = jnp.clip(
        grids.step_between(low, high, steps, stable_divide), floor, jnp.where(sound, _HUGE, _RELEASED_LIMIT)
    )
    limit = jnp.where(sound, steps, _RELEASED_LIMIT)
    zero_point = jnp.round(jnp.clip(stable_divide(-low, scale), -limit, limit))
    return grids.Grid(scale, zero_point, quantizer.qmin, quantizer.qmax)


def _widen(x: jax.Array) -> jax.Array:
    """``x`` in at least float32: half-precision steps would be as coarse as the grid itself."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _broadcast_fields(mode, scale, zero_point, qmin, qmax, zero_point_first, include_zero) -> Quantizer:
    """A quantizer whose fields all have their common shape, so that they stack and scan."""
    fields = (
        mode.astype(jnp.int32),
        scale,
        zero_point,
        qmin,
        qmax,
        jnp.asarray(zero_point_first, bool),
        jnp.asarray(include_zero, bool),
    )
    return Quantizer(*jnp.broadcast_arrays(*fields))
