"""Safetensors files, and what is said where the package or the file does not fit."""

import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from wmq_jax.io import load_safetensors

STATE = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, ml_dtypes.bfloat16)}


@pytest.fixture
def file(tmp_path):
    save_file(STATE, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def test_tensors(file):
    found = load_safetensors(file)
    assert set(found) == set(STATE)
    for name, array in STATE.items():
        assert found[name].dtype == array.dtype and (found[name] == array).all()


def test_what_is_no_such_file(file, tmp_path):
    data = file.read_bytes()
    for content in (b"", data[:20], data[:-4], b"PK\x03\x04" + bytes(100)):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="a.safetensors: it is no safetensors file, cut short or damaged"):
            load_safetensors(file)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_safetensors(tmp_path / "gone.safetensors")


def test_the_missing_package_is_named(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ValueError, match="needs the safetensors package: pip install safetensors"):
        load_safetensors(file)
