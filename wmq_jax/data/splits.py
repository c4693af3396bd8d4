"""Which trajectories and clips the official system trains and validates on: its random choices, reproduced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from wmq_jax.io.wording import quoted


class Portion(NamedTuple):
    """What a run takes of its data set, under the names of `hydra.yaml`; the defaults are the published runs'.

    Attributes:
      n_rollout: so many trajectories from the first on, of each folder that a layout has; None for all. Statistics are
        of these alone.
      split_ratio: share of them that trains, where the data set has no folders for that.
    """

    n_rollout: int | None = None
    split_ratio: float = 0.9

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Portion:
        """The inverse of `_asdict`; what is missing has its default.

        Raises:
          ValueError: a field is unknown or no such number.
        """
        if not isinstance(values, Mapping) or not set(values) <= set(cls._fields):
            raise ValueError(f"the portion of a data set has the fields {', '.join(cls._fields)} and no others")
        portion = cls(**values)
        if portion.n_rollout is not None and (type(portion.n_rollout) is not int or portion.n_rollout < 1):
            raise ValueError(f"n_rollout must be a whole number of 1 or more, or null, not {quoted(portion.n_rollout)}")
        if type(portion.split_ratio) not in (int, float) or not 0 <= portion.split_ratio <= 1:
            raise ValueError(f"split_ratio must be a number from 0 to 1, not {quoted(portion.split_ratio)}")
        return portion


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
