"""Thousands of damaged torch files: a clear error or the right arrays, and never code that runs.

An audit hook watches what the interpreter does while a file is read: imports, compiled code, processes, opened files.
"""

import contextlib
import io
import random
import signal
import sys
import zipfile

import numpy as np
import pytest

from tests.golden.conftest import golden_path
from tests.io.torch_files import write_torch
from wmq_jax.data import open_dataset
from wmq_jax.io import Module, TorchFileError, load_torch

FORBIDDEN = ("import", "exec", "compile", "open", "os.", "subprocess.", "socket.", "ctypes.", "shutil.")
_seen: list[str] | None = None


def _watch(event, args):
    if _seen is not None and event.startswith(FORBIDDEN):
        _seen.append(f"{event} {args}")


@pytest.fixture(scope="module")
def watched():
    """`watched(data)` loads a file and says what the interpreter did that no reader should do."""
    sys.addaudithook(_watch)
    "".encode("cp437")  # of names in zip directories: imported once, at its first use

    def load(data: bytes):
        global _seen
        _seen = []
        try:
            with time_limit():
                found = load_torch(io.BytesIO(data), name="a.pth")
        except TorchFileError as error:
            assert str(error).startswith("a.pth: ") and str(error).isprintable() and len(str(error)) < 1000
            found = None
        finally:
            events, _seen = _seen, None
        assert events == []
        return found

    return load


@contextlib.contextmanager
def time_limit(seconds: float = 20):
    """Ends what hangs; a file of a megabyte is read in far less than a second."""

    def stop(*_):
        raise AssertionError(f"a file was not read in {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def equal(a, b):
    """Are two loaded values the same, arrays bit for bit?"""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, Module):
        return isinstance(b, Module) and equal(a.weights, b.weights)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    return a == b


def mutated(data: bytes, draw: random.Random) -> bytes:
    """One to three random changes of bytes: flipped, replaced, cut, repeated, moved."""
    data = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        at, length = draw.randrange(len(data)), draw.randint(1, 40)
        match draw.randrange(6):
            case 0:
                data[at] ^= 1 << draw.randrange(8)
            case 1:
                data[at] = draw.randrange(256)
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                source = draw.randrange(len(data))
                data[at : at + length] = data[source : source + length]
            case 5:
                data[at : at + 4] = draw.choice([b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", bytes(4)])
        if not data:
            return b""
    return bytes(data)


# How many mutations of each recorded file.
FILES = {"states.pth": 1200, "door_locations.pth": 1200, "model_latest.pth": 100}


def recorded(name: str) -> bytes:
    """The contents of a recorded file: of the run's checkpoint, or of the data set."""
    if name.startswith("model"):
        (path,) = golden_path("checkpoint").glob(f"outputs/*/checkpoints/{name}")
        return path.read_bytes()
    with open_dataset(golden_path("dataset_wall")).place.open(name) as file:
        return file.read()


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(watched, name):
    """The CRCs cover what is read, so what loads in spite of the damage is what was saved."""
    data, draw = recorded(name), random.Random(name)
    original = watched(data)
    assert original is not None
    refused = 0
    for _ in range(FILES[name]):
        found = watched(mutated(data, draw))
        refused += found is None
        assert found is None or equal(found, original)
    assert refused > FILES[name] // 3


@pytest.mark.parametrize("name", FILES)
def test_damaged_pickles(watched, tmp_path, name):
    """Behind a correct CRC: other arrays may come out, but only ones that the file holds."""
    draw = random.Random(name)
    with zipfile.ZipFile(io.BytesIO(recorded(name))) as file:
        entries = {entry.split("/", 1)[1]: file.read(entry) for entry in file.namelist()}
    pickle = entries.pop("data.pkl")
    storages = {key.removeprefix("data/"): entries[key] for key in entries if key.startswith("data/")}
    size = sum(map(len, storages.values()))
    refused = 0
    for _ in range(FILES[name]):
        path = write_torch(tmp_path / "a.pth", mutated(pickle, draw), storages)
        found = watched(path.read_bytes())
        refused += found is None
        assert found is None or all(memory(array).nbytes <= size for array in arrays(found))
    assert refused > FILES[name] // 3


def memory(array):
    """What an array is a view of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def arrays(value):
    """All arrays of a loaded value."""
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, Module):
        return list(value.weights.values())
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [array for part in parts for array in arrays(part)]
