"""Official runs to our checkpoints and back.

A run brings predictor, embeddings and decoder (and its encoder, if that was trained), a backbone file brings the frozen
encoder. What the original stores and never reads (DINOv2's mask token, the codebook of a decoder that does not
quantize) is kept beside our checkpoint in `unused.npz`, so that the way back is complete; what a run folder has no
place for (statistics, head count of the backbone) lies beside `hydra.yaml` in `wmq_jax.json`, so that the way forth
again is.
"""

import io as stdio
import os
import types
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from wmq_jax import io
from wmq_jax.checkpoints import hydra
from wmq_jax.checkpoints.backbone import HEADS
from wmq_jax.checkpoints.native import load_model, model_path, params_sha256, save_model
from wmq_jax.checkpoints.official import MODULES, to_torch
from wmq_jax.checkpoints.official_run import OfficialModel, to_checkpoint
from wmq_jax.checkpoints.run_folder import BESIDE
from wmq_jax.data import Normalizer
from wmq_jax.io.wording import plain
from wmq_jax.models import WorldModelConfig

UNUSED = "unused.npz"


class Mapped(NamedTuple):
    """What a conversion did.

    Attributes:
      weights, parameters: how many, by module.
      unused: names of the weights that are kept aside.
      bytes: size of the parameters.
      sha256: of the parameters' names and values; also in the config of every sweep over them.
    """

    weights: dict[str, int]
    parameters: dict[str, int]
    unused: list[str]
    bytes: int
    sha256: str


def convert_run(
    model: OfficialModel,
    out: str | os.PathLike,
    normalizer: Normalizer | None,
    files: Mapping[str, str] = types.MappingProxyType({}),
) -> Mapped:
    """Writes an official model as our checkpoint.

    Args:
      model: from `load_official`.
      out: the new folder.
      normalizer: from `official_normalizer`.
      files: what it was read from, for the record (see `wmq_jax.checkpoints.digests`).

    Raises:
      ValueError: weights are missing, surplus or of other shapes (each is named), or the folder is in use.
    """
    checkpoint = to_checkpoint(model, normalizer, files)
    buffer = stdio.BytesIO()
    np.savez(buffer, **model.unused)
    with io.new_folder(out, "a checkpoint") as folder:
        save_model(folder, checkpoint.config, checkpoint.params, normalizer, checkpoint.metadata)
        io.write_bytes(folder / UNUSED, buffer.getvalue())
    parts = {name: jax.tree.leaves(part) for name, part in checkpoint.params.items()}
    return Mapped(
        weights={name: len(leaves) for name, leaves in parts.items()},
        parameters={name: sum(x.size for x in leaves) for name, leaves in parts.items()},
        unused=sorted(model.unused),
        bytes=sum(x.nbytes for leaves in parts.values() for x in leaves),
        sha256=params_sha256(checkpoint.params),
    )


def export_torch(checkpoint: str | os.PathLike, out: str | os.PathLike) -> dict[str, dict[str, np.ndarray]]:
    """Writes our checkpoint as an official run folder of state dicts, and the encoder as a backbone file beside it; one
    that the run had trained stays among its modules.

    `load_official` and `convert_run` make the same checkpoint of the folder again, bit for bit.

    Args:
      checkpoint: a folder of `convert_run`, or of a trained model without standardised latents or residual predictions.
      out: the new folder: `hydra.yaml`, `checkpoints/model_latest.pth`, `<backbone>_pretrain.pth`, and `wmq_jax.json`
        with what these have no place for.

    Returns:
      The state dicts by module; names of a frozen encoder are those of its backbone file.

    Raises:
      FileNotFoundError, ValueError: the checkpoint cannot be read, has no official form, or `out` is in use.
    """
    source = load_model(model_path(str(checkpoint)))
    _check_official_form(source.config, str(checkpoint))
    official = source.metadata.get("official", {})
    state = to_torch(source.params, source.config)
    state |= _load_unused(model_path(str(checkpoint)), official.get("unused", []))
    state = {name: w.astype(np.dtype(official.get("dtypes", {}).get(name, w.dtype))) for name, w in state.items()}
    modules: dict[str, dict[str, np.ndarray]] = {}
    for name, weight in state.items():
        module, rest = name.split(".", 1)
        modules.setdefault(module, {})[rest] = weight
    trained_encoder = official.get("trained_encoder", False)
    if not trained_encoder:
        modules["encoder"] = {name.removeprefix("base_model."): w for name, w in modules["encoder"].items()}
    settings = official.get("settings") or hydra.hydra_settings(
        source.config, backbone_name(source.config), source.metadata.get("env", "wall"), source.portion
    )
    beside = {
        "normalizer": None if source.normalizer is None else source.normalizer.to_dict(),
        "encoder_heads": source.config.encoder.heads,
    }
    with io.new_folder(out, "a run") as folder:
        _write_run(folder, modules, settings, source.metadata.get("epoch", 0), beside, trained_encoder)
    return modules


def _check_official_form(config: WorldModelConfig, where: str) -> None:
    """Official models have none of what ours may have beside."""
    own = {
        "residual predictions": config.predictor.residual,
        "a qkv bias in its predictor": config.predictor.qkv_bias,
        "standardised latents": config.standardize_latents,
    }
    found = [name for name, is_there in own.items() if is_there]
    if found:
        raise ValueError(f"{where} has {' and '.join(found)}, which official models have not: it has no official form.")


def _write_run(
    out: Path,
    modules: Mapping[str, Any],
    settings: Mapping[str, Any],
    epoch: int,
    beside: Mapping[str, Any],
    trained_encoder: bool,
) -> None:
    (out / "checkpoints").mkdir()
    inside = [name for name in MODULES if name in modules and (trained_encoder or name != "encoder")]
    io.save_torch(out / "checkpoints" / "model_latest.pth", {"epoch": epoch} | {name: modules[name] for name in inside})
    if not trained_encoder:
        io.save_torch(out / hydra.backbone_file(settings), modules["encoder"])
    io.write_text(out / "hydra.yaml", hydra.write_hydra(settings))
    io.write_json(out / BESIDE, dict(beside))


def written_files(out: str | os.PathLike) -> list[Path]:
    """The files of a run folder that `export_torch` wrote."""
    return sorted(file for file in Path(out).rglob("*") if file.is_file())


def backbone_name(config: WorldModelConfig) -> str:
    """DINOv2's name for a backbone of these sizes; other widths are called by their number."""
    letters = dict(zip(HEADS, "sbl"))
    width = config.encoder.width
    return f"dinov2_vit{letters.get(width, width)}{config.encoder.patch}" + ("_reg" if config.encoder.registers else "")


def _load_unused(checkpoint: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    if not names:
        return {}
    if not (checkpoint / UNUSED).is_file():
        raise ValueError(f"{checkpoint} lacks {UNUSED} with {', '.join(names)}: convert it again.")
    try:
        with np.load(checkpoint / UNUSED, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{checkpoint / UNUSED} is damaged ({plain(error)}).") from None
