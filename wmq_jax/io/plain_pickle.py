"""Bare pickles of numbers, strings and arrays of them, such as data sets keep lengths in; nothing in them runs."""

import re
from typing import Any, BinaryIO

import numpy as np

from wmq_jax.io.pickle_reader import PickleError, StandIn, read_pickle, stand_in
from wmq_jax.io.wording import quoted

# Modules were renamed in numpy 2. Protocol 2 has no bytes and writes them as text, the empty ones as a call.
_MODULES = {
    "numpy": ("ndarray", "dtype"),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy.core.numeric": ("_frombuffer",),
    "numpy._core.numeric": ("_frombuffer",),
    "_codecs": ("encode",),
    "builtins": ("bytes",),
    "__builtin__": ("bytes",),
}
_NAMES = {(module, name): stand_in(name) for module, names in _MODULES.items() for name in names}
_DTYPES = re.compile(r"[iu][1248]|f[248]|b1|U\d{1,3}")
# Of a scalar in a list. A file can repeat one as often as it likes, and each is built anew.
_LARGEST_SCALAR = 64
_LAST_CHARACTER = 0x10FFFF


def load_plain_pickle(file: BinaryIO, name: str) -> Any:
    """Reads a pickle of plain data: a scalar, a numpy array, or a list of scalars, as protocols 2 to 5 write them.

    Args:
      file: an open file.
      name: what messages call it.

    Returns:
      The scalar, the array, or the list; numpy scalars as arrays of rank 0, all in the machine's byte order.

    Raises:
      ValueError: the pickle is damaged or asks for anything else; the message names it.
    """
    try:
        value = read_pickle(file.read(), _resolve)
        return [_scalar(item) for item in value] if isinstance(value, list | tuple) else _plain(value)
    except PickleError as error:
        raise ValueError(f"{name}: {error}") from None


def _resolve(module: str, name: str) -> Any:
    if (module, name) in _NAMES:
        return _NAMES[module, name]
    raise PickleError(f"it asks for {quoted(f'{module}.{name}', 200)}, which is refused: nothing in a file may run")


def _scalar(value: Any) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case StandIn("scalar", (dtype, data)):
            return _array(dtype, data, (), "C", largest=_LARGEST_SCALAR)
    raise _refused(value, "a number or a text")


def _plain(value: Any) -> Any:
    match value:
        case StandIn("_reconstruct", _, (_, tuple(shape), dtype, bool(fortran), data)):
            return _array(dtype, data, shape, "F" if fortran else "C")
        case StandIn("_frombuffer", (data, dtype, tuple(shape), "C" | "F" as order)):
            return _array(dtype, data, shape, order)
        # Of other orders: the axes that its memory has one after another, and how to permute them.
        case StandIn("_frombuffer", (data, dtype, tuple(shape), "K", tuple(axes))):
            array = _array(dtype, data, shape, "C")
            if sorted(map(repr, axes)) == sorted(map(repr, range(array.ndim))):
                return array.transpose(axes)
        case None | bool() | int() | float() | str() | StandIn("scalar"):
            return _scalar(value)
    raise _refused(value, "a number, a text or an array of numbers")


def _refused(value: Any, accepted: str) -> PickleError:
    kind = f"call of {value.class_name}" if isinstance(value, StandIn) else type(value).__name__
    return PickleError(f"it holds a {kind} where {accepted} is accepted")


def _array(dtype: Any, data: Any, shape: tuple[Any, ...], order: str, largest: int | None = None) -> np.ndarray:
    """An array from what numpy pickles of it; `largest` bounds its bytes."""
    match dtype:
        case StandIn("dtype", (str(code), *_), (_, "<" | ">" | "|" as byte_order, *_)) if _DTYPES.fullmatch(code):
            try:
                data = _bytes(data)
                if data is not None and (largest is None or len(data) <= largest):
                    stored = np.frombuffer(data, f"{byte_order}{code}").reshape(shape, order=order)
                    # Others end the interpreter's work where they become text.
                    if stored.dtype.kind != "U" or (np.frombuffer(data, f"{byte_order}u4") <= _LAST_CHARACTER).all():
                        return stored.astype(stored.dtype.newbyteorder("="), copy=False)
            except (ValueError, TypeError, OverflowError):
                pass
    raise PickleError("it holds an array whose dtype, shape and bytes do not fit together")


def _bytes(value: Any) -> bytes | None:
    """Bytes, as any protocol writes them."""
    match value:
        case bytes():
            return value
        case StandIn("bytes", ()):
            return b""
        case StandIn("encode", (str(text), "latin1")):
            return text.encode("latin1")
    return None
