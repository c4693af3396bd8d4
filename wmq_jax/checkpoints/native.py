"""Our own checkpoints: one folder with an Orbax tree of float32 parameters and a `model.json` that describes it.

`model.json` holds the configuration, the normalisation, free metadata and the SHA-256 of every file of the tree, so
that damage is found before anything is restored. It is written last: a folder without it is no checkpoint.

Of a quantized model the kernels are stored as packed integers with their grids, and `model.json` also says how to read
them and has the activation quantizers. Loading expands them: what was saved comes back bit for bit.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wmq_jax import io, quant
from wmq_jax.checkpoints import packed
from wmq_jax.checkpoints.run_folder import SETTINGS
from wmq_jax.data import Normalizer, Portion
from wmq_jax.io.orbax import restore_tree, save_tree
from wmq_jax.io.place import archive_of
from wmq_jax.io.wording import plain, quoted
from wmq_jax.models import WorldModel, WorldModelConfig

FORMAT = "wmq_jax model 1"
PORTION = "dataset"  # the key of a checkpoint's metadata that has what its run took of the data set
LAYOUT = "layout"  # and that which has the options of the environment that it was trained in
_TREE, _DESCRIPTION = "params", "model.json"


@dataclasses.dataclass(frozen=True, eq=False)
class ModelCheckpoint:
    """A trained world model.

    Attributes:
      config: its sizes.
      params: its parameters, numpy float32; packed ones are expanded.
      normalizer: the statistics it was trained with; None for a converted model whose data set was not at hand.
      metadata: how it was made; JSON values.
      quant: activation quantizers, site -> `{'input': Quantizer}`; empty without.
      packed: how the packed parameters are stored, by name (see `wmq_jax.checkpoints.packed.describe`); empty without.
    """

    config: WorldModelConfig
    params: Any
    normalizer: Normalizer | None
    metadata: dict[str, Any]
    quant: Any = dataclasses.field(default_factory=dict)
    packed: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """What `wmq_jax.quantized.quantized_apply` takes."""
        return {"params": self.params, "quant": self.quant}

    @property
    def portion(self) -> Portion:
        """What its run took of its data set; that of the published runs where it does not say.

        Raises:
          ValueError: the metadata is damaged there.
        """
        return Portion.from_dict(self.metadata.get(PORTION, {}))


def bundled_model_path() -> Path:
    """The folder of the Wall model that ships with the package."""
    return Path(__file__).parent / "bundled" / "wall"


def model_path(name: str) -> Path:
    """The folder that a user means: `'bundled'`, or a path."""
    return bundled_model_path() if name == "bundled" else Path(name)


def save_model(
    path: str | os.PathLike,
    config: WorldModelConfig,
    params: Any,
    normalizer: Normalizer | None,
    metadata: Mapping[str, Any],
    codes: Mapping[str, quant.QuantizedKernel] | None = None,
    quantizers: Any = None,
) -> None:
    """Writes a checkpoint to the new folder `path`.

    Args:
      path: the folder.
      config, params, normalizer, metadata: see `ModelCheckpoint`.
      codes: the integers behind parameters, by name; these are stored packed.
      quantizers: activation quantizers; those that are off are left out.

    Raises:
      ValueError: the parameters do not fit the configuration, are not finite, or are not what their codes expand to
        (the parameter is named), or the folder is in use.
    """
    path = Path(path)
    io.check_new_folder(path, "a checkpoint")
    params = jax.tree.map(np.asarray, params)
    check_params(config, params, where=str(path))
    stored = quant.pack(params, codes or {})
    expanded = _by_path(quant.expand(stored))
    for name, value in _by_path(params).items():
        if not np.array_equal(value, expanded[name]):
            raise ValueError(f"cannot save a model to {path}: parameter {name} is not what its codes expand to")
    path.mkdir(parents=True, exist_ok=True)
    save_tree(path / _TREE, packed.to_arrays(stored))
    description = {
        "format": FORMAT,
        "config": config.to_dict(),
        "normalizer": None if normalizer is None else normalizer.to_dict(),
        "metadata": dict(metadata),
        "packed": packed.describe(stored),
        "quantizers": packed.quantizers_to_json(quantizers or {}),
        "files": _digests(path),
    }
    io.write_json(path / _DESCRIPTION, description)


def load_model(path: str | os.PathLike, quantized: bool = False) -> ModelCheckpoint:
    """Reads a checkpoint.

    Args:
      path: its folder.
      quantized: take quantized models too. Who does must apply their activation quantizers:
        `wmq_jax.quantized.quantized_apply(WorldModel(checkpoint.config))(checkpoint.variables, ...)`.

    Raises:
      FileNotFoundError: `path` is no checkpoint folder.
      ValueError: a file is missing or damaged, or a parameter is missing, surplus, mis-shaped or not finite (the
        message names it); or the model is quantized and may not be.
    """
    path = Path(path)
    if not is_checkpoint(path):
        raise FileNotFoundError(f"no model checkpoint at {path}: {_why_none(path)}")
    description = _read_description(path)
    if not quantized and (description["packed"] or description["quantizers"]):
        raise ValueError(f"model checkpoint {path} is quantized; give the one that it was made from")
    _check_files(path, description["files"])
    try:
        config = WorldModelConfig.from_dict(description["config"])
        normalizer = description["normalizer"]
        if normalizer is not None:
            normalizer = Normalizer.from_dict(normalizer)
        stored = packed.abstract(abstract_params(config), description["packed"])
        quantizers = packed.quantizers_from_json(description["quantizers"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"model checkpoint {path}: {error}") from None
    try:
        params = packed.from_arrays(restore_tree(path / _TREE, packed.to_arrays(stored)), stored)
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"model checkpoint {path}: its parameters do not fit its configuration ({plain(error, 500)})"
        ) from None
    params = jax.tree.map(np.asarray, quant.expand(params))
    check_params(config, params, where=str(path))
    return ModelCheckpoint(config, params, normalizer, description["metadata"], quantizers, description["packed"])


@functools.cache
def abstract_params(config: WorldModelConfig) -> Any:
    """The parameter tree of a world model as shapes and dtypes, without computing anything."""
    # Cached, since tracing the initialisation takes longer than reading a checkpoint.
    side = config.image_size
    sizes = (side, side, 3), (config.proprio_dim,), (config.action_dim,)
    inputs = [jax.ShapeDtypeStruct((1, 1, *size), jnp.float32) for size in sizes]
    return jax.eval_shape(WorldModel(config).init, jax.random.key(0), *inputs)["params"]


def params_sha256(params: Any) -> str:
    """A checksum of a tree of parameters: names, shapes and values, whatever file they came from."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def check_params(config: WorldModelConfig, params: Any, where: str) -> None:
    """Checks names, shapes and finiteness of a parameter tree.

    Args:
      config: what the parameters must fit.
      params: the tree.
      where: what the message calls it.

    Raises:
      ValueError: a parameter is missing, surplus, of another shape, or not finite; the message names it by its path.
    """
    expected, found = _by_path(abstract_params(config)), _by_path(params)
    for problem, names in (
        ("lacks", expected.keys() - found.keys()),
        ("has an unknown", found.keys() - expected.keys()),
    ):
        if names:
            raise ValueError(f"model {where} {problem} parameter {sorted(names)[0]} ({len(names)} in all)")
    for name, value in found.items():
        if value.shape != expected[name].shape:
            raise ValueError(f"model {where}: parameter {name} has shape {value.shape}, not {expected[name].shape}")
        if not np.isfinite(value).all():
            raise ValueError(f"model {where}: parameter {name} has NaN or infinite values")


def _by_path(tree: Any) -> dict[str, Any]:
    return {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def is_checkpoint(path: str | os.PathLike) -> bool:
    """Whether a folder claims to be a checkpoint of ours."""
    return (Path(path) / _DESCRIPTION).is_file()


def _why_none(path: Path) -> str:
    """What is there instead of a checkpoint, and what to do with it."""
    if (path / SETTINGS).is_file():
        found = "it is a folder of an official run"
    elif archive_of(path) is not None:
        found = "it leads into a file, as official runs are published"
    else:
        return f"it has no {_DESCRIPTION}"
    return (
        f"{found}, to be converted first: python -m experiments.convert --run_dir={path} --backbone=FILE.pth "
        "--dataset=FOLDER --out=NEW_FOLDER"
    )


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads((path / _DESCRIPTION).read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"model checkpoint {path}: {_DESCRIPTION} is damaged ({error})") from None
    if isinstance(description, dict):
        # Models in floating point, written before there were others, lack what they have none of.
        description = {"packed": {}, "quantizers": {}, **description}
    fields = {"format": str, "config": dict, "normalizer": dict | None, "metadata": dict, "files": dict}
    fields |= {"packed": dict, "quantizers": dict}
    if not isinstance(description, dict) or not all(
        k in description and isinstance(description[k], v) for k, v in fields.items()
    ):
        raise ValueError(f"model checkpoint {path}: {_DESCRIPTION} must have the fields {', '.join(fields)}")
    if description["format"] != FORMAT:
        raise ValueError(
            f"model checkpoint {path}: its format is {quoted(description['format'])}, this version reads {FORMAT!r}"
        )
    return description


def _check_files(path: Path, recorded: Mapping[str, str]) -> None:
    found = _digests(path)
    for name, digest in recorded.items():
        if name not in found:
            raise ValueError(f"model checkpoint {path}: its file {plain(name)} is missing")
        if found[name] != digest:
            raise ValueError(f"model checkpoint {path}: its file {plain(name)} is damaged")


def _digests(path: Path) -> dict[str, str]:
    """SHA-256 of every file of the parameter tree, by its path inside the checkpoint."""
    files = sorted(file for file in (path / _TREE).rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
