"""Checkpoints as users name them, by folder or the one that ships with the package, and the data set beside them."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from wmq_jax.checkpoints.native import ModelCheckpoint, bundled_model_path, load_model
from wmq_jax.data import OfficialDataset, Portion
from wmq_jax.io.wording import plain

PORTION = "dataset"  # the key of a checkpoint's metadata that has what its run took of the data set


class Opened(NamedTuple):
    """A checkpoint and the data set at hand.

    Attributes:
      checkpoint: with statistics.
      dataset: what the checkpoint's run took of it, so that its split is the run's; None without.
    """

    checkpoint: ModelCheckpoint
    dataset: OfficialDataset | None


def model_path(name: str) -> Path:
    """The folder that a user means: `'bundled'`, or a path."""
    return bundled_model_path() if name == "bundled" else Path(name)


def kept_portion(checkpoint: ModelCheckpoint) -> Portion:
    """What a checkpoint's run took of its data set; that of the published runs where it does not say.

    Raises:
      ValueError: its metadata is damaged there.
    """
    return Portion.from_dict(checkpoint.metadata.get(PORTION, {}))


def open_model(name: str, dataset: OfficialDataset | None, env: str) -> Opened:
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
    try:
        taken = dataset.taken(kept_portion(checkpoint)) if dataset is not None else None
    except ValueError as error:
        raise ValueError(f"checkpoint {name}: {error}") from None
    if checkpoint.normalizer is not None:
        return Opened(checkpoint, taken)
    if taken is None:
        raise ValueError(
            f"checkpoint {name} was converted without its data set, so its statistics are unknown: set dataset to the "
            "data set's folder or zip file"
        )
    return Opened(dataclasses.replace(checkpoint, normalizer=taken.normalizer), taken)
