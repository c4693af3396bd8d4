"""Which trajectories and clips the official system trains and validates on: its random choices, reproduced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """Indices of trajectories, in the order in which the official system lists them.

    Attributes:
      train: (n,) int64.
      valid: (N - n,) int64.
    """

    train: np.ndarray
    valid: np.ndarray


def split_trajectories(count: int, train_fraction: float, seed: int = 42) -> Split:
    """Splits `count` trajectories at random; int(train_fraction * count) of them are for training.

    A Fisher-Yates shuffle from the front that takes each raw 32-bit output of the Mersenne Twister modulo the number
    of entries left. (Its bias is the original's.)
    """
    if count < 1 or not 0.0 <= train_fraction <= 1.0:
        raise ValueError(
            f"a split needs at least one trajectory and a fraction in [0, 1], got {count} and {train_fraction}."
        )
    draws = np.frombuffer(np.random.RandomState(seed).bytes(4 * (count - 1)), "<u4").astype(np.int64)
    order = np.arange(count)
    for i, draw in enumerate(draws):
        j = i + draw % (count - i)
        order[i], order[j] = order[j], order[i]
    train = int(train_fraction * count)
    return Split(order[:train], order[train:])


def clip_slices(lengths: Sequence[int], num_frames: int, frameskip: int) -> np.ndarray:
    """All clips of `num_frames` frames, `frameskip` environment steps apart.

    Args:
      lengths: steps of each trajectory.
      num_frames: frames of a clip.
      frameskip: environment steps between two frames.

    Returns:
      (n, 3) int64 rows (trajectory, first step, one past the last step); a trajectory too short for a clip has none.
    """
    span = num_frames * frameskip
    rows = [(i, start, start + span) for i, length in enumerate(lengths) for start in range(length - span + 1)]
    return np.asarray(rows, np.int64).reshape(-1, 3)


def shuffle_slices(slices: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
    """Shuffles lists of clips one after another from one random stream (officially: training, then validation)."""
    stream = np.random.RandomState(seed)
    return [rows[stream.permutation(len(rows))] for rows in slices]
