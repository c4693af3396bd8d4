"""Manifests: which episodes are evaluated, calibrated or developed on, drawn from disjoint families of seeds.

Episode n of a manifest with base seed s starts and ends where the environment's official rule puts seed
``s * n + offset``. The published planner evaluates with offset 1 and the published study calibrates with offset 2;
development uses 3.
"""

import dataclasses
from typing import Any, Literal

import numpy as np

from wmq_jax.envs.base import Environment

Purpose = Literal["evaluation", "calibration", "development"]
OFFSETS: dict[str, int] = {"evaluation": 1, "calibration": 2, "development": 3}


@dataclasses.dataclass(frozen=True)
class Manifest:
    """E episodes.

    Attributes:
      purpose: what they are for.
      seeds: (E,) int64 environment seed of each; it also names the episode in the planner's noise.
      init: (E, S) float64 start states.
      goal: (E, S) float64 goal states.
    """

    purpose: Purpose
    seeds: np.ndarray
    init: np.ndarray
    goal: np.ndarray

    def __len__(self) -> int:
        return len(self.seeds)

    def to_json(self) -> list[dict[str, Any]]:
        """One dictionary an episode, for ``episodes.json``."""
        return [
            {"episode": n, "seed": int(seed), "init": init.tolist(), "goal": goal.tolist()}
            for n, (seed, init, goal) in enumerate(zip(self.seeds, self.init, self.goal))
        ]


def make_manifest(env: Environment, purpose: Purpose, episodes: int, base_seed: int) -> Manifest:
    """The first ``episodes`` episodes of a purpose.

    Raises:
      ValueError: the purpose is unknown, there is no episode, or the base seed is too small for the three families of
        seeds to stay apart (4 or more) or so large that a seed leaves 0..2**31-1.
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
    seeds = base_seed * np.arange(episodes, dtype=np.int64) + OFFSETS[purpose]
    if seeds[-1] >= 2**31:
        raise ValueError(f"base seed {base_seed} with {episodes} episodes leaves the seeds 0..2147483647")
    pairs = [env.goal_states(int(seed)) for seed in seeds]
    init, goal = (np.stack(side) for side in zip(*pairs))
    return Manifest(purpose, seeds, init, goal)
