"""Checkpoints as users name them (ours by folder, the one that ships with the package, published runs as they are), and
the data set beside them.
"""

import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

from wmq_jax.checkpoints.digests import check_digests, file_digests
from wmq_jax.checkpoints.native import ModelCheckpoint, is_checkpoint, load_model, model_path
from wmq_jax.checkpoints.official_run import load_official, official_normalizer, to_checkpoint
from wmq_jax.checkpoints.run_folder import SETTINGS
from wmq_jax.data import OfficialDataset, open_dataset
from wmq_jax.io.place import archive_of
from wmq_jax.io.wording import plain


@dataclasses.dataclass(frozen=True)
class OfficialOptions:
    """How to read a published run; the group `official` of a config.

    Attributes:
      backbone: DINOv2's weights; empty for the file beside the run's `hydra.yaml`, or a run that trained its encoder.
      epoch: which of the run's checkpoints; 'latest' or a number.
      encoder_heads: attention heads of a backbone of unpublished width; 0 for the published ones.
      sha256: what files must have, separated by commas or spaces (see `wmq_jax.checkpoints.digests`).
    """

    backbone: str = ""
    epoch: str = "latest"
    encoder_heads: int = 0
    sha256: str = ""

    def __post_init__(self):
        object.__setattr__(self, "epoch", str(self.epoch))  # a number from a config file
        for name, kind in (("backbone", str), ("encoder_heads", int), ("sha256", str)):
            if type(getattr(self, name)) is not kind:
                what = "text" if kind is str else "a whole number"
                raise ValueError(f"official.{name} must be {what}, not {getattr(self, name)!r}")
        if self.encoder_heads < 0:
            raise ValueError(f"official.encoder_heads must be 0 (published) or more, not {self.encoder_heads}")

    def given(self) -> list[str]:
        """Names of those that are not the default."""
        return [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]


class Opened(NamedTuple):
    """A checkpoint and the data set at hand.

    Attributes:
      checkpoint: with statistics.
      dataset: what the checkpoint's run took of it, so that its split is the run's; None without.
    """

    checkpoint: ModelCheckpoint
    dataset: OfficialDataset | None


def open_model(
    name: str, dataset: str | os.PathLike | None, env: str, official: OfficialOptions = OfficialOptions()
) -> Opened:
    """Loads a checkpoint, ours or a published run; statistics that it lacks are those of the data set.

    Args:
      name: `'bundled'`, the folder of a checkpoint, or that of a published run, on disk or inside a zip file
        (`outputs.zip/wall_single`), which is converted in memory.
      dataset: folder or zip file of the official data set at hand; empty or None without.
      env: the environment that it is for.
      official: how to read a published run.

    Raises:
      FileNotFoundError, ValueError: something cannot be read (see `load_model`, `load_official`), is a model of another
        environment, or its statistics are unknown.
    """
    if _is_published(name, official):
        checkpoint, data = _convert(name, dataset, official)
    else:
        checkpoint = load_model(model_path(name))
        data = open_dataset(dataset) if dataset else None
    made_for = checkpoint.metadata.get("env", env)
    if made_for != env:
        raise ValueError(f"checkpoint {name} is a model of {plain(made_for)}, but env.name is {env}")
    try:
        taken = data.taken(checkpoint.portion) if data is not None else None
    except ValueError as error:
        raise ValueError(f"checkpoint {name}: {error}") from None
    if checkpoint.normalizer is not None:
        return Opened(checkpoint, taken)
    if taken is None:
        raise ValueError(
            f"the statistics of checkpoint {name} are unknown without its data set: set dataset to its "
            "folder or zip file"
        )
    return Opened(dataclasses.replace(checkpoint, normalizer=taken.normalizer), taken)


def _is_published(name: str, options: OfficialOptions) -> bool:
    """Whether a name is that of a published run."""
    given = options.given()
    if is_checkpoint(model_path(name)):
        if given:
            raise ValueError(f"official.{given[0]} is for published runs, but {name} is a checkpoint of ours")
        return False
    # What only looks like a run is asked for what it lacks, by the reader of runs; it lists the runs that are near.
    near = Path(name), Path(name).parent
    runs = [run for folder in near for run in folder.glob(f"*/{SETTINGS}")]
    return bool(given) or archive_of(name) is not None or (Path(name) / SETTINGS).is_file() or bool(runs)


def _convert(
    name: str, dataset: str | os.PathLike | None, options: OfficialOptions
) -> tuple[ModelCheckpoint, OfficialDataset | None]:
    """Reads a published run and its data set; files are only hashed where checksums are asked for."""
    backbone = options.backbone or None
    expected = options.sha256.replace(",", " ").split()
    files = file_digests(name, backbone, dataset, options.epoch) if expected else {}
    check_digests(files, expected)
    data = open_dataset(dataset) if dataset else None
    model = load_official(name, backbone, options.epoch, options.encoder_heads or None)
    normalizer = official_normalizer(model.settings, model.config, data, model.normalizer)
    return to_checkpoint(model, normalizer, files), data
