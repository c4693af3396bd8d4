"""Checkpoints as users name them: by folder, or the one that ships with the package."""

import dataclasses
from pathlib import Path

from wmq_jax.checkpoints.native import ModelCheckpoint, bundled_model_path, load_model
from wmq_jax.data import OfficialDataset
from wmq_jax.io.wording import plain


def model_path(name: str) -> Path:
    """The folder that a user means: `'bundled'`, or a path."""
    return bundled_model_path() if name == "bundled" else Path(name)


def open_model(name: str, dataset: OfficialDataset | None, env: str) -> ModelCheckpoint:
    """Loads a checkpoint; statistics that it was converted without are those of the data set.

    Args:
      name: `'bundled'`, or a folder.
      dataset: the official data set at hand, if any.
      env: the environment that it is for.

    Raises:
      FileNotFoundError, ValueError: it cannot be loaded (see `load_model`), is a model of another environment, or its
        statistics are unknown.
    """
    checkpoint = load_model(model_path(name))
    made_for = checkpoint.metadata.get("env", env)
    if made_for != env:
        raise ValueError(f"checkpoint {name} is a model of {plain(made_for)}, but env.name is {env}")
    if checkpoint.normalizer is not None:
        return checkpoint
    if dataset is None:
        raise ValueError(
            f"checkpoint {name} was converted without its data set, so its statistics are unknown: set dataset to the "
            "data set's folder or zip file"
        )
    return dataclasses.replace(checkpoint, normalizer=dataset.normalizer)
