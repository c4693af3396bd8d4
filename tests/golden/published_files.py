"""The recorded run, backbone and data set as the published files that they stand for."""

import shutil
import zipfile
from pathlib import Path

import numpy as np

from tests.golden.conftest import golden_path
from wmq_jax.io import save_torch

RUNS, BACKBONE, DATASET = "outputs.zip", "dinov2_vits14_pretrain.pth", "wall_single.zip"


def write_published(folder: Path) -> int:
    """Writes the files under their published names; returns the heads of the backbone, which is no published one."""
    (settings,) = golden_path("checkpoint").glob("outputs/*/hydra.yaml")
    with zipfile.ZipFile(folder / RUNS, "w") as archive:
        for path in (settings, *settings.parent.glob("checkpoints/*.pth")):
            archive.write(path, f"outputs/wall_single/{path.relative_to(settings.parent).as_posix()}")
    data = golden_path("dataset_wall")
    if data.is_dir():
        shutil.make_archive(folder / Path(DATASET).stem, "zip", data)
    else:
        shutil.copyfile(data, folder / DATASET)
    return write_backbone(folder / BACKBONE)


def write_backbone(path: Path) -> int:
    """Writes the backbone file; the reduced recordings have its weights in `world_model.npz`, without the mask token.

    Returns:
      Its number of attention heads.
    """
    recorded = [*golden_path("checkpoint").glob("dinov2_*_pretrain.pth")]
    with np.load(golden_path("world_model.npz")) as world:
        if recorded:
            shutil.copyfile(recorded[0], path)
        else:
            prefix = "sd/encoder.base_model."
            state = {name.removeprefix(prefix): world[name] for name in world.files if name.startswith(prefix)}
            save_torch(path, state | {"mask_token": np.zeros((1, state["cls_token"].shape[-1]), np.float32)})
        return int(world["spec/enc_heads"])
