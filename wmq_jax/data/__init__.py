"""Trajectories on disk, their normalisation and their splits."""

from wmq_jax.data.normalizer import Normalizer
from wmq_jax.data.trajectories import Trajectories, load_trajectories, save_trajectories

__all__ = ["Normalizer", "Trajectories", "load_trajectories", "save_trajectories"]
