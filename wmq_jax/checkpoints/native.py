"""Our own checkpoints: one folder with an Orbax tree of float32 parameters and a `model.json` that describes it.

`model.json` holds the configuration, the normalisation, free metadata and the SHA-256 of every file of the tree, so
that damage is found before anything is restored. It is written last: a folder without it is no checkpoint.
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

from wmq_jax import io
from wmq_jax.data import Normalizer
from wmq_jax.io.orbax import restore_tree, save_tree
from wmq_jax.models import WorldModel, WorldModelConfig

FORMAT = "wmq_jax model 1"
_TREE, _DESCRIPTION = "params", "model.json"


@dataclasses.dataclass(frozen=True, eq=False)
class ModelCheckpoint:
    """A trained world model.

    Attributes:
      config: its sizes.
      params: its parameters, numpy float32.
      normalizer: the statistics it was trained with; None for a converted model whose data set was not at hand.
      metadata: how it was made; JSON values.
    """

    config: WorldModelConfig
    params: Any
    normalizer: Normalizer | None
    metadata: dict[str, Any]


def bundled_model_path() -> Path:
    """The folder of the Wall model that ships with the package."""
    return Path(__file__).parent / "bundled" / "wall"


def save_model(
    path: str | os.PathLike,
    config: WorldModelConfig,
    params: Any,
    normalizer: Normalizer | None,
    metadata: Mapping[str, Any],
) -> None:
    """Writes a checkpoint to the new folder `path`.

    Raises:
      ValueError: the parameters do not fit the configuration or are not finite (the parameter is named), or the folder
        is in use.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"cannot save a model to {path}: it exists and is not empty")
    params = jax.tree.map(np.asarray, params)
    check_params(config, params, where=str(path))
    path.mkdir(parents=True, exist_ok=True)
    save_tree(path / _TREE, params)
    description = {
        "format": FORMAT,
        "config": config.to_dict(),
        "normalizer": None if normalizer is None else normalizer.to_dict(),
        "metadata": dict(metadata),
        "files": _digests(path),
    }
    io.write_json(path / _DESCRIPTION, description)


def load_model(path: str | os.PathLike) -> ModelCheckpoint:
    """Reads a checkpoint.

    Raises:
      FileNotFoundError: `path` is no checkpoint folder.
      ValueError: a file is missing or damaged, or a parameter is missing, surplus, mis-shaped or not finite; the
        message names it.
    """
    path = Path(path)
    if not (path / _DESCRIPTION).is_file():
        raise FileNotFoundError(f"no model checkpoint at {path}: it has no {_DESCRIPTION}")
    description = _read_description(path)
    _check_files(path, description["files"])
    try:
        config = WorldModelConfig.from_dict(description["config"])
        normalizer = description["normalizer"]
        if normalizer is not None:
            normalizer = Normalizer.from_dict(normalizer)
    except (ValueError, TypeError) as error:
        raise ValueError(f"model checkpoint {path}: {error}") from None
    try:
        params = restore_tree(path / _TREE, abstract_params(config))
    except (ValueError, KeyError) as error:
        raise ValueError(f"model checkpoint {path}: its parameters do not fit its configuration ({error})") from None
    check_params(config, params, where=str(path))
    return ModelCheckpoint(config, params, normalizer, description["metadata"])


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


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads((path / _DESCRIPTION).read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"model checkpoint {path}: {_DESCRIPTION} is damaged ({error})") from None
    fields = {"format": str, "config": dict, "normalizer": dict | None, "metadata": dict, "files": dict}
    if not isinstance(description, dict) or not all(
        k in description and isinstance(description[k], v) for k, v in fields.items()
    ):
        raise ValueError(f"model checkpoint {path}: {_DESCRIPTION} must have the fields {', '.join(fields)}")
    if description["format"] != FORMAT:
        raise ValueError(
            f"model checkpoint {path}: its format is {description['format']!r}, this version reads {FORMAT!r}"
        )
    return description


def _check_files(path: Path, recorded: Mapping[str, str]) -> None:
    found = _digests(path)
    for name, digest in recorded.items():
        if name not in found:
            raise ValueError(f"model checkpoint {path}: its file {name} is missing")
        if found[name] != digest:
            raise ValueError(f"model checkpoint {path}: its file {name} is damaged")


def _digests(path: Path) -> dict[str, str]:
    """SHA-256 of every file of the parameter tree, by its path inside the checkpoint."""
    files = sorted(file for file in (path / _TREE).rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
