"""Trees of arrays come back bit for bit, and only into the structure they had."""

import jax
import numpy as np
import pytest

from wmq_jax.io.orbax import restore_tree, save_tree

TREE = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3) / 7}, "step": np.int32(3)}


def test_round_trip(tmp_path):
    save_tree(tmp_path / "tree", TREE)
    back = restore_tree(tmp_path / "tree", TREE)
    assert jax.tree.structure(back) == jax.tree.structure(TREE)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(TREE), strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b)


def test_nothing_tells_the_machine(tmp_path):
    save_tree(tmp_path / "tree", TREE)
    files = [path for path in (tmp_path / "tree").rglob("*") if path.is_file()]
    assert files and not [path for path in files if str(tmp_path).encode() in path.read_bytes()]


def test_an_existing_folder_is_not_overwritten(tmp_path):
    save_tree(tmp_path / "tree", TREE)
    with pytest.raises(ValueError, match="exists already"):
        save_tree(tmp_path / "tree", TREE)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        restore_tree(tmp_path / "nowhere", TREE)


def test_another_structure_is_refused(tmp_path):
    save_tree(tmp_path / "tree", TREE)
    with pytest.raises(ValueError):
        restore_tree(tmp_path / "tree", {"b": TREE["a"]})
