"""A thin face of Orbax: a tree of arrays to a folder and back, on whatever devices there are."""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from wmq_jax.io.atomic import write_text

_MARKER = "commit_success.txt"


def save_tree(path: str | os.PathLike, tree: Any) -> None:
    """Writes a pytree of arrays to the new folder `path`; the folder appears whole or not at all.

    Orbax has no form for arrays without elements.

    Raises:
      ValueError: `path` exists already.
    """
    path = Path(path).absolute()
    if path.exists():
        raise ValueError(f"cannot save to {path}: it exists already")
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(path, args=ocp.args.StandardSave(jax.tree.map(np.asarray, tree)))
    # Only that the marker is there counts. Orbax writes the folder's name on this machine into it; trees are shared.
    marker = path / _MARKER
    if marker.exists():
        write_text(marker, "complete\n")


def restore_tree(path: str | os.PathLike, like: Any) -> Any:
    """Reads a pytree of numpy arrays from the folder `path`.

    Args:
      path: a folder written by `save_tree`.
      like: a pytree of the saved structure whose leaves have the saved shapes and dtypes (arrays or
        `jax.ShapeDtypeStruct`).

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: the saved tree has another structure or other shapes.
    """
    path = Path(path).absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"no saved tree at {path}")
    target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path, args=ocp.args.StandardRestore(target))
