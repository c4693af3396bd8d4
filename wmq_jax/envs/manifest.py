"""Manifests: which episodes are evaluated, calibrated or developed on, drawn from disjoint families of seeds.

Episode n of a manifest with base seed s starts and ends where the environment's official rule puts seed
``s * n + offset``. The published planner evaluates with offset 1 and the published study calibrates with offset 2;
development uses 3. Evaluation may also start and end in the validation trajectories of a data set.
"""

import dataclasses
import random
from typing import Any, Literal

import numpy as np

from wmq_jax.data import OfficialDataset
from wmq_jax.envs.base import Environment
from wmq_jax.envs.wall import Wall

Purpose = Literal["evaluation", "calibration", "development"]
MAX_SEED = 2**31 - 1
OFFSETS: dict[str, int] = {"evaluation": 1, "calibration": 2, "development": 3}


@dataclasses.dataclass(frozen=True)
class Manifest:
    """E episodes.

    Attributes:
      purpose: what they are for.
      seeds: (E,) int64 environment seed of each; it also names the episode in the planner's noise.
      init: (E, S) float64 start states.
      goal: (E, S) float64 goal states.
      segments: (E, 2) int64, trajectory of the data set and its step where the episode starts; None for random states.
    """

    purpose: Purpose
    seeds: np.ndarray
    init: np.ndarray
    goal: np.ndarray
    segments: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.seeds)

    def to_json(self) -> list[dict[str, Any]]:
        """One dictionary an episode, for ``episodes.json``."""
        rows = [
            {"episode": n, "seed": int(seed), "init": init.tolist(), "goal": goal.tolist()}
            for n, (seed, init, goal) in enumerate(zip(self.seeds, self.init, self.goal))
        ]
        if self.segments is not None:
            for row, (trajectory, step) in zip(rows, self.segments.tolist()):
                row |= {"trajectory": trajectory, "step": step}
        return rows


def make_manifest(env: Environment, purpose: Purpose, episodes: int, base_seed: int) -> Manifest:
    """The first ``episodes`` episodes of a purpose.

    Raises:
      ValueError: the purpose is unknown, there is no episode, or the base seed is too small for the three families of
        seeds to stay apart (4 or more) or so large that a seed leaves 0..2**31-1.
    """
    seeds = episode_seeds(purpose, episodes, base_seed)
    pairs = [env.goal_states(int(seed)) for seed in seeds]
    init, goal = (np.stack(side) for side in zip(*pairs))
    return Manifest(purpose, seeds, init, goal)


def dataset_manifest(env: Wall, dataset: OfficialDataset, steps: int, episodes: int, base_seed: int) -> Manifest:
    """Evaluation episodes of the official goal source `dset`: stretches of validation trajectories.

    A trajectory and the step at which the episode starts are drawn in turn from Python's generator, seeded with the
    base seed, as the published planner draws them; its goal is the state `steps` later, which the simulator reaches by
    the trajectory's own actions. Trajectories that are too short or of another layout are drawn again.

    Args:
      env: its layout is wanted.
      dataset: a Wall data set; its official validation part is drawn from.
      steps: environment steps from start to goal.
      episodes, base_seed: as of :func:`make_manifest`; the seeds name the episodes in the planner's noise.

    Raises:
      ValueError: as :func:`make_manifest`, or the data set has no validation trajectory of this layout and length.
    """
    seeds, where = episode_seeds("evaluation", episodes, base_seed), dataset.place.path
    if dataset.layout != "wall_single":
        raise ValueError(f"{where} is of layout {dataset.layout}; goals on the wall are taken from wall_single")
    valid = dataset.split().valid
    layouts = list(zip(dataset.extras["door_y"].tolist(), dataset.extras["wall_x"].tolist(), dataset.lengths.tolist()))
    fits = [layout == [env.door_y, env.wall_x] and length > steps for *layout, length in layouts]
    if not any(fits[n] for n in valid):
        there = sorted({layouts[n] for n in valid})
        listed = ", ".join(f"door_y {door:g} wall_x {wall:g} with {length} steps" for door, wall, length in there[:10])
        raise ValueError(
            f"{where} has no validation trajectory with door_y {env.door_y} and wall_x {env.wall_x} whose goal is "
            f"{steps} steps after a start (--config.env, --config.episodes.goal_horizon); "
            f"its validation trajectories have {listed or 'nothing'}"
        )
    draw = random.Random(base_seed)
    segments = []
    while len(segments) < episodes:
        trajectory = int(valid[draw.randint(0, len(valid) - 1)])
        if fits[trajectory]:
            segments.append((trajectory, draw.randint(0, int(dataset.lengths[trajectory]) - steps - 1)))
    segments = np.asarray(segments, np.int64)
    ends = (dataset.states[segments[:, 0], segments[:, 1] + late].astype(np.float64) for late in (0, steps))
    return Manifest("evaluation", seeds, *ends, segments)


def episode_seeds(purpose: Purpose, episodes: int, base_seed: int) -> np.ndarray:
    """Seeds (E,) int64 of the first episodes of a purpose.

    Raises:
      ValueError: as :func:`make_manifest`.
    """
    if purpose not in OFFSETS:
        raise ValueError(f"manifest purpose {purpose!r} is not one of {', '.join(OFFSETS)}")
    if episodes < 1:
        raise ValueError(f"a manifest needs 1 episode or more, not {episodes}")
    if base_seed < len(OFFSETS) + 1:
        raise ValueError(
            f"base seed {base_seed} would mix evaluation, calibration and development episodes; "
            f"choose {len(OFFSETS) + 1} or more"
        )
    # In Python's integers: those of numpy would wrap around and pass.
    if max(base_seed, base_seed * (episodes - 1) + OFFSETS[purpose]) > MAX_SEED:
        raise ValueError(f"base seed {base_seed} with {episodes} episodes leaves the seeds 0..{MAX_SEED}")
    return base_seed * np.arange(episodes, dtype=np.int64) + OFFSETS[purpose]
