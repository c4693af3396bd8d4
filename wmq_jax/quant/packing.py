"""Packed integers: the storage form of quantized kernels, with codes of exactly as many bits as they have.

Codes lie one after the other in a stream of bits, least significant first, so that 3, 5, 6 and 7 bits waste nothing;
what fills up the last group of a row is not stored. Expanding gives the floats of the transform bit for bit: both
decode the same codes with the same grids.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wmq_jax.quant import grid as grids
from wmq_jax.quant import paths, weights

PyTree = Any


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("stream", "scale", "zero_point", "divisor"),
    meta_fields=("bits", "zero", "shape", "dtype", "spec"),
)
@dataclasses.dataclass(frozen=True)
class PackedKernel:
    """A quantized kernel in packed storage; a pytree.

    Attributes:
      stream: uint8 (ceil(weights * bits / 8),), the codes in the kernel's order, each minus the grid's smallest.
      scale: (R, n, 1), of each group; float32, or float64 of a float64 kernel.
      zero_point: as ``scale``, the stored code that stands for 0 in each group; None where ``zero`` does in all.
      divisor: float32 that broadcasts with the kernel, which is divided by it; None for 1.
      bits, zero, shape, dtype, spec: static.
    """

    stream: jax.Array
    scale: jax.Array
    zero_point: jax.Array | None
    divisor: jax.Array | None
    bits: int
    zero: int | None
    shape: tuple[int, ...]
    dtype: str
    spec: weights.WeightSpec

    @property
    def nbytes(self) -> int:
        """Bytes of codes and grids."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))


def pack(params: PyTree, codes: Mapping[str, weights.QuantizedKernel]) -> PyTree:
    """Parameters with those that have codes packed; ``expand`` gives the floats back, bit for bit.

    Args:
      params: of a ``State``, concrete.
      codes: of the same ``State``.

    Raises:
      ValueError: codes have no parameter, or ``pack_kernel`` refuses them; the parameter is named.
    """
    missing = sorted(codes.keys() - paths.named_leaves(params).keys())
    if missing:
        raise ValueError(f"there are codes of '{missing[0]}', which the parameters lack")

    def packed(name, leaf):
        try:
            return pack_kernel(codes[name]) if name in codes else leaf
        except ValueError as error:
            raise ValueError(f"weight '{name}': {error}") from None

    return paths.map_named(packed, params)


def expand(params: PyTree) -> PyTree:
    """Parameters with every ``PackedKernel`` replaced by the floats that it stands for."""
    is_packed = lambda leaf: isinstance(leaf, PackedKernel)
    return jax.tree.map(lambda leaf: expand_packed(leaf) if is_packed(leaf) else leaf, params, is_leaf=is_packed)


def pack_kernel(quantized: weights.QuantizedKernel) -> PackedKernel:
    """The packed form of a quantized kernel, on the host.

    Raises:
      ValueError: it is a stack of kernels, as of ``vmap``, or its grids do not have ``2**bits`` codes for one number of
        bits, 2..15.
    """
    packed = _without_codes(quantized)
    codes = np.asarray(quantized.codes, np.float32) - np.asarray(quantized.grid.qmin)
    codes = np.asarray(weights.from_groups(codes, quantized.shape, quantized.spec)).astype(np.int64)
    return dataclasses.replace(packed, stream=pack_bits(codes, packed.bits))


def packed_nbytes(quantized: weights.QuantizedKernel) -> int:
    """``pack_kernel(quantized).nbytes`` without packing; raises as it does."""
    return _without_codes(quantized).nbytes


def _without_codes(quantized: weights.QuantizedKernel) -> PackedKernel:
    """The packed form with an empty stream of the right size."""
    *stacked, _, _, _ = np.shape(quantized.codes)
    if stacked:
        raise ValueError(
            f"its codes are a stack of {math.prod(stacked)} kernels; pack them one by one, of jax.tree.map(lambda x: "
            "x[i], state)"
        )
    grid = jax.tree.map(np.asarray, quantized.grid)
    steps = np.unique(grid.qmax - grid.qmin)
    bits = int(steps[0] + 1).bit_length() - 1
    if len(steps) != 1 or steps[0] + 1 != 2**bits or not grids.MIN_BITS <= bits <= grids.MAX_BITS:
        raise ValueError(
            f"packed weights have {grids.MIN_BITS}..{grids.MAX_BITS} bits, not grids of {steps[0] + 1:g} codes"
        )
    rows, groups, _ = weights.group_shape(quantized.shape, quantized.spec)
    scale, zero_point = (np.broadcast_to(x, (rows, groups, 1)) for x in (grid.scale, grid.zero_point - grid.qmin))
    same = (zero_point == zero_point.flat[0]).all()
    dtype = jnp.promote_types(quantized.dtype, jnp.float32)  # in which grids are fitted
    return PackedKernel(
        # A view of one byte: nothing is allocated for what is only counted.
        stream=np.broadcast_to(np.uint8(0), -(-math.prod(quantized.shape) * bits // 8)),
        scale=np.array(scale, dtype),
        zero_point=None if same else np.array(zero_point, dtype),
        divisor=None if quantized.divisor is None else np.asarray(quantized.divisor),
        bits=bits,
        zero=int(zero_point.flat[0]) if same else None,
        shape=quantized.shape,
        dtype=quantized.dtype,
        spec=quantized.spec,
    )


@jax.jit
def expand_packed(packed: PackedKernel) -> jax.Array:
    """The float kernel that a packed one stands for."""
    codes = unpack_bits(packed.stream, packed.bits, math.prod(packed.shape)).reshape(packed.shape)
    zero_point = jnp.float32(packed.zero) if packed.zero_point is None else packed.zero_point
    grid = grids.Grid(packed.scale, zero_point, jnp.float32(0), grids.levels(packed.bits))
    groups = weights.to_groups(codes, packed.spec)
    quantized = weights.QuantizedKernel(
        groups, grid, packed.divisor, None, None, packed.shape, packed.dtype, packed.spec
    )
    return weights.decode_kernel(quantized)


def pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8 stream of non-negative codes (any shape) of ``bits`` bits each, on the host."""
    # Codes have at most 15 bits; wider integers would take four times the memory.
    digits = (codes.astype(np.uint16).reshape(-1, 1) >> np.arange(bits, dtype=np.uint16)) & np.uint16(1)
    return np.packbits(digits.astype(np.uint8).reshape(-1), bitorder="little")


def unpack_bits(stream: jax.Array, bits: int, count: int) -> jax.Array:
    """The ``count`` codes (int32) of a stream of ``pack_bits``."""
    digits = (stream[:, None] >> jnp.arange(8, dtype=jnp.uint8)) & 1
    digits = digits.reshape(-1)[: count * bits].reshape(count, bits).astype(jnp.int32)
    return (digits << jnp.arange(bits)).sum(-1)
