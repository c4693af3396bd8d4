"""Bare pickles: all that numpy writes of numbers comes back, and nothing else runs or grows."""

import io
import pickle
import random

import numpy as np
import pytest

from tests.io.test_torch_fuzz import mutated
from tests.io.torch_files import Call, Name, pickled
from wmq_jax.io.plain_pickle import load_plain_pickle

DTYPES = ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "?", ">i4", ">f8", "U3")
CUBE = np.arange(24).reshape(2, 3, 4)
VALUES = {
    **{dtype: np.array([0, 1, 1, 0, 5, 7]).astype(dtype) for dtype in DTYPES},
    "rank 0": np.array(3),
    "empty": np.zeros((0, 3)),
    "columns": np.asfortranarray(CUBE.astype(np.int16)),
    "permuted": CUBE.transpose(1, 0, 2),
    "strided": CUBE[:, ::2, 1:],
    "read-only": np.broadcast_to(np.float32(2), (3, 2)),
    "number": 7,
    "text": "T",
    "numpy number": np.float32(1.5),
    "numpy text": np.str_("T"),
    "numbers": [12, 7, 9],
    "numpy numbers": [np.int64(12), np.int64(-7), np.uint8(200), np.bool_(True)],
    "texts": ["T", "L"],
    "none": None,
}


def load(data):
    return load_plain_pickle(io.BytesIO(data), "a.pkl")


def renamed(data, new, old):
    """The same pickle with a module under its other name; text of protocol 4 and 5 begins with its length."""
    long = bytes([len(new)]) + new, bytes([len(old)]) + old
    return data.replace(*long).replace(b"c" + new + b"\n", b"c" + old + b"\n")


@pytest.mark.parametrize("numpy_1", [False, True])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", VALUES)
def test_what_numpy_writes(name, protocol, numpy_1):
    value = VALUES[name]
    data = pickle.dumps(value, protocol)
    if numpy_1:
        for module in (b"multiarray", b"numeric"):
            data = renamed(data, b"numpy._core." + module, b"numpy.core." + module)
        assert b"_core" not in data
    found = load(data)
    if isinstance(value, list):
        assert len(found) == len(value)
        for mine, theirs in zip(found, value):
            assert mine == theirs and getattr(mine, "dtype", None) == getattr(theirs, "dtype", None)
    elif isinstance(value, np.ndarray | np.generic):
        assert found.dtype == value.dtype.newbyteorder("=") and found.shape == value.shape
        np.testing.assert_array_equal(found, value)
    else:
        assert found == value


@pytest.mark.parametrize(
    "value, words",
    [
        (Call(Name("os", "system"), ("echo",)), "asks for 'os.system', which is refused"),
        (Call(Name("_codecs", "decode"), ("echo",)), "asks for '_codecs.decode', which is refused"),
        ({"a": 1}, "holds a dict where a number, a text or an array"),
        ([[1]], "holds a list where a number or a text"),
        (Call(Name("_codecs", "encode"), ("a", "latin1")), "holds a call of encode where"),
    ],
)
def test_anything_else_is_refused(value, words):
    with pytest.raises(ValueError, match=f"a.pkl: it {words}"):
        load(pickled(value))


@pytest.mark.parametrize("value", [np.array(["a", None]), np.zeros(2, "M8[s]"), np.zeros(2, [("a", "i4")]), 1j])
@pytest.mark.parametrize("protocol", [2, 5])
def test_other_arrays_are_refused(value, protocol):
    with pytest.raises(ValueError, match="a.pkl: it (holds|asks for)"):
        load(pickle.dumps(np.asarray(value), protocol))


def test_long_texts_in_lists_do_not_multiply():
    """A list names one text again in two bytes, and every one would be an array of its own."""
    with pytest.raises(ValueError, match="do not fit together"):
        load(pickle.dumps([np.str_("x" * 999)] * 2))
    assert load(pickle.dumps(np.str_("x" * 16))) == "x" * 16
    assert load(pickle.dumps([np.str_("x" * 16)] * 2)) == ["x" * 16] * 2


@pytest.mark.parametrize("protocol", [2, 5])
def test_damaged_pickles(protocol):
    """A clear error or an array that the file holds."""
    draw, refused = random.Random(protocol), 0
    for value in (CUBE.astype(np.int32), [np.int64(3), "T"], VALUES["U3"]):
        data = pickle.dumps(value, protocol)
        for _ in range(1000):
            try:
                found = load(mutated(data, draw))
            except ValueError as error:
                refused += 1
                assert str(error).startswith("a.pkl: it") and str(error).isprintable() and len(str(error)) < 1000
            else:
                assert not isinstance(found, np.ndarray) or found.nbytes <= len(data) + 200
    assert refused > 1000
