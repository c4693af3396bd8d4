"""The folder of an official training run, on disk or inside a zip file of several, as they are published.

<name>/hydra.yaml
<name>/checkpoints/model_<epoch>.pth, model_latest.pth
"""

import os
import re

from wmq_jax.checkpoints import hydra
from wmq_jax.io.place import Place, open_place
from wmq_jax.io.wording import listed

SETTINGS = "hydra.yaml"
BESIDE = "wmq_jax.json"  # ours, which the original ignores: what the other files have no place for


def open_run(path: str | os.PathLike) -> Place:
    """Finds a run folder, on disk or inside a zip file (`outputs.zip/wall_single`).

    Raises:
      FileNotFoundError: there is none; the message lists the run folders that are there.
      ValueError: the zip file cannot be read.
    """
    return open_place(path, (SETTINGS,), "run folder")


def settings_text(run: Place) -> str:
    """Contents of `hydra.yaml`.

    Raises:
      ValueError: it is no text, or damaged.
    """
    with run.open(SETTINGS) as file:
        try:
            return file.read(hydra.LARGEST + 1).decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{run.path}/{SETTINGS} is no text") from None


def checkpoint_name(run: Place, epoch: str = "latest") -> str:
    """Path, inside the run folder, of the checkpoint of an epoch; 'latest' falls back on the highest number.

    Raises:
      ValueError: there is none; those that are there are named.
    """
    epochs = [
        match[1] for name in run.files("checkpoints") if (match := re.fullmatch(r"model_(\w+)\.pth", name, re.ASCII))
    ]
    numbers = sorted((e for e in epochs if e.isdecimal()), key=int)
    if epoch == "latest" and epoch not in epochs and numbers:
        epoch = numbers[-1]
    if epoch not in epochs:
        raise ValueError(f"{run.path} has no checkpoints/model_{epoch}.pth; epochs there: {listed(epochs) or 'none'}")
    return f"checkpoints/model_{epoch}.pth"
