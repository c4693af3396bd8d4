"""Makes files as `torch.save` does, and as it never would, by Python's own pickler and without torch."""

import io
import pickle
import zipfile
from typing import Any, NamedTuple


class Name:
    """A global of the pickle: `Name('torch', 'FloatStorage')`; callable, as the pickler demands of what it calls."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name

    def __call__(self):
        raise AssertionError("nothing in a file may run")


class Call(NamedTuple):
    """A call of a global, and the state that the result is given."""

    function: Name
    args: tuple = ()
    state: Any = None


class Storage(NamedTuple):
    """A storage: its class, key, location and number of elements."""

    kind: str
    key: str
    size: int
    location: str = "cpu"


class _Pickler(pickle._Pickler):
    def persistent_id(self, value):
        if isinstance(value, Storage):
            return "storage", Name("torch", value.kind), value.key, value.location, value.size
        return None

    def reducer_override(self, value):
        if isinstance(value, Call):
            return (value.function, value.args) + ((value.state,) if value.state is not None else ())
        return NotImplemented

    def save_name(self, value):
        self.write(b"c" + f"{value.module}\n{value.name}\n".encode())
        self.memoize(value)

    dispatch = {**pickle._Pickler.dispatch, Name: save_name}


def pickled(value: Any, protocol: int = 2) -> bytes:
    """A pickle of plain data, names, calls and storages."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol).dump(value)
    return buffer.getvalue()


def write_torch(path, value: Any, storages: dict[str, bytes], root: str = "archive", **entries: bytes):
    """Writes a zip file of this pickled value and these storages; returns the path."""
    data = value if isinstance(value, bytes) else pickled(value)
    with zipfile.ZipFile(path, "w") as file:
        for name, content in {"data.pkl": data, "version": b"3\n", **entries}.items():
            file.writestr(f"{root}/{name}", content)
        for key, content in storages.items():
            file.writestr(f"{root}/data/{key}", content)
    return path


def tensor(storage: Storage, shape, strides, offset: int = 0) -> Call:
    """A tensor as torch pickles it."""
    hooks = Call(Name("collections", "OrderedDict"))
    return Call(Name("torch._utils", "_rebuild_tensor_v2"), (storage, offset, shape, strides, False, hooks))


def parameter(data: Call) -> Call:
    """A `torch.nn.Parameter`."""
    return Call(Name("torch._utils", "_rebuild_parameter"), (data, True, Call(Name("collections", "OrderedDict"))))


def module(class_name: str, parameters=None, modules=None, buffers=None, **attributes) -> Call:
    """A `torch.nn.Module` of this class, given its parameters, children, buffers and other attributes."""
    state = dict(_parameters=parameters or {}, _buffers=buffers or {}, _modules=modules or {}, **attributes)
    return Call(Name(*class_name.rsplit(".", 1)), (), state)
