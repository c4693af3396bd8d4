"""Checkpoints as users name them (ours by folder, the one that ships with the package, published runs as they are), and
the data set beside them.
"""

import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

from wmq_jax.checkpoints.digests import check_digests, file_digests
from wmq_jax.checkpoints.native import ModelCheckpoint, is_checkpoint, load_model, model_path
from wmq_jax.checkpoints.official_run import OfficialModel, load_official, official_normalizer, to_checkpoint
from wmq_jax.checkpoints.run_folder import SETTINGS
from wmq_jax.data import Normalizer, OfficialDataset, open_dataset
from wmq_jax.io.place import archive_of
from wmq_jax.io.wording import plain

_WEIGHTS = (".pth", ".pt", ".safetensors")


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


class Run(NamedTuple):
    """A published run as it was read.

    Attributes:
      model: under official names.
      normalizer: its statistics; None where they are those of a data set that is not given.
      dataset: all of the data set; None without.
      files: checksums by path.
    """

    model: OfficialModel
    normalizer: Normalizer | None
    dataset: OfficialDataset | None
    files: dict[str, str]


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
        run = read_run(name, dataset, official)
        checkpoint, data = to_checkpoint(run.model, run.normalizer, run.files), run.dataset
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
            f"the statistics of checkpoint {name} are unknown without its data set: set --config.dataset to its "
            "folder or zip file"
        )
    return Opened(dataclasses.replace(checkpoint, normalizer=taken.normalizer), taken)


def _is_published(name: str, options: OfficialOptions) -> bool:
    """Whether a name is that of a published run."""
    if not name:
        raise ValueError("checkpoint is empty: it must be bundled, a checkpoint's folder, or a published run's")
    if Path(name).suffix in _WEIGHTS and Path(name).is_file():
        raise ValueError(
            f"checkpoint {name} is a file of weights; name the run's folder, which has {SETTINGS} and checkpoints/"
        )
    given = options.given()
    if is_checkpoint(model_path(name)):
        if given:
            raise ValueError(f"official.{given[0]} is for published runs, but {name} is a checkpoint of ours")
        return False
    # What only looks like a run is asked for what it lacks, by the reader of runs; it lists the runs that are near.
    folder = Path(name)
    near = (run for place in (folder, folder.parent) for run in place.glob(f"*/{SETTINGS}"))
    return bool(given) or archive_of(name) is not None or (folder / SETTINGS).is_file() or any(near)


def read_run(run_dir: str | os.PathLike, dataset: str | os.PathLike | None, options: OfficialOptions) -> Run:
    """Reads a published run and its data set; the files' checksums are checked before any is parsed.

    Args:
      run_dir: as of `load_official`.
      dataset: folder or zip file of its data set; empty or None without. It may have 55 GB, which are read for a
        checksum only if `options` asks for some.
      options: how to read it.

    Raises:
      FileNotFoundError, ValueError: something cannot be read, or no file has a checksum (see `load_official`).
    """
    backbone = options.backbone or None
    expected = options.sha256.replace(",", " ").split()
    hashed = dataset if expected else None
    files = file_digests(run_dir, backbone, hashed, options.epoch)
    check_digests(files, expected)
    data = open_dataset(dataset) if dataset else None
    model = load_official(run_dir, backbone, options.epoch, options.encoder_heads or None)
    return Run(model, official_normalizer(model.settings, model.config, data, model.normalizer), data, files)
