"""Packed integers: a quantized kernel as codes of exactly ``bits`` bits and the grids that expand them.

Codes lie one after the other in a stream of bits, least significant first, so that 3, 5, 6 and 7 bits waste nothing.
Expanding
gives the floats of ``fake_quant_weight`` bit for bit: both decode the same codes with the same grids.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from wmq_jax.quant import grid as grids
from wmq_jax.quant import weights

MOST_BITS = 8


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("stream", "scale", "zero_point"),
    meta_fields=("bits", "shape", "dtype", "spec"),
)
@dataclasses.dataclass(frozen=True)
class PackedKernel:
    """A kernel in packed storage; a pytree.

    Attributes:
      stream: uint8 (ceil(R * n * g * bits / 8),), the codes of all groups, each minus the grid's smallest.
      scale: float32 (R, n, 1).
      zero_point: float32 (R, n, 1) relative to the stored codes, or None where the grid is symmetric.
      bits, shape, dtype, spec: of the kernel, static.
    """

    stream: jax.Array
    scale: jax.Array
    zero_point: jax.Array | None
    bits: int
    shape: tuple[int, ...]
    dtype: str
    spec: weights.WeightSpec

    @property
    def nbytes(self) -> int:
        """Bytes of codes and grids."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))


def pack_kernel(
    kernel: jax.Array, spec: weights.WeightSpec, grid_fn: weights.GridFn = weights.absmax_grid
) -> PackedKernel:
    """Quantizes a kernel as ``fake_quant_weight`` does and keeps the integers.

    Args:
      kernel: floating point.
      spec: its bits are an integer, 2..8.
      grid_fn: gives grids of ``2**bits`` codes.

    Raises:
      ValueError: the bits are not 2..8.
    """
    bits = grids.canonical_bits(spec.bits)
    if not isinstance(bits, int) or not grids.MIN_BITS <= bits <= MOST_BITS:
        raise ValueError(f"packed weights have {grids.MIN_BITS}..{MOST_BITS} bits, not {spec.bits}")
    static = dataclasses.replace(spec, bits=None)
    codes, grid = _encode(kernel, bits, static, grid_fn)
    # Codes of 0 and more; a symmetric grid's zero point then is its middle, which needs no storage.
    lowest = int(np.asarray(grid.qmin).min())
    zero_point = None if lowest < 0 and not np.asarray(grid.zero_point).any() else grid.zero_point - lowest
    stream = pack_bits(np.asarray(codes).astype(np.int64) - lowest, bits)
    return PackedKernel(stream, grid.scale, zero_point, bits, kernel.shape, str(kernel.dtype), static)


@jax.jit
def expand_kernel(packed: PackedKernel) -> jax.Array:
    """The float kernel that a packed one stands for."""
    rows, groups, _ = packed.scale.shape
    size = weights.group_shape(packed.shape, packed.spec)[2]
    codes = unpack_bits(packed.stream, packed.bits, rows * groups * size).reshape(rows, groups, size)
    zero_point = 2 ** (packed.bits - 1) if packed.zero_point is None else packed.zero_point
    grid = grids.Grid(packed.scale, zero_point, 0, 2**packed.bits - 1)
    values = grids.decode(codes.astype(jnp.float32), grid)
    return weights.from_groups(values, packed.shape, packed.spec).astype(packed.dtype)


def pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8 stream of non-negative codes (any shape) of ``bits`` bits each, on the host."""
    digits = (codes.reshape(-1, 1) >> np.arange(bits)) & 1
    return np.packbits(digits.astype(np.uint8).reshape(-1), bitorder="little")


def unpack_bits(stream: jax.Array, bits: int, count: int) -> jax.Array:
    """The ``count`` codes (int32) of a stream of ``pack_bits``."""
    digits = (stream[:, None] >> jnp.arange(8, dtype=jnp.uint8)) & 1
    digits = digits.reshape(-1)[: count * bits].reshape(count, bits).astype(jnp.int32)
    return (digits << jnp.arange(bits)).sum(-1)


@functools.partial(jax.jit, static_argnames=("spec", "grid_fn"))
def _encode(kernel, bits, spec, grid_fn):
    groups = weights.to_groups(kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32)), spec)
    grid = grid_fn(groups, bits)
    return grids.encode(groups, grid), grid
