"""Names of the leaves of a pytree: the keys on the way to a leaf, joined by '/'.

Boxes that hold an array as their only attribute, 'value' (variables of Flax NNX, partitioned ones of Linen), add no
name; a field of that name beside others does.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

PyTree = Any

# A grid of few bits reaches half a step beyond its range, and the range of both signs is twice as wide.
LARGEST = 2.0**126
# The same of float16: it is expanded from float32, so half a step beyond the range is all that may be added.
LARGEST_HALF = float(np.finfo(np.float16).max) / 2


def named_leaves(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Name -> leaf, in the order of the tree: 'encoder/blocks_0/attn/qkv/kernel'.

    Raises:
      ValueError: two leaves have one name.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    names = _names([path for path, _ in flat])
    return {name: leaf for name, (_, leaf) in zip(names, flat)}


def map_named(function: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
    """``tree`` with every leaf replaced by ``function(name, leaf)``.

    Raises:
      ValueError: two leaves have one name.
    """
    flat, structure = jax.tree_util.tree_flatten_with_path(tree)
    names = _names([path for path, _ in flat])
    return structure.unflatten([function(name, leaf) for name, (_, leaf) in zip(names, flat)])


def nest(flat: dict[str, Any], base: PyTree = None) -> dict:
    """Nested dictionaries with ``flat``'s values at its names, over a copy of ``base``, mappings of any kind.

    Raises:
      ValueError: a name lies under another one that has a value.
    """
    nested = _copy_dicts(base or {})
    for name, value in flat.items():
        *parents, last = name.split("/")
        node = nested
        for key in parents:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise ValueError(f"'{name}' lies under a name that has a value of its own")
        node[last] = value
    return nested


def subtree(tree: PyTree, name: str) -> PyTree:
    """What nested mappings hold at ``name``; all of it for ''."""
    for key in filter(None, name.split("/")):
        tree = tree[key]
    return tree


def join(*names: str) -> str:
    """Names as one; an empty one, the root of a tree, adds nothing."""
    return "/".join(filter(None, names))


def is_known(array: Any) -> bool:
    """Whether the host can look at the values of ``array``: not while a function of it is traced."""
    return not isinstance(array, jax.core.Tracer)


def check_finite(kind: str, named: dict[str, Any]) -> None:
    """Checks on the host that no array holds NaN, infinity or what grids cannot reach.

    A tracer passes unchecked, since its values are unknown.

    Raises:
      ValueError: naming the first array that does, as ``kind`` and its name.
    """
    for name, array in named.items():
        if not is_known(array):
            continue
        given = np.asarray(array)
        values = given if given.dtype == np.float64 else given.astype(np.float32)
        finite = np.isfinite(values)
        if not finite.all():
            raise ValueError(f"{kind} '{name}' has {(~finite).sum()} NaN or infinite values of {finite.size}")
        dtype, largest = ("float16", LARGEST_HALF) if given.dtype == np.float16 else ("float32", LARGEST)
        if (np.abs(values) > largest).any():
            raise ValueError(f"{kind} '{name}' has values beyond {largest:.1e}, near which {dtype} grids overflow")


def _names(key_paths: Sequence[tuple]) -> list[str]:
    """The name of every leaf; all leaves of a tree together tell a box from a field called 'value'."""
    inside = collections.Counter(path[:-1] for path in key_paths)
    names = []
    for path in key_paths:
        boxed = path and isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value"
        own = path[:-1] if boxed and inside[path[:-1]] == 1 else path
        names.append("/".join(str(_key(entry)) for entry in own))
    if len(set(names)) < len(names):
        twice = collections.Counter(names).most_common(1)[0][0]
        raise ValueError(f"two leaves of the tree are called '{twice}': names are keys joined by '/'")
    return names


def _copy_dicts(tree: PyTree) -> PyTree:
    return {key: _copy_dicts(value) for key, value in tree.items()} if isinstance(tree, Mapping) else tree


def _key(entry) -> Any:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return entry
