"""Writes nested dictionaries of numpy arrays in the zip format of `torch.save`, without torch."""

import os
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

# torch's name of the storage of each dtype that checkpoints use.
STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


def save_torch(path: str | os.PathLike, value: Mapping[str, Any]) -> None:
    """Writes `value` to the new file `path`.

    Args:
      path: target file; must not exist.
      value: a dictionary of strings to numpy arrays (any dtype of `STORAGES`), integers and such dictionaries. Each
        array gets a storage of its own, row-major.

    Raises:
      TypeError: a value or dtype has no form there; the message names it.
      FileExistsError: the file exists.
    """
    writer = _Writer()
    pickle = b"\x80\x02" + writer.value("", value) + b"."
    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED) as file:
        entries = {"data.pkl": pickle, "byteorder": b"little", "version": b"3\n"}
        # An entry's own date is fixed, so that equal values are equal files.
        for name, data in entries.items():
            file.writestr(zipfile.ZipInfo(f"archive/{name}"), data)
        for key, array in enumerate(writer.arrays):
            with file.open(zipfile.ZipInfo(f"archive/data/{key}"), "w", force_zip64=True) as stream:
                stream.write(array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8).data)


class _Writer:
    """Collects the arrays of the values that it pickles: protocol 2, spelled out, since torch's classes are absent."""

    def __init__(self):
        self.arrays: list[np.ndarray] = []

    def value(self, name: str, value: Any) -> bytes:
        """The opcodes of a value called `name`."""
        if isinstance(value, Mapping):
            items = (_text(key) + self.value(f"{name}.{key}".lstrip("."), item) for key, item in value.items())
            return b"}(" + b"".join(items) + b"u"
        if type(value) is int:
            return _integer(value)
        if isinstance(value, np.ndarray) and value.dtype.name in STORAGES:
            return self._tensor(np.ascontiguousarray(value).reshape(value.shape))
        kind = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        raise TypeError(f"cannot save {name} as torch does: it is {kind}")

    def _tensor(self, array: np.ndarray) -> bytes:
        storage = (
            _text("storage")
            + _name("torch", STORAGES[array.dtype.name])
            + _text(str(len(self.arrays)))
            + _text("cpu")
            + _integer(array.size)
        )
        self.arrays.append(array)
        strides = (step // array.itemsize for step in array.strides)
        sizes = (b"(" + b"".join(map(_integer, numbers)) + b"t" for numbers in (array.shape, strides))
        hooks = _name("collections", "OrderedDict") + b")R"
        arguments = b"((" + storage + b"tQ" + _integer(0) + b"".join(sizes) + b"\x89" + hooks + b"t"
        return _name("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return b"X" + struct.pack("<I", len(data)) + data


def _name(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _integer(value: int) -> bytes:
    if 0 <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x10" + value.to_bytes(16, "little", signed=True)
