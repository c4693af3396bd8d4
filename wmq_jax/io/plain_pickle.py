"""Bare pickles of numbers, strings and lists of them, such as data sets keep lengths in; nothing in them runs."""

from typing import Any, BinaryIO

import numpy as np

from wmq_jax.io.pickle_reader import PickleError, StandIn, read_pickle, stand_in
from wmq_jax.io.wording import quoted

_NUMPY = {
    (module, name): stand_in(f"numpy.{name}")
    for module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
    for name in ("_reconstruct", "ndarray", "dtype", "scalar")
}
_DTYPES = ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8", "b1")


def load_plain_pickle(file: BinaryIO, name: str) -> Any:
    """Reads a pickle of plain data: a scalar, a numpy array, or a list of scalars.

    Args:
      file: an open file.
      name: what messages call it.

    Returns:
      The scalar, the array, or the list with its numpy scalars as arrays of rank 0.

    Raises:
      ValueError: the pickle is damaged or asks for anything else; the message names it.
    """
    try:
        value = read_pickle(file.read(), _resolve)
        return [_plain(item) for item in value] if isinstance(value, list | tuple) else _plain(value)
    except PickleError as error:
        raise ValueError(f"{name}: {error}") from None


def _resolve(module: str, name: str) -> Any:
    if (module, name) in _NUMPY:
        return _NUMPY[module, name]
    raise PickleError(f"it asks for {quoted(f'{module}.{name}', 200)}, which is refused: nothing in a file may run")


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case StandIn("numpy._reconstruct", _, (_, tuple(shape), dtype, bool(fortran), bytes(data))):
            return _array(dtype, data, shape, "F" if fortran else "C")
        case StandIn("numpy.scalar", (dtype, bytes(data))):
            return _array(dtype, data, (), "C")
    raise PickleError(f"it holds a {type(value).__name__} where a number, a text or an array of numbers is accepted")


def _array(dtype: Any, data: bytes, shape: tuple[Any, ...], order: str) -> np.ndarray:
    match dtype:
        case StandIn("numpy.dtype", (str(code), *_), (_, "<" | "|" as byte_order, *_)) if code in _DTYPES:
            kind = np.dtype(f"{byte_order}{code}")
            try:
                return np.frombuffer(data, kind).reshape(shape, order=order)
            except (ValueError, TypeError, OverflowError):
                pass
    raise PickleError("it holds an array whose dtype, shape and bytes do not fit together")
