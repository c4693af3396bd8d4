"""Our own trajectory format: states and actions, since frames of a device environment are rendered when needed."""

import io as stdio
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wmq_jax import io


class Trajectories(NamedTuple):
    """N trajectories of T environment steps.

    Attributes:
      states: (N, T + 1, s) float32; `states[:, t]` is the state before `actions[:, t]`.
      actions: (N, T, A) float32, in the environment's units.
    """

    states: np.ndarray
    actions: np.ndarray


def save_trajectories(path: str | os.PathLike, trajectories: Trajectories, metadata: Mapping) -> None:
    """Writes trajectories and a JSON dict that says how they were made to one `.npz` file, atomically."""
    buffer = stdio.BytesIO()
    np.savez(buffer, metadata=json.dumps(dict(metadata), sort_keys=True), **trajectories._asdict())
    io.write_bytes(path, buffer.getvalue())


def load_trajectories(path: str | os.PathLike) -> tuple[Trajectories, dict]:
    """Reads a file of `save_trajectories`.

    Returns:
      The trajectories and the metadata.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, or its arrays do not fit together.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no trajectory file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            trajectories = Trajectories(file["states"], file["actions"])
            metadata = json.loads(str(file["metadata"]))
    except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"trajectory file {path} is damaged: {error}") from None
    states, actions = trajectories
    if states.ndim != 3 or actions.ndim != 3 or (states.shape[0], states.shape[1] - 1) != actions.shape[:2]:
        raise ValueError(f"trajectory file {path} is damaged: states {states.shape} do not fit actions {actions.shape}")
    return trajectories, metadata
