"""Trajectories on disk, ours and official ones, their normalisation and their splits."""

from wmq_jax.data.normalizer import Normalizer
from wmq_jax.data.official import OfficialDataset, open_dataset, wall_parts
from wmq_jax.data.splits import Portion
from wmq_jax.data.trajectories import Trajectories, load_trajectories, save_trajectories

__all__ = [
    "Normalizer",
    "OfficialDataset",
    "Portion",
    "Trajectories",
    "load_trajectories",
    "open_dataset",
    "save_trajectories",
    "wall_parts",
]
