"""An official run, read: from a run folder and a backbone file to a checkpoint in memory.

A run brings predictor, embeddings and decoder (and its encoder, if that was trained), a backbone file brings the frozen
encoder, the data set the statistics that the run was trained with.
"""

import dataclasses
import json
import os
import re
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

from wmq_jax import io
from wmq_jax.checkpoints import hydra
from wmq_jax.checkpoints.backbone import backbone_config, load_backbone
from wmq_jax.checkpoints.native import PORTION, ModelCheckpoint, check_params
from wmq_jax.checkpoints.official import MODULES, from_torch, is_unused
from wmq_jax.checkpoints.run_folder import BESIDE, checkpoint_name, open_run, settings_text
from wmq_jax.data import Normalizer, OfficialDataset
from wmq_jax.data.official import fixed_normalizer
from wmq_jax.io.place import Place
from wmq_jax.io.wording import listed, plain
from wmq_jax.models import WorldModelConfig

_LARGEST_BESIDE = 1 << 20  # characters
# Of weights in a state dict of the whole model. A backbone file lacks the `base_model` of a run's encoder.
_PREFIXES = {module: f"{module}." for module in MODULES} | {"encoder": "encoder.base_model."}
_PLANNING = ("predictor", "proprio_encoder", "action_encoder")


@dataclasses.dataclass(frozen=True, eq=False)
class OfficialModel:
    """An official world model, under official names.

    Attributes:
      state: weight name, its module first, -> array in torch's layouts.
      config: the configuration that `hydra.yaml` and the shapes describe.
      settings: contents of `hydra.yaml`.
      epoch: epochs it was trained for; 0 if the file does not say.
      normalizer: its statistics, if the folder was written by `export_torch` and had them.
      trained_encoder: whether the run has its encoder in its own checkpoint, and not in a backbone file.
    """

    state: dict[str, np.ndarray]
    config: WorldModelConfig
    settings: Mapping[str, Any]
    epoch: int
    normalizer: Normalizer | None
    trained_encoder: bool = False

    @property
    def unused(self) -> dict[str, np.ndarray]:
        """The weights that the original stores and never reads, by name, float32."""
        return {name: w.astype(np.float32) for name, w in self.state.items() if is_unused(self.config, name)}


def load_official(
    run_dir: str | os.PathLike,
    backbone: str | os.PathLike | None = None,
    epoch: str = "latest",
    heads: int | None = None,
) -> OfficialModel:
    """Reads a run folder and a backbone file.

    Args:
      run_dir: the folder of the run, on disk or inside a zip file (`outputs.zip/wall_single`).
      backbone: DINOv2's weights, as released or as safetensors; None for the file beside `hydra.yaml` that
        `export_torch` writes, or if the run trained its encoder.
      epoch: which checkpoint; 'latest' or a number.
      heads: attention heads of a backbone whose width is not a published one.

    Raises:
      FileNotFoundError: there is no such folder (those that are there are named) or file.
      ValueError: a file is refused, or has no predictor, or backbone, run and settings do not fit; the message says
        which.
    """
    run = open_run(run_dir)
    name = checkpoint_name(run, epoch)
    where = f"{run.path}/{name}"
    with run.open(name) as file:
        content = io.load_torch(file, name=where)
    settings = hydra.read_hydra(settings_text(run), f"{run.path}/hydra.yaml")
    beside = _read_beside(run)
    modules, attributes = _modules(content, where)
    recorded = beside.get("encoder_heads")
    trained_encoder = "encoder" in modules
    if trained_encoder:
        if backbone is not None:
            raise ValueError(f"{where} has an encoder of its own: leave the backbone file {backbone} out.")
        recorded = attributes["encoder"].get("base_model.blocks.0.attn.num_heads", recorded)
    else:
        modules["encoder"] = _frozen_encoder(run, settings, backbone, where)
    if heads and recorded and heads != recorded:
        raise ValueError(f"{run.path} says that its encoder has {recorded} attention heads, not {heads}.")
    config = _config(settings, modules, heads or recorded)
    if config.decoder is None:
        modules.pop("decoder", None)
    trained = content.get("epoch", 0)
    return OfficialModel(
        state={_PREFIXES[m] + name: w for m, weights in modules.items() for name, w in weights.items()},
        config=config,
        settings=settings,
        epoch=trained if isinstance(trained, int) else 0,
        normalizer=Normalizer.from_dict(beside["normalizer"]) if beside.get("normalizer") else None,
        trained_encoder=trained_encoder,
    )


def _frozen_encoder(
    run: Place, settings: Mapping[str, Any], backbone: str | os.PathLike | None, where: str
) -> dict[str, np.ndarray]:
    """Weights of a backbone: of the file given, or of the one beside the run."""
    if backbone is not None:
        return load_backbone(backbone)
    name = hydra.backbone_file(settings)
    if not run.has(name):
        raise ValueError(
            f"{where} has no encoder: it was frozen, so a backbone file must be given "
            f"(--config.official.backbone, --backbone of experiments.convert); {run.path} has no {name} either."
        )
    with run.open(name) as file:
        return load_backbone(file, f"{run.path}/{name}")


def _read_beside(run: Place) -> dict[str, Any]:
    """What `export_torch` kept of a checkpoint that a run folder has no place for; nothing for other folders."""
    if not run.has(BESIDE):
        return {}
    with run.open(BESIDE) as file:
        try:
            found = json.loads(file.read(_LARGEST_BESIDE))
            if found["normalizer"] is not None:
                Normalizer.from_dict(found["normalizer"])
            if type(found["encoder_heads"]) is not int or found["encoder_heads"] < 1:
                raise ValueError("encoder_heads must be a whole number of 1 or more")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{run.path}/{BESIDE} is damaged ({plain(error)})") from None
    return found


def _modules(content: Any, where: str) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Mapping[str, Any]]]:
    """Weights and plain attributes of each module in a checkpoint; modules may be objects or state dicts."""
    if not isinstance(content, dict):
        raise ValueError(f"{where} holds no dictionary of modules.")
    weights, attributes = {}, {}
    for module in MODULES:
        value = content.get(module)
        if isinstance(value, io.Module):
            weights[module], attributes[module] = dict(value.weights), value.attributes
        elif isinstance(value, dict) and all(
            isinstance(name, str) and isinstance(w, np.ndarray) for name, w in value.items()
        ):
            weights[module], attributes[module] = dict(value), {}
        elif value is not None:
            raise ValueError(f"{where}: its {module} is neither a module nor a dictionary of tensors.")
    missing = [module for module in _PLANNING if not weights.get(module)]
    if missing:
        raise ValueError(f"{where} has no {' and no '.join(missing)}; it holds {listed(content) or 'nothing'}.")
    weights["predictor"] = {_official_name(name): w for name, w in weights["predictor"].items()}
    if "encoder" in weights:
        weights["encoder"] = {name.removeprefix("base_model."): w for name, w in weights["encoder"].items()}
    return weights, attributes


def _official_name(name: str) -> str:
    """The official name of a predictor's weight; the released study calls parts 0 and 1 attn and ff."""
    for ours, theirs in (("attn", "0"), ("ff", "1")):
        name = re.sub(rf"^(transformer\.layers\.\d+)\.{ours}\.", rf"\1.{theirs}.", name)
    return name


def _config(settings, modules, heads) -> WorldModelConfig:
    """The configuration; sizes that `hydra.yaml` leaves to the data set and the backbone come from shapes."""
    inputs = []
    for module in ("proprio_encoder", "action_encoder"):
        kernel = modules[module].get("patch_embed.weight")
        if kernel is None or kernel.ndim != 3:
            raise ValueError(f"the {module} has no weight patch_embed.weight of shape (out, in, 1).")
        inputs.append(kernel.shape[1])
    encoder = backbone_config(modules["encoder"], hydra.encoder_feature(settings), heads)
    config = hydra.model_config(settings, encoder, *inputs)
    if config.action_dim % config.frameskip:
        raise ValueError(
            f"the action_encoder takes {config.action_dim} numbers, no multiple of frameskip {config.frameskip}."
        )
    # Before the names of all weights are compared, which would list those of every layer.
    matches = (re.match(r"transformer\.layers\.(\d+)\.", name) for name in modules["predictor"])
    layers = len({match[1] for match in matches if match})
    if layers != config.predictor.depth:
        raise ValueError(
            f"hydra.yaml says that the predictor has {config.predictor.depth} layers, but it has {layers}."
        )
    table = modules["predictor"].get("pos_embedding")
    if table is not None and table.shape[-1] != config.predictor_dim:
        raise ValueError(
            f"the run's predictor is {table.shape[-1]} wide, but with a backbone of width {encoder.width} it would be "
            f"{config.predictor_dim}: this is another backbone than the one it was trained with."
        )
    return config


def official_normalizer(
    model_settings: Mapping[str, Any],
    config: WorldModelConfig,
    dataset: OfficialDataset | None,
    kept: Normalizer | None = None,
) -> Normalizer | None:
    """The statistics that a run was trained with: of its data set, fixed ones for PushT, or none.

    Args:
      model_settings: contents of `hydra.yaml`.
      config: the model.
      dataset: its data set.
      kept: `OfficialModel.normalizer`, for a run whose data set is not given.

    Returns:
      None if they are those of a data set that is not given.

    Raises:
      ValueError: the data set does not fit the model.
    """
    widths = config.action_dim // config.frameskip, config.proprio_dim
    if not hydra.normalizes_actions(model_settings):
        zeros, ones = ([np.full(width, value) for width in widths] for value in (0.0, 1.0))
        return Normalizer(zeros[0], ones[0], zeros[1], ones[1])
    if dataset is not None:
        normalizer = dataset.taken(hydra.portion(model_settings)).normalizer
    else:
        normalizer = kept or fixed_normalizer(hydra.environment(model_settings))
    if normalizer is not None:
        found = normalizer.action_mean.size, normalizer.proprio_mean.size
        if found != widths:
            raise ValueError(
                f"the data set has actions and proprioception of {found} numbers, but the model takes {widths}."
            )
    return normalizer


def to_checkpoint(
    model: OfficialModel, normalizer: Normalizer | None, files: Mapping[str, str] = types.MappingProxyType({})
) -> ModelCheckpoint:
    """An official model as one of ours.

    Args:
      model: from `load_official`.
      normalizer: from `official_normalizer`.
      files: what it was read from, for the record (see `wmq_jax.checkpoints.digests`).

    Raises:
      ValueError: weights are missing, surplus, of other shapes or not finite; each is named.
    """
    params = from_torch(model.state, model.config)
    check_params(model.config, params, where="of the run")
    metadata = {
        "env": hydra.environment(model.settings),
        PORTION: hydra.portion(model.settings)._asdict(),
        "epoch": model.epoch,
        "official": {
            "settings": _json(model.settings),
            "files": dict(files),
            # Our parameters are float32; other dtypes are noted for the way back.
            "dtypes": {name: w.dtype.name for name, w in model.state.items() if w.dtype != np.float32},
            "unused": sorted(model.unused),
            "trained_encoder": model.trained_encoder,
        },
    }
    return ModelCheckpoint(model.config, params, normalizer, metadata)


def _json(value: Any) -> Any:
    """YAML values as JSON ones; dates become text."""
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_json(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
