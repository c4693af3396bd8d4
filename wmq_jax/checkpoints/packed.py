"""Quantized parameters in a checkpoint: packed kernels as small trees of arrays, and what describes them as JSON."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wmq_jax import quant
from wmq_jax.io.wording import plain, quoted
from wmq_jax.quant import paths

# Fields of a packed kernel that are arrays, or None.
_ARRAYS = ("stream", "scale", "zero_point", "divisor")


def describe(packed: Any) -> dict[str, Any]:
    """Name -> what tells how to read it, of every ``PackedKernel`` in a tree; JSON values."""
    named = paths.named_leaves(packed, is_leaf=_is_packed)
    return {
        name: {
            "bits": kernel.bits,
            "group_size": kernel.spec.group_size,
            "layout": kernel.spec.layout,
            "output_axes": list(kernel.spec.output_axes),
            "zero": kernel.zero,
            "divisor": None if kernel.divisor is None else list(kernel.divisor.shape),
        }
        for name, kernel in named.items()
        if _is_packed(kernel)
    }


def to_arrays(packed: Any) -> Any:
    """The tree with every ``PackedKernel`` as a dictionary of its arrays, which any store takes."""
    return jax.tree.map(lambda leaf: _arrays(leaf) if _is_packed(leaf) else leaf, packed, is_leaf=_is_packed)


def abstract(shapes: Any, described: Mapping[str, Any]) -> Any:
    """The tree with the described parameters as ``PackedKernel`` of shapes and dtypes.

    Args:
      shapes: the tree of parameters as shapes and dtypes.
      described: of :func:`describe`.

    Raises:
      ValueError: a description names no parameter, or is none; it is named.
    """
    leaves = paths.named_leaves(shapes)
    kernels = {}
    for name, fields in described.items():
        if name not in leaves:
            raise ValueError(f"it packs {quoted(name)}, which the configuration does not have")
        try:
            kernels[name] = _abstract_kernel(leaves[name], fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"its packed {quoted(name)} cannot be read ({plain(error)})") from None
    return paths.map_named(lambda name, leaf: kernels.get(name, leaf), shapes)


def from_arrays(arrays: Any, like: Any) -> Any:
    """The inverse of :func:`to_arrays`; ``like`` is of :func:`abstract`.

    Raises:
      ValueError: an array of a packed parameter has another shape than its description says; it is named.
    """
    kernels = {name: leaf for name, leaf in paths.named_leaves(like, is_leaf=_is_packed).items() if _is_packed(leaf)}
    for name, kernel in kernels.items():
        for field, expected in _arrays(kernel).items():
            found = paths.subtree(arrays, name)[field]
            if found.shape != expected.shape:
                raise ValueError(f"the {field} of '{name}' has shape {found.shape}, not {expected.shape}")
    return jax.tree.map(
        lambda leaf, found: dataclasses.replace(leaf, **found) if _is_packed(leaf) else found,
        like,
        arrays,
        is_leaf=_is_packed,
    )


def quantizers_to_json(quantizers: Any) -> dict[str, dict[str, Any]]:
    """Site -> the fields of its quantizer, of those that are not off."""
    named = paths.named_leaves(quantizers, is_leaf=_is_quantizer)
    return {
        name.removesuffix("/input"): {field: np.asarray(value).item() for field, value in one._asdict().items()}
        for name, one in named.items()
        if one.mode != quant.OFF
    }


def quantizers_from_json(described: Mapping[str, Mapping[str, Any]]) -> Any:
    """The inverse of :func:`quantizers_to_json`, exact.

    Raises:
      ValueError: a description has other fields than a quantizer, or what is no number; its site is named.
    """
    dtypes = {field: leaf.dtype for field, leaf in quant.no_quantizer()._asdict().items()}
    quantizers = {}
    for site, fields in described.items():
        try:
            arrays = {field: jnp.asarray(fields[field], dtype) for field, dtype in dtypes.items()}
            numbers = quant.Quantizer(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"its quantizer of site {quoted(site)} cannot be read ({plain(error)})") from None
        _check_quantizer(site, numbers)
        quantizers[f"{site}/input"] = quant.Quantizer(**arrays)
    return paths.nest(quantizers)


def _check_quantizer(site: str, quantizer: quant.Quantizer) -> None:
    """Checks the numbers of a quantizer that a file describes.

    Raises:
      ValueError: naming the site and what none of our quantizers has.
    """
    steps = quantizer.qmax - quantizer.qmin
    sound = {
        "mode": quantizer.mode in (quant.STATIC, quant.PER_TOKEN),
        "scale": 0 < quantizer.scale < math.inf,
        "zero_point": quantizer.qmin <= quantizer.zero_point <= quantizer.qmax,
        "qmax": steps in (2.0**bits - 1 for bits in range(quant.MIN_BITS, quant.MAX_BITS + 1)),
    }
    for field, good in sound.items():
        if not good:
            raise ValueError(f"its quantizer of site {quoted(site)} has {field} {getattr(quantizer, field)}")


def _arrays(kernel: quant.PackedKernel) -> dict[str, Any]:
    return {field: getattr(kernel, field) for field in _ARRAYS if getattr(kernel, field) is not None}


def _abstract_kernel(leaf: jax.ShapeDtypeStruct, fields: Mapping[str, Any]) -> quant.PackedKernel:
    bits = quant.canonical_bits(fields["bits"])
    if not quant.MIN_BITS <= bits <= quant.MAX_BITS:
        raise ValueError(f"{bits} bits")
    zero = fields["zero"]
    if zero is not None and (not isinstance(zero, int) or not 0 <= zero < 2**bits):
        raise ValueError(f"zero {zero!r} is no code of {bits} bits")
    spec = quant.WeightSpec(None, fields["group_size"], fields["layout"], tuple(fields["output_axes"]))
    rows, groups, _ = quant.group_shape(leaf.shape, spec)
    floats = lambda shape: jax.ShapeDtypeStruct(shape, jnp.promote_types(leaf.dtype, jnp.float32))
    return quant.PackedKernel(
        stream=jax.ShapeDtypeStruct((-(-math.prod(leaf.shape) * bits // 8),), jnp.uint8),
        scale=floats((rows, groups, 1)),
        zero_point=floats((rows, groups, 1)) if zero is None else None,
        divisor=None if fields["divisor"] is None else floats(tuple(fields["divisor"])),
        bits=bits,
        zero=zero,
        shape=leaf.shape,
        dtype=str(leaf.dtype),
        spec=spec,
    )


def _is_packed(node: Any) -> bool:
    return isinstance(node, quant.PackedKernel)


def _is_quantizer(node: Any) -> bool:
    return isinstance(node, quant.Quantizer)
