"""Files of `torch.save` as numpy arrays, without torch and without running anything that is in them.

The zip format (`.pth`, `.pt`) holds a pickle of the structure and one entry of raw bytes for each storage. The pickle
is read by `pickle_reader` with the table of names below. Storages are read when a tensor that is kept needs them, so an
optimizer costs nothing; tensors are views of their storages, so the peak is the size of what is kept.
"""

import contextlib
import dataclasses
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from wmq_jax.io.pickle_reader import Builder, PickleError, StandIn, read_pickle, stand_in
from wmq_jax.io.torch_writer import STORAGES
from wmq_jax.io.wording import plain, quoted

# Packages whose classes become stand-ins: the world model, its backbone, torch's modules, and what trained them.
_CLASS_PACKAGES = (
    *("models.", "dinov2.", "accelerate."),
    *("torch.nn.modules.", "torch.nn.parallel.", "torch.optim.", "torch.amp.", "torch.cuda.amp."),
)
_BUILTINS = ("dict", "list", "tuple", "set", "frozenset", "int", "float", "bool", "str", "complex")
_PIECE = 1 << 20
# What a file may ask for without holding as much itself: elements of a tensor that repeats its storage (stride 0),
# levels of nesting, entries of modules (one that is part of several is visited each time), characters of a name, and of
# all names of its modules' entries together (a backbone of 40 blocks has less than a million).
_MOST_REPEATED, _DEEPEST, _MOST_ENTRIES, _LONGEST_NAME = 1 << 28, 100, 1_000_000, 1000
_MOST_CHARACTERS = 10_000_000
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
    RuntimeError,
    KeyError,
    ValueError,
    OverflowError,
    EOFError,
)


class TorchFileError(ValueError):
    """The file is damaged, of another type, or asks for something that is refused; the message says which."""


class Module(NamedTuple):
    """What a pickled `torch.nn.Module` holds.

    Attributes:
      class_name: dotted name of its class, which is not imported.
      weights: parameters and persistent buffers under the names of its state dict.
      attributes: its own and its children's attributes that are numbers, strings or truth values, under dotted names.
    """

    class_name: str
    weights: dict[str, np.ndarray]
    attributes: dict[str, Any]


class Opaque(NamedTuple):
    """An object that is no module, such as an optimizer; nothing of it is loaded.

    Attributes:
      class_name: dotted name of its class, which is not imported.
    """

    class_name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    """Elements of one dtype under one entry of the file."""

    key: str
    dtype: np.dtype
    size: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Tensor:
    """A tensor whose storage has not been read; offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def load_torch(source: str | os.PathLike | BinaryIO, name: str | None = None) -> Any:
    """Reads a zip file of `torch.save`.

    Args:
      source: a path, or an open binary file that can seek.
      name: what messages call the file; its path if not given.

    Returns:
      What was saved: dictionaries, lists, tuples and scalars as they are, tensors as numpy arrays of their dtype
      (bfloat16 is ml_dtypes'), modules as `Module`, anything else that has a class as `Opaque`. Tensors that share a
      storage share memory.

    Raises:
      FileNotFoundError: there is no such file.
      TorchFileError: it is of another type, cut, damaged (CRC), or holds something that is refused; the
        message names it.
    """
    is_open = hasattr(source, "read")
    name = name or str(source)
    if not is_open and not Path(source).is_file():
        raise FileNotFoundError(f"there is no file {source}")
    try:
        with contextlib.nullcontext(source) if is_open else open(source, "rb") as file:
            return _read(file)
    except PickleError as error:
        raise TorchFileError(f"{name}: {error}.") from None


def _read(file: BinaryIO) -> Any:
    with _archive(file) as archive:
        resolver = _Resolver(archive.storage)
        return resolver(read_pickle(archive.read("data.pkl").tobytes(), _resolve, _persistent))


# The archive


class _Archive:
    """The entries of an open zip file, read whole and with their CRCs checked."""

    def __init__(self, file: zipfile.ZipFile, size: int):
        self._file = file
        pickles = [entry for entry in file.namelist() if entry.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise PickleError("it is a zip file, but no file of torch.save: it has no data.pkl")
        self._root = pickles[0].removesuffix("data.pkl")
        if f"{self._root}constants.pkl" in file.namelist():
            raise PickleError("it is a TorchScript program; only files of torch.save are accepted")
        for info in file.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise PickleError("it has compressed entries, which torch.save never writes")
        if sum(info.file_size for info in file.infolist()) > size:
            raise PickleError("its entries overlap")
        order = self.read("byteorder").tobytes() if f"{self._root}byteorder" in file.namelist() else b"little"
        if order not in (b"little", b"big"):
            raise PickleError(f"its byte order {order[:20]!r} is unknown")
        self._byte_order = "<" if order == b"little" else ">"

    def read(self, entry: str) -> np.ndarray:
        """All bytes of an entry, uint8."""
        try:
            info = self._file.getinfo(self._root + entry)
            # Copied in pieces: reading an entry at once would hold it twice.
            data, at = np.empty(info.file_size, np.uint8), 0
            with self._file.open(info) as stream:
                while piece := stream.read(_PIECE):
                    data[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
                    at += len(piece)
        except KeyError:
            raise PickleError(f"its entry {plain(entry)} is missing") from None
        except (*_ZIP_ERRORS, OSError) as error:
            raise PickleError(f"its entry {plain(entry)} is damaged ({plain(error)})") from None
        if at != info.file_size:
            raise PickleError(f"its entry {plain(entry)} is cut short")
        return data

    def storage(self, storage: _Storage) -> np.ndarray:
        """The elements of a storage, in the machine's byte order."""
        data = self.read(f"data/{storage.key}")
        expected = storage.size * storage.dtype.itemsize
        if data.size != expected:
            raise PickleError(f"its storage {plain(storage.key)} has {data.size} bytes, not {expected}")
        if storage.dtype == bool:
            # Any other byte would be a truth value that is neither.
            return data != 0 if (data > 1).any() else data.view(bool)
        stored = data.view(storage.dtype)
        native = "<" if np.little_endian else ">"
        return stored if self._byte_order == native else stored.byteswap()


@contextlib.contextmanager
def _archive(file: BinaryIO) -> Iterator[_Archive]:
    """Opens a zip file; whatever else it is, is said."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(16)
    if not head.startswith(b"PK\x03\x04"):
        raise PickleError(_other_type(head))
    try:
        archive = zipfile.ZipFile(file)
    except (*_ZIP_ERRORS, OSError):
        raise PickleError(
            "it is cut short or damaged: it begins as a zip file, but its directory cannot be read"
        ) from None
    with archive:
        yield _Archive(archive, size)


def _other_type(head: bytes) -> str:
    """What a file is that is no zip file, from its first bytes."""
    if not head:
        return "it is empty"
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return (
            "it is a legacy pickle, which is refused; re-save it in the zip format where torch is installed, with "
            "torch.save(torch.load(OLD, map_location='cpu', weights_only=True), NEW); whole modules, which that "
            "refuses, where their code is, and only if you trust the file"
        )
    if head[8:9] == b"{":
        return "it looks like a safetensors file; its name must end in .safetensors"
    return "it is no zip file of torch.save (.pth, .pt)"


# Names in the pickle


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """A tensor, checked to stay inside its storage."""
    sizes = (shape, strides)
    if not (
        isinstance(storage, _Storage)
        and _whole(offset)
        and all(isinstance(s, tuple) and all(_whole(n) for n in s) for s in sizes)
        and len(shape) == len(strides) <= 32
    ):
        raise PickleError("its pickle has a tensor of which storage, offset, shape or strides make no sense")
    elements = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides))
    if elements and last >= storage.size:
        raise PickleError(f"a tensor of shape {plain(shape)} reaches beyond its storage {plain(storage.key)}")
    if elements > max(storage.size, _MOST_REPEATED):
        raise PickleError(
            f"a tensor of shape {plain(shape)} repeats the {storage.size} elements of its storage too often"
        )
    return _Tensor(storage, offset, shape, strides)


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _tensor_of_dtype(storage, offset, shape, strides, requires_grad, hooks, dtype, *_):
    """A tensor over untyped bytes: newer dtypes are saved so."""
    del requires_grad, hooks
    if not isinstance(dtype, np.dtype) or not isinstance(storage, _Storage):
        raise PickleError("its pickle has a tensor of a dtype that makes no sense")
    elements = storage.size // dtype.itemsize
    return _tensor(dataclasses.replace(storage, dtype=dtype, size=elements), offset, shape, strides)


_FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
_NUMPY_DTYPES = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in (*STORAGES, *_FLOAT8)}
_NUMPY_DTYPES |= {name: np.dtype(name) for name in ("uint16", "uint32", "uint64")}


@dataclasses.dataclass(frozen=True)
class _StorageType:
    """A class of storages."""

    dtype: np.dtype


def _names() -> dict[tuple[str, str], Any]:
    """Every name that a pickle may ask for, beside the classes of `_CLASS_PACKAGES`."""
    builders: dict[tuple[str, str], Callable[..., Any]] = {
        ("torch._utils", "_rebuild_tensor"): _tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_dtype,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
        # Items follow by opcodes. Builders copy nothing that is given to them, since a file can give it a thousand
        # times.
        ("collections", "OrderedDict"): lambda: {},
        ("collections", "defaultdict"): lambda factory=None: {},
        ("torch", "Size"): lambda sizes=(): sizes,
    }
    names: dict[tuple[str, str], Any] = {
        (module, name): Builder(f"{module}.{name}", build) for (module, name), build in builders.items()
    }
    names["torch", "device"] = stand_in("torch.device")
    for name in _BUILTINS:
        names["builtins", name] = names["__builtin__", name] = stand_in(f"builtins.{name}")
    for name, storage in STORAGES.items():
        names["torch", storage] = _StorageType(_NUMPY_DTYPES[name])
    names["torch.storage", "UntypedStorage"] = names["torch", "UntypedStorage"] = _StorageType(np.dtype(np.uint8))
    return names | {("torch", name): dtype for name, dtype in _NUMPY_DTYPES.items()}


_NAMES = _names()


def _resolve(module: str, name: str) -> Any:
    """What a name stands for: only what is listed, and classes of the packages that become stand-ins."""
    found = _NAMES.get((module, name))
    if found is not None:
        return found
    if max(len(module), len(name)) <= _LONGEST_NAME and f"{module}.".startswith(_CLASS_PACKAGES):
        is_class = name.isidentifier() and name.lstrip("_")[:1].isupper()
        if is_class and all(part.isidentifier() for part in module.split(".")):
            return stand_in(f"{module}.{name}")
    raise PickleError(f"it asks for {quoted(f'{module}.{name}', 200)}, which is refused: nothing in a file may run")


def _persistent(value: Any) -> _Storage:
    """A storage from its persistent id; the device it was saved from does not matter."""
    match value:
        case ("storage", _StorageType(dtype), str(key), str(), int(size)) if _whole(size):
            return _Storage(key, dtype, size)
    raise PickleError("its pickle refers to data that is no storage of a tensor")


# From descriptions to arrays


class _Resolver:
    """Replaces tensors by arrays and objects by what is kept of them; each storage and each object once."""

    def __init__(self, read: Callable[[_Storage], np.ndarray]):
        self._read = read
        self._storages: dict[str, tuple[_Storage, np.ndarray]] = {}
        self._done: dict[int, tuple[Any, Any]] = {}
        self._entries = self._characters = 0

    def __call__(self, value: Any, depth: int = 0) -> Any:
        if depth > _DEEPEST:
            raise PickleError(f"its values are nested more than {_DEEPEST} deep, or hold themselves")
        match value:
            case _Tensor():
                return self._array(value)
            case dict() | list() | tuple() | StandIn():
                pass
            case None | bool() | int() | float() | str() | bytes():
                return value
            case Builder(name):
                return Opaque(name)
            case _:
                return Opaque(type(value).__name__)
        # What is shared is resolved once: a few lists that hold each other twice would take for ever.
        if id(value) not in self._done:
            self._done[id(value)] = (value, self._container(value, depth + 1))
        return self._done[id(value)][1]

    def _container(self, value: Any, depth: int) -> Any:
        if isinstance(value, dict):
            return {self._key(key): self(item, depth) for key, item in value.items()}
        if isinstance(value, StandIn):
            return self._module(value) if _is_module(value) else Opaque(value.class_name)
        return type(value)(self(item, depth) for item in value)

    def _key(self, key: Any) -> Any:
        if isinstance(key, str | int | float | bool | None | bytes):
            return key
        raise PickleError(f"a dictionary has a key of type {type(key).__name__}, which is refused")

    def _array(self, tensor: _Tensor) -> np.ndarray:
        storage = tensor.storage
        known, elements = self._storages.get(storage.key, (storage, None))
        if known != storage:
            raise PickleError(f"its storage {plain(storage.key)} is described in two ways")
        if elements is None:
            elements = self._read(storage)
            self._storages[storage.key] = storage, elements
        try:
            if not math.prod(tensor.shape):
                return np.empty(tensor.shape, storage.dtype)
            strides = [step * storage.dtype.itemsize for step in tensor.strides]
            return np.lib.stride_tricks.as_strided(elements[tensor.offset :], tensor.shape, strides)
        except (ValueError, OverflowError):
            raise PickleError(
                f"a tensor has the shape {plain(tensor.shape)} and strides that no array can have"
            ) from None

    def _module(self, root: StandIn) -> Module:
        """The weights of a module and its children; plain tensors among its attributes, such as masks, are none."""
        found = Module(root.class_name, {}, {})
        self._visit(found, root, "", 0)
        return found

    def _visit(self, found: Module, module: StandIn, prefix: str, depth: int) -> None:
        """Adds what a part of a module holds under names that start with `prefix`."""
        state, where = module.state, f"its module {plain(found.class_name)}"
        groups = [state.get(group, {}) for group in ("_parameters", "_buffers", "_modules")]
        if depth > _DEEPEST or len(prefix) > _LONGEST_NAME or not all(map(_is_named, (state, *groups))):
            raise PickleError(f"{where} is damaged or nested too deeply")
        parameters, buffers, children = groups
        passing = _items_of_set(state.get("_non_persistent_buffers_set"))
        self._entries += sum(map(len, (state, *groups, passing)))
        if self._entries > _MOST_ENTRIES:
            raise PickleError(f"{where} and others have more than {_MOST_ENTRIES} entries")
        # Of a part with long names that is a child many times, every copy has names of its own.
        self._characters += sum(len(prefix) + len(name) for group in (state, *groups) for name in group)
        if self._characters > _MOST_CHARACTERS:
            raise PickleError(f"{where} and others have names of more than {_MOST_CHARACTERS} characters together")
        left_out = {name for name in passing if isinstance(name, str)}
        for name, tensor in (*parameters.items(), *buffers.items()):
            if tensor is not None and name not in left_out:
                if not isinstance(tensor, _Tensor):
                    raise PickleError(f"{where} has something else than a tensor as {plain(prefix + name)}")
                found.weights[prefix + name] = self._array(tensor)
        scalars = {prefix + name: value for name, value in state.items() if isinstance(value, str | int | float)}
        found.attributes.update(scalars)
        for name, child in children.items():
            if child is not None:
                if not _is_module(child):
                    raise PickleError(f"{where} has something else than a module as {plain(prefix + name)}")
                self._visit(found, child, f"{prefix}{name}.", depth + 1)


def _is_module(value: Any) -> bool:
    return isinstance(value, StandIn) and isinstance(value.state, dict) and "_modules" in value.state


def _is_named(value: Any) -> bool:
    """Whether this is a dictionary whose keys can be parts of names."""
    return isinstance(value, dict) and all(isinstance(key, str) and len(key) <= _LONGEST_NAME for key in value)


def _items_of_set(value: Any) -> list[Any]:
    """The items of a pickled set."""
    return value.args[0] if isinstance(value, StandIn) and value.args and isinstance(value.args[0], list) else []
