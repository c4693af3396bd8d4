"""Data generation and training of world models."""

from wmq_jax.training.generate import WalkConfig, generate_trajectories
from wmq_jax.training.given import Given, take_given
from wmq_jax.training.run import check_folder, open_workdir, train
from wmq_jax.training.settings import TrainSettings, check_settings
from wmq_jax.training.wording import describe_training, format_summary

__all__ = [
    "Given",
    "TrainSettings",
    "WalkConfig",
    "check_folder",
    "check_settings",
    "describe_training",
    "format_summary",
    "generate_trajectories",
    "open_workdir",
    "take_given",
    "train",
]
