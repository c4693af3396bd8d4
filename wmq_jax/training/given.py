"""What a training run does not make itself: trajectories of an official data set, parts of a checkpoint."""

import copy
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from wmq_jax.checkpoints.native import PORTION, ModelCheckpoint, params_sha256
from wmq_jax.checkpoints.opening import OfficialOptions, Opened, open_model
from wmq_jax.data import Normalizer, OfficialDataset, Portion, Trajectories, open_dataset, wall_parts
from wmq_jax.training.predictor import TRAINED


class Given(NamedTuple):
    """What a run does not make itself.

    Attributes:
      trajectories: 'train' and 'validation', or none: they are generated.
      params: parameters by module. The encoder among them stays as it is; others are where training starts.
      normalizer: the statistics to train with; None for those of the training trajectories.
      portion: what was taken of the official data set, now or by the checkpoint's run; None for neither.
    """

    trajectories: Mapping[str, Trajectories]
    params: Mapping[str, Any]
    normalizer: Normalizer | None
    portion: Portion | None = None


def take_given(config: Mapping[str, Any], overridden: Collection[str] = ()) -> tuple[dict[str, Any], Given]:
    """Opens the data set and the checkpoint that a config names.

    Args:
      config: a resolved config, as plain dictionaries.
      overridden: dotted names of the fields that the user set.

    Returns:
      The config with the sizes of what is given in place of its own, and what is given. The config's new field `given`
      identifies it, so that a run is not resumed with something else; `official`, how it was read, is dropped.

    Raises:
      FileNotFoundError, ValueError: one of them cannot be read, or does not fit the config or the other.
    """
    config = copy.deepcopy(dict(config))
    _check_overridden(config, overridden)
    official = OfficialOptions(**config.pop("official"))
    start, dataset = None, None
    if config["init"]["checkpoint"]:
        start, dataset = _open_checkpoint(config, official)
    elif official.given():
        raise ValueError(f"official.{official.given()[0]} is for published runs: set init.checkpoint to one")
    elif config["dataset"]:
        dataset = open_dataset(config["dataset"])
    normalizer = start.normalizer if start is not None else dataset.normalizer if dataset is not None else None
    # Also where training goes on without the data set: the start has seen what its run took.
    portion = dataset.portion if dataset is not None else None
    if portion is None and start is not None and PORTION in start.metadata:
        portion = start.portion
    params = _starting_params(start, config["init"]) if start is not None else {}
    given = Given(_trajectories(config, dataset) if dataset is not None else {}, params, normalizer, portion)
    config["given"] = {
        "params_sha256": params_sha256(params) if params else "",
        "normalizer": normalizer.to_dict() if normalizer is not None else {},
        "dataset": dataset.identity() if dataset is not None else {},
    }
    return config, given


def _check_overridden(config: Mapping[str, Any], overridden: Collection[str]) -> None:
    """Refuses what the user set and what is given decides, or what is for a given model that there is not."""
    start, dataset = config["init"]["checkpoint"], config["dataset"]
    refused = {
        "model.": start and f"cannot be set beside init.checkpoint: {start} has its own sizes",
        "encoder.": start and f"cannot be set beside init.checkpoint: the encoder of {start} stays as it is",
        "data.": dataset and f"cannot be set beside dataset: {dataset} has its own trajectories",
        "init.": not start and "is for a given model: set init.checkpoint to one",
    }
    for name in sorted(overridden):
        why = next((why for group, why in refused.items() if name.startswith(group)), "")
        if why and name != "init.checkpoint":
            raise ValueError(f"{name} {why}")


def _open_checkpoint(config: dict[str, Any], official: OfficialOptions) -> Opened:
    """Loads the checkpoint; the config's model becomes its model."""
    where = config["init"]["checkpoint"]
    opened = open_model(where, config["dataset"], config["env"]["name"], official)
    config["model"] = opened.checkpoint.config.to_dict()
    if config["init"].get("dropout", -1.0) >= 0:
        config["model"]["predictor"]["dropout"] = config["init"]["dropout"]
    config["env"]["image_size"] = opened.checkpoint.config.image_size
    return opened


def _starting_params(start: ModelCheckpoint, init: Mapping[str, Any]) -> dict[str, Any]:
    """The frozen encoder, and the parts that training goes on from."""
    trained = (*(TRAINED if init["predictor"] else ()), *(("decoder",) if init["decoder"] else ()))
    return {name: start.params[name] for name in ("encoder", "encoder_stats", *trained) if name in start.params}


def _trajectories(config: dict[str, Any], dataset: OfficialDataset) -> dict[str, Trajectories]:
    """The data set's parts; the config's numbers of trajectories become theirs, or at most theirs."""
    parts = wall_parts(dataset, config["model"]["frameskip"])
    # Parts may differ in length, and clips of one length are trained on.
    steps = min(part.actions.shape[1] for part in parts.values())
    parts = {name: Trajectories(part.states[:, : steps + 1], part.actions[:, :steps]) for name, part in parts.items()}
    sizes = {name: len(part.states) for name, part in parts.items()}
    config["data"] |= sizes
    config["data"]["walk"]["steps"] = steps
    for group, field, most in (("predictor", "shard", sizes["train"]), ("validation", "rollouts", sizes["validation"])):
        config[group][field] = min(config[group][field], most)
    return parts
