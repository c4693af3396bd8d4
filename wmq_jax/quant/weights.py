"""Weight quantization: how a kernel is cut into groups, and rounding to the grids of its groups.

A kernel has input axes and output axes (Linen: the last axis is the output). It is viewed
as a matrix (output, input), and every row, or every run of ``group_size`` values, has a grid of
its own. Every method ends in a ``QuantizedKernel``, codes and grids, and its floats are what those expand to.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from wmq_jax.quant import grid as grids
from wmq_jax.quant.division import exact_divide

LAYOUTS = ("padded", "flat")

# groups (R, n, g), bits -> a grid whose fields broadcast against the groups. It is a static argument of compiled
# functions: a module's function or a frozen dataclass, so that equal ones share what is compiled.
GridFn = Callable[[jax.Array, jax.Array], grids.Grid]

# Bounds of a scale: only that a group of zeros must not divide by zero, and that gradients stay finite.
SCALE_LIMITS = (grids.SMALLEST_SCALE, float("inf"))
# Bounds that most searches of the released code put on a scale.
RELEASED_SCALE_LIMITS = (1e-5, 1e4)


@dataclasses.dataclass(frozen=True)
class WeightSpec:
    """How a kernel is quantized.

    Kernels of more than two axes need ``output_axes``: shapes do not tell a convolution from scanned layers or heads.

    Attributes:
      bits: 2..15 or none (None, 16, 32); may be a traced int32 scalar.
      group_size: values of the input axis that share a scale; None: the whole row.
      layout: 'padded': groups run inside a row, its last one filled up with zeros when
        ``group_size`` does not divide the row. 'flat': the released grouping, which cuts the
        flattened (output, input) matrix, so that groups straddle rows.
      output_axes: axes of the kernel that are outputs; the others are flattened into the input. (-1,) suits a
        convolution ((-2,) one with ``transpose_kernel=True``), (-2, -1) a DenseGeneral with two feature axes, (0, -1) a
        stack of scanned layers. None: the last axis of a matrix.
    """

    bits: int | jax.Array | None
    group_size: int | None = None
    layout: str = "padded"
    output_axes: tuple[int, ...] | None = None

    def __post_init__(self):
        if jnp.ndim(grids.canonical_bits(self.bits)):
            raise ValueError(f"bits of weights must be one number, not {self.bits}; vmap over several")
        size = self.group_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, numbers.Integral) or size < 1):
            raise ValueError(f"group_size must be a positive integer or None, not {size!r}")
        object.__setattr__(self, "group_size", None if size is None else int(size))
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, not {self.layout!r}")
        axes = self.output_axes
        if axes is not None:
            if not isinstance(axes, (tuple, list)) or not all(isinstance(axis, int) for axis in axes):
                raise ValueError(f"output_axes must be a tuple of integers or None, not {axes!r}")
            object.__setattr__(self, "output_axes", tuple(axes))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("codes", "grid", "divisor", "signal", "noise"),
    meta_fields=("shape", "dtype", "spec"),
)
@dataclasses.dataclass(frozen=True)
class QuantizedKernel:
    """A kernel as codes on the grids of its groups; a pytree.

    Attributes:
      codes: (R, n, g) of integer value; int16, or floating point inside ``encode_kernel``.
      grid: fields (R, n, 1), or what broadcasts with it.
      divisor: float32 that broadcasts with the kernel, which is divided by it after decoding; None for 1.
      signal, noise: float32, sums of squares of the kernel in floating point and of what quantization added to it. A
        method that re-scales a kernel compares with the re-scaled one. None where they are not known (unpacked).
      shape, dtype, spec: of the kernel, static; the bits of ``spec`` are None, those of the grid hold.
    """

    codes: jax.Array
    grid: grids.Grid
    divisor: jax.Array | None
    signal: jax.Array | None
    noise: jax.Array | None
    shape: tuple[int, ...]
    dtype: str
    spec: WeightSpec

    @property
    def sqnr(self) -> float:
        """Signal-to-quantization-noise ratio in dB, on the host; infinite without noise."""
        return 10 * math.log10(float(self.signal) / float(self.noise)) if self.noise else math.inf


def group_shape(shape: tuple[int, ...], spec: WeightSpec) -> tuple[int, int, int]:
    """(R, n, g) of a kernel of ``shape``: R rows of n groups of g values.

    R is the number of outputs, except that 'flat' has one group a row.

    Raises:
      ValueError: ``output_axes`` leave no input axis, or are not given for a kernel of more than two; or a 'flat' group
        size does not divide the number of weights.
    """
    outputs, inputs = _split_axes(len(shape), spec)
    rows, width = (math.prod(shape[axis] for axis in axes) for axes in (outputs, inputs))
    size = spec.group_size
    if size is None:
        return rows, 1, width
    if spec.layout == "padded":
        size = min(size, width)  # more would be padding alone
        return rows, -(-width // size), size
    if rows * width % size:
        raise ValueError(
            f"the flat layout needs a group_size that divides the {rows * width} weights of a kernel of shape "
            f"{shape}; {size} does not (layout='padded' takes any)"
        )
    return rows * width // size, 1, size


def check_groups(name: str, shape: tuple[int, ...], spec: WeightSpec) -> None:
    """Checks that a kernel of this shape can be cut into groups.

    Raises:
      ValueError: it cannot, or has no values; naming the kernel.
    """
    if 0 in shape:
        raise ValueError(f"weight '{name}' has no values: its shape is {tuple(shape)}")
    try:
        group_shape(shape, spec)
    except ValueError as error:
        raise ValueError(f"weight '{name}': {error}") from None


def to_groups(kernel: jax.Array, spec: WeightSpec) -> jax.Array:
    """``kernel`` cut into groups, (R, n, g); raises as ``group_shape``."""
    grouped = group_shape(kernel.shape, spec)
    outputs, inputs = _split_axes(kernel.ndim, spec)
    rows = math.prod(kernel.shape[axis] for axis in outputs)
    matrix = kernel.transpose(*outputs, *inputs).reshape(rows, -1)
    padding = math.prod(grouped) // rows - matrix.shape[1]
    return jnp.pad(matrix, ((0, 0), (0, padding))).reshape(grouped)


def from_groups(groups: jax.Array, shape: tuple[int, ...], spec: WeightSpec) -> jax.Array:
    """The kernel of ``shape`` whose groups are ``groups``: the inverse of ``to_groups``."""
    outputs, inputs = _split_axes(len(shape), spec)
    rows, width = (math.prod(shape[axis] for axis in axes) for axes in (outputs, inputs))
    matrix = groups.reshape(rows, -1)[:, :width]
    order = (*outputs, *inputs)
    return matrix.reshape([shape[axis] for axis in order]).transpose([order.index(axis) for axis in range(len(shape))])


@dataclasses.dataclass(frozen=True)
class AbsmaxGrid:
    """A grid function: the symmetric grid of the largest magnitude, ``s = max(max|w| / ((2**bits - 1) / 2), floor)``.

    The divisor is half of the whole range (127.5 at 8 bits), so the largest positive weight
    rounds to 128 and is clipped to 127 while the largest negative one is kept.

    Attributes:
      floor: the smallest s. The released code has float32's epsilon, by which weights of 1e-9 become 0; the default
        does that to weights below 4e-19 only.
    """

    floor: float = grids.SMALLEST_SCALE

    def __call__(self, groups: jax.Array, bits) -> grids.Grid:
        """The grids of ``groups`` (R, n, g)."""
        qmin, qmax = grids.signed_limits(bits)
        absmax = jnp.abs(groups).max(-1, keepdims=True)
        scale = jnp.maximum(exact_divide(absmax, grids.levels(bits) / 2), self.floor)
        return grids.Grid(scale, jnp.zeros_like(scale), qmin, qmax)


absmax_grid = AbsmaxGrid()
released_absmax_grid = AbsmaxGrid(floor=grids.EPSILON)


@dataclasses.dataclass(frozen=True)
class RangeGrid:
    """A grid function: the asymmetric grid of a group's smallest to its largest value.

    ``s = (max - min) / Q``, ``z = clip(-round(min / s), 0, Q)``, ``Q = 2**bits - 1``.

    Attributes:
      include_zero: extend every range to contain 0. False is the released behaviour: for a group of one sign z is
        clipped, and the part of its range beyond ``Q * s`` is lost.
      narrowest: the smallest range; the released code has 1e-5.
    """

    include_zero: bool = True
    # Over 2**15 steps that is the smallest scale.
    narrowest: float = grids.SMALLEST_SCALE * 2**15

    def __call__(self, groups: jax.Array, bits) -> grids.Grid:
        """The grids of ``groups`` (R, n, g)."""
        low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
        if self.include_zero:
            low, high = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
        qmin, qmax = grids.unsigned_limits(bits)
        scale = jnp.maximum(grids.step_between(low, high, qmax), exact_divide(self.narrowest, qmax))
        zero_point = jnp.clip(-jnp.round(exact_divide(low, scale)), qmin, qmax)
        return grids.Grid(scale, zero_point, qmin, qmax)


range_grid = RangeGrid()
released_range_grid = RangeGrid(include_zero=False, narrowest=1e-5)


def fake_quant_weight(
    kernel: jax.Array, spec: WeightSpec, grid_fn: GridFn = absmax_grid, rounding: grids.Rounding = jnp.round
) -> jax.Array:
    """``kernel`` rounded to the grids of its groups and expanded again; shape and dtype are kept."""
    bits = grids.canonical_bits(spec.bits)
    if isinstance(bits, int) and bits == grids.NO_BITS:
        return kernel
    # The spec holds the static settings of the compiled function, bits is its data.
    return _fake_quant(kernel, bits, dataclasses.replace(spec, bits=None), grid_fn, rounding)


def quantize_kernel(kernel: jax.Array, spec: WeightSpec, grid_fn: GridFn = absmax_grid) -> QuantizedKernel:
    """The integers behind ``fake_quant_weight``, whose zeros may have a sign that integers have not.

    Args:
      kernel: floating point.
      spec: its bits are 2..15; may be traced.
      grid_fn: gives the grids.
    """
    return quantize_kernels({"kernel": kernel}, {"kernel": spec}, grid_fn)["kernel"]


def quantize_kernels(
    kernels: Mapping[str, jax.Array], specs: Mapping[str, WeightSpec], grid_fn: GridFn = absmax_grid
) -> dict[str, QuantizedKernel]:
    """``quantize_kernel`` of all kernels of a model, as few programs as ``_batches`` says; bits are their data.

    Args:
      kernels: name -> kernel, floating point.
      specs: by the same names; their bits are 2..15 and may be traced.
      grid_fn: gives the grids.
    """
    bits = {name: grids.canonical_bits(spec.bits) for name, spec in specs.items()}
    static = {name: dataclasses.replace(spec, bits=None) for name, spec in specs.items()}
    quantized = {}
    for names in _batches(kernels, static):
        columns = ([column[name] for name in names] for column in (kernels, bits))
        quantized |= zip(names, _quantize(*columns, tuple(static[name] for name in names), grid_fn), strict=True)
    return quantized


def expanded_or(
    kernels: Mapping[str, jax.Array], quantized: Mapping[str, QuantizedKernel], bits: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """``decoded_or`` by name, in programs of their own: what expands shall not be fused with what rounds."""
    expanded = {}
    for names in _batches(kernels, {name: jax.tree.structure(codes) for name, codes in quantized.items()}):
        columns = ([column[name] for name in names] for column in (kernels, quantized, bits))
        expanded |= zip(names, _expand_or(*columns), strict=True)
    return expanded


def round_to_grids(
    kernel: jax.Array, bits, spec: WeightSpec, grid_fn: GridFn, rounding: grids.Rounding = jnp.round
) -> jax.Array:
    """``fake_quant_weight`` inside a function that is compiled already: ``grid_fn`` may close over traced values."""
    return decoded_or(kernel, encode_kernel(kernel, bits, spec, grid_fn, rounding), bits)


def encode_kernel(
    kernel: jax.Array,
    bits,
    spec: WeightSpec,
    grid_fn: GridFn,
    rounding: grids.Rounding = jnp.round,
    exact: jax.Array | None = None,
    divisor: jax.Array | None = None,
) -> QuantizedKernel:
    """``quantize_kernel`` inside a function that is compiled already; codes stay floats, so that gradients pass.

    Args:
      kernel: what is rounded.
      bits: 2..15; may be traced.
      spec: static; its bits are None.
      grid_fn: may close over traced values.
      rounding: see ``grid.encode``.
      exact: what the result stands for in floating point, and whose dtype it has; default: ``kernel``.
      divisor: see ``QuantizedKernel``.
    """
    spec = dataclasses.replace(spec, output_axes=_output_axes(kernel.ndim, spec))  # codes say how they lie
    groups = to_groups(kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32)), spec)
    grid = grid_fn(groups, bits)
    codes = grids.encode(groups, grid, rounding=rounding)
    exact = kernel if exact is None else exact
    quantized = QuantizedKernel(codes, grid, divisor, None, None, kernel.shape, str(exact.dtype), spec)
    exact = exact.astype(jnp.float32)
    noise = decode_kernel(quantized).astype(jnp.float32) - exact
    return dataclasses.replace(quantized, signal=jnp.sum(exact**2), noise=jnp.sum(noise**2))


def with_integers(quantized: QuantizedKernel) -> QuantizedKernel:
    """The same with int16 codes, which hold all widths."""
    return dataclasses.replace(quantized, codes=quantized.codes.astype(jnp.int16))


def with_shape(quantized: QuantizedKernel, shape: tuple[int, ...]) -> QuantizedKernel:
    """The same codes for a kernel of another shape, whose last axes together are the outputs as they were before.

    Args:
      quantized: of a matrix (inputs, outputs).
      shape: (input axes, output axes), such as a DenseGeneral's.

    Raises:
      ValueError: the last axes do not multiply to the outputs.
    """
    if shape == quantized.shape:
        return quantized
    outputs = [n for n in range(1, len(shape)) if math.prod(shape[-n:]) == quantized.shape[-1]]
    if not outputs or math.prod(shape) != math.prod(quantized.shape):
        raise ValueError(f"codes of a kernel of shape {quantized.shape} are none of one of shape {shape}")
    spec = dataclasses.replace(quantized.spec, output_axes=tuple(range(-outputs[0], 0)))
    divisor = quantized.divisor
    if divisor is not None:
        divisor = divisor.reshape(*shape[: -outputs[0]], *(1,) * outputs[0])
    return dataclasses.replace(quantized, shape=shape, spec=spec, divisor=divisor)


def decode_kernel(quantized: QuantizedKernel) -> jax.Array:
    """``expand_kernel`` inside a function that is compiled already."""
    values = grids.decode(quantized.codes.astype(jnp.float32), quantized.grid)
    kernel = from_groups(values, quantized.shape, quantized.spec)
    if quantized.divisor is not None:
        kernel = exact_divide(kernel, quantized.divisor)
    return kernel.astype(quantized.dtype)


def decoded_or(kernel: jax.Array, quantized: QuantizedKernel, bits) -> jax.Array:
    """What ``quantized`` stands for, or ``kernel`` where ``bits`` (possibly traced) asks for no quantization."""
    return jnp.where(grids.is_quantized(bits), decode_kernel(quantized), kernel)


# The float kernel that a quantized one stands for.
expand_kernel = jax.jit(decode_kernel)
_fake_quant = jax.jit(round_to_grids, static_argnames=("spec", "grid_fn", "rounding"))


@functools.partial(jax.jit, static_argnames=("specs", "grid_fn"))
def _quantize(kernels, bits, specs, grid_fn):
    encode = lambda kernel, bits, spec: with_integers(encode_kernel(kernel, bits, spec, grid_fn))
    return list(map(encode, kernels, bits, specs))


@jax.jit
def _expand_or(kernels, quantized, bits):
    return list(map(decoded_or, kernels, quantized, bits))


def _batches(kernels: Mapping[str, jax.Array], settings: Mapping[str, Hashable]) -> list[list[str]]:
    """The names, so that the batches of a deep model are alike and share one program.

    The first kernels of every kind (shape, dtype and setting) are a batch, the second ones are the next. A program then
    compiles as long as a layer does, where one of all kernels would take as long as the model is deep, and one for each
    kind is many.
    """
    batches, seen = [], collections.Counter()
    for name, setting in settings.items():
        kind = jnp.shape(kernels[name]), jnp.result_type(kernels[name]), setting
        if seen[kind] == len(batches):
            batches.append([])
        batches[seen[kind]].append(name)
        seen[kind] += 1
    return batches


def _output_axes(ndim: int, spec: WeightSpec) -> tuple[int, ...]:
    """The output axes of a kernel of ``ndim`` axes, as they were given, or the last of a matrix."""
    if spec.output_axes is None and ndim > 2:
        raise ValueError(
            f"a kernel of {ndim} axes needs output_axes, those with scales of their own: (-1,) for a convolution "
            "((-2,) with transpose_kernel=True), (-2, -1) for heads and their features, (0, -1) for scanned layers"
        )
    return (-1,) if spec.output_axes is None else spec.output_axes


def _split_axes(ndim: int, spec: WeightSpec) -> tuple[list[int], list[int]]:
    """Output and input axes of a kernel of ``ndim`` axes."""
    axes = _output_axes(ndim, spec)
    outputs = [axis % ndim for axis in axes if -ndim <= axis < ndim]
    if len(set(outputs)) != len(axes) or not 0 < len(outputs) < ndim:
        raise ValueError(
            f"output_axes {axes} are not different axes that leave an input axis in a kernel of {ndim} axes"
        )
    return outputs, [axis for axis in range(ndim) if axis not in outputs]
