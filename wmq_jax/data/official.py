"""Official data sets, read where they are, folder or zip file, and of the frames only the episodes asked for.

    wall_single   states.pth, actions.pth, door_locations.pth, wall_locations.pth, obses/episode_000.pth
    point_maze    states.pth, actions.pth, seq_lengths.pth, obses/episode_000.pth
    pusht_noise   train/ and val/, each: states.pth, velocities.pth, rel_actions.pth, seq_lengths.pkl, shapes.pkl,
                  obses/episode_000.mp4

States, actions and lengths of all episodes are small and read at once. Source: the loaders of arXiv 2411.04983.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wmq_jax.data.normalizer import Normalizer
from wmq_jax.data.splits import Portion, Split, split_trajectories
from wmq_jax.data.trajectories import Trajectories
from wmq_jax.data.video import read_video
from wmq_jax.io import load_torch
from wmq_jax.io.place import Place, open_place
from wmq_jax.io.plain_pickle import load_plain_pickle

PARTS = ("train", "val")

# Relative actions are stored in pixels, and the environment takes them in units of this many.
_PUSHT_ACTION_UNIT = 100.0
_PUSHT_NORMALIZER = Normalizer(
    action_mean=[-0.0087, 0.0068],
    action_std=[0.2019, 0.2002],
    proprio_mean=[236.6155, 264.5674, -2.93032027, 2.54307914],
    proprio_std=[101.1202, 87.0112, 74.84556075, 74.14009094],
)


def fixed_normalizer(env: str) -> Normalizer | None:
    """The statistics that the official loader has as constants; None where it takes them from the data."""
    return _PUSHT_NORMALIZER if env == "pusht" else None


@dataclasses.dataclass(frozen=True, eq=False)
class OfficialDataset:
    """N episodes, padded to T steps.

    Attributes:
      place: where it is.
      layout: 'wall_single', 'point_maze' or 'pusht_noise'.
      states: (N, T, s) float32; `states[:, t]` is the state before `actions[:, t]`.
      actions: (N, T, A) float32, in the environment's units.
      proprio: (N, T, p) float32, in the environment's units.
      lengths: (N,) int64, valid steps of each episode.
      extras: what the layout has beside: `door_y` and `wall_x` (N,) float32 of Wall, `shape` (N,) of PushT.
      portion: what of it this is, and how it is split.
    """

    place: Place
    layout: str
    states: np.ndarray
    actions: np.ndarray
    proprio: np.ndarray
    lengths: np.ndarray
    extras: Mapping[str, np.ndarray]
    portion: Portion = Portion()

    def __len__(self) -> int:
        return len(self.states)

    @functools.cached_property
    def normalizer(self) -> Normalizer:
        """What official models of this data set are normalised with: over all episodes, before any split."""
        if self.layout == "pusht_noise":
            return _PUSHT_NORMALIZER
        valid = np.arange(self.states.shape[1]) < self.lengths[:, None]
        return Normalizer.fit(self.actions[valid], self.proprio[valid])

    def taken(self, portion: Portion) -> "OfficialDataset":
        """The data set as a run takes it; of fewer trajectories than `portion` asks for, all, as officially."""
        first = slice(portion.n_rollout)
        arrays = {name: getattr(self, name)[first] for name in ("states", "actions", "proprio", "lengths")}
        extras = {name: values[first] for name, values in self.extras.items()}
        return dataclasses.replace(self, **arrays, extras=extras, portion=portion)

    def identity(self, frames_of: Sequence[int] = ()) -> dict[str, Any]:
        """What tells the data set's content apart: its portion, and the SHA-256 of every array, as JSON values.

        Args:
          frames_of: episodes whose frames count too; those of all would be gigabytes.

        Raises:
          FileNotFoundError, ValueError: the file of an episode is missing or damaged in its zip file.
        """
        arrays = {name: getattr(self, name) for name in ("states", "actions", "proprio", "lengths")} | dict(self.extras)
        found = {name: hashlib.sha256(np.ascontiguousarray(array)).hexdigest() for name, array in arrays.items()}
        frames = hashlib.sha256()
        for episode in frames_of:
            with self.place.open(self._frames_file(episode)) as file:
                frames.update(hashlib.file_digest(file, "sha256").digest())
        return {**self.portion._asdict(), **found, "frames": frames.hexdigest() if len(frames_of) else ""}

    def split(self, seed: int = 42) -> Split:
        """The official random split; PushT's is by folders, and each of them is its own part as a whole."""
        if self.layout == "pusht_noise":
            everything, nothing = np.arange(len(self)), np.arange(0)
            return Split(nothing, everything) if self.place.name == "val" else Split(everything, nothing)
        return split_trajectories(len(self), self.portion.split_ratio, seed)

    def _frames_file(self, episode: int) -> str:
        suffix = "mp4" if self.layout == "pusht_noise" else "pth"
        return f"obses/episode_{episode:03d}.{suffix}"

    def frames(self, episode: int, steps: Sequence[int] | None = None) -> np.ndarray:
        """Frames of one episode; only its file is read.

        Args:
          episode: its number in the data set.
          steps: which; None for all.

        Returns:
          (t, H, W, 3) uint8.

        Raises:
          IndexError: there is no such episode.
          FileNotFoundError: its file is missing.
          ValueError: the file is damaged or no sequence of images; or it is a video and the package for it is not
            installed.
        """
        if not 0 <= episode < len(self):
            raise IndexError(f"{self.place.path} has episodes 0 to {len(self) - 1}, not {episode}")
        name = self._frames_file(episode)
        where = f"{self.place.path}/{name}"
        with self.place.open(name) as file:
            is_video = name.endswith(".mp4")
            frames = read_video(file, where, self.lengths[episode]) if is_video else load_torch(file, name=where)
        frames = _channel_last(frames, where)
        if len(frames) < self.lengths[episode]:
            raise ValueError(f"{where} has {len(frames)} frames, but the episode has {self.lengths[episode]} steps")
        return frames if steps is None else frames[np.asarray(steps)]

    def trajectories(self, episodes: Sequence[int], frameskip: int) -> Trajectories:
        """Episodes in our own compact format, cut to the shortest of them, which must last one model action."""
        episodes = np.asarray(episodes)
        steps = int(self.lengths[episodes].min()) - 1
        if steps < frameskip:
            raise ValueError(f"{self.place.path}: an episode has less than {frameskip + 1} steps, one model action")
        return Trajectories(self.states[episodes, : steps + 1], self.actions[episodes, :steps])


def wall_parts(dataset: OfficialDataset, frameskip: int) -> dict[str, Trajectories]:
    """The episodes of a Wall data set in our compact format, split officially.

    Args:
      dataset: the data set.
      frameskip: environment steps of a model action.

    Returns:
      'train' and 'validation'; their states (N, T + 1, 4) are position and layout (x, y, door_y, wall_x).

    Raises:
      ValueError: it is of another task, or too small for both parts or for one model action.
    """
    path = dataset.place.path
    if dataset.layout != "wall_single":
        raise ValueError(f"{path} is of layout {dataset.layout}; training on the wall takes wall_single")
    parts = {}
    for name, episodes in zip(("train", "validation"), dataset.split()):
        if not len(episodes):
            raise ValueError(f"{path} has {len(dataset)} episodes, of which none is left for {name}")
        states, actions = dataset.trajectories(episodes, frameskip)
        layout = np.stack([dataset.extras[extra][episodes] for extra in ("door_y", "wall_x")], axis=-1)
        layout = np.broadcast_to(layout[:, None], (*states.shape[:2], 2))
        parts[name] = Trajectories(np.concatenate([states, layout], axis=-1), actions)
    return parts


def _channel_last(frames: object, where: str) -> np.ndarray:
    """Frames (t, 3, H, W) or (t, H, W, 3), uint8 or whole numbers as floats, to (t, H, W, 3) uint8."""
    if not isinstance(frames, np.ndarray) or frames.ndim != 4 or 3 not in (frames.shape[1], frames.shape[-1]):
        raise ValueError(f"{where} holds no frames (t, 3, H, W) or (t, H, W, 3)")
    if frames.shape[-1] != 3:
        frames = np.moveaxis(frames, 1, -1)
    if frames.dtype == np.uint8:
        return frames
    if not np.isfinite(frames).all() or frames.min(initial=0) < 0 or frames.max(initial=0) > 255:
        raise ValueError(f"{where} holds frames of {frames.dtype} outside 0 to 255")
    return np.rint(frames).astype(np.uint8)


def open_dataset(path: str | os.PathLike, part: str = "train") -> OfficialDataset:
    """Opens an official data set; its layout is told by its files.

    Args:
      path: its folder, a zip file, or a folder inside a zip file.
      part: 'train' or 'val', for the layout that has a folder for each (and unless `path` is one of them).

    Raises:
      FileNotFoundError: there is no data set; the message lists those that are there.
      ValueError: a file is missing, damaged, or does not fit the others.
    """
    if part not in PARTS:
        raise ValueError(f"the part of a data set is one of {', '.join(PARTS)}, not {part!r}")
    place = open_place(path, ("states.pth", "train/states.pth"), "data set")
    if not place.has("states.pth"):
        place = place.sub(part)
    try:
        return _READERS[_layout(place)](place)
    except FileNotFoundError as error:
        raise ValueError(f"the data set is not complete: {error}") from None


def _layout(place: Place) -> str:
    marks = {"rel_actions.pth": "pusht_noise", "seq_lengths.pth": "point_maze", "door_locations.pth": "wall_single"}
    for name, layout in marks.items():
        if place.has(name):
            return layout
    known = ", ".join(f"{name} ({layout})" for name, layout in marks.items())
    raise ValueError(f"{place.path} is no data set of a known layout: it has none of {known}")


def _tensor(place: Place, name: str, like: np.ndarray | None = None) -> np.ndarray:
    """A tensor (N, T, d) as float32, finite and of the same N and T as another."""
    where = f"{place.path}/{name}"
    with place.open(name) as file:
        value = load_torch(file, name=where)
    if not isinstance(value, np.ndarray) or value.ndim != 3:
        raise ValueError(f"{where} holds no tensor (episodes, steps, numbers)")
    if like is not None and value.shape[:2] != like.shape[:2]:
        raise ValueError(f"{where} has shape {value.shape}, which does not fit states {like.shape}")
    value = np.asarray(value, np.float32)
    if not np.isfinite(value).all():
        raise ValueError(f"{where} has NaN or infinite values")
    return value


def _lengths(place: Place, name: str, values: object, states: np.ndarray) -> np.ndarray:
    """Valid steps of each episode, checked."""
    array = np.asarray(values)
    if (
        array.shape != states.shape[:1]
        or array.dtype.kind not in "iu"
        or (array < 1).any()
        or (array > states.shape[1]).any()
    ):
        raise ValueError(f"{place.path}/{name} must hold {len(states)} lengths of 1 to {states.shape[1]} steps")
    return array.astype(np.int64)


def _wall(place: Place) -> OfficialDataset:
    states = _tensor(place, "states.pth")
    actions = _tensor(place, "actions.pth", states)
    extras = {
        name: _tensor(place, f"{file}_locations.pth", states)[:, 0, 0]
        for name, file in (("door_y", "door"), ("wall_x", "wall"))
    }
    lengths = np.full(len(states), states.shape[1])
    return OfficialDataset(place, "wall_single", states, actions, states, lengths, extras)


def _point_maze(place: Place) -> OfficialDataset:
    states = _tensor(place, "states.pth")
    actions = _tensor(place, "actions.pth", states)
    name = "seq_lengths.pth"
    with place.open(name) as file:
        lengths = load_torch(file, name=f"{place.path}/{name}")
    lengths = _lengths(place, name, lengths, states)
    return OfficialDataset(place, "point_maze", states, actions, states, lengths, {})


def _pusht(place: Place) -> OfficialDataset:
    positions = _tensor(place, "states.pth")
    velocities = _tensor(place, "velocities.pth", positions)
    actions = _tensor(place, "rel_actions.pth", positions) / np.float32(_PUSHT_ACTION_UNIT)
    states = np.concatenate([positions, velocities], axis=-1)
    proprio = np.concatenate([positions[..., :2], velocities], axis=-1)
    name = "seq_lengths.pkl"
    with place.open(name) as file:
        lengths = _lengths(place, name, load_plain_pickle(file, f"{place.path}/{name}"), states)
    shapes = ["T"] * len(states)  # officially assumed where the file is absent
    if place.has("shapes.pkl"):
        with place.open("shapes.pkl") as file:
            shapes = load_plain_pickle(file, f"{place.path}/shapes.pkl")
    extras = {"shape": np.asarray(shapes, np.str_)}
    if extras["shape"].shape != (len(states),):
        raise ValueError(f"{place.path}/shapes.pkl must hold {len(states)} shapes")
    return OfficialDataset(place, "pusht_noise", states, actions, proprio, lengths, extras)


_READERS = {"wall_single": _wall, "point_maze": _point_maze, "pusht_noise": _pusht}
