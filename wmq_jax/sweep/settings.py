"""Settings of a sweep: a resolved config, checked before anything is loaded or compiled."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from wmq_jax.checkpoints.opening import OfficialOptions
from wmq_jax.envs import make_env
from wmq_jax.envs.manifest import MAX_SEED
from wmq_jax.io import check_name
from wmq_jax.planning import CEMConfig, GDConfig, MPCConfig, Objective, make_objective
from wmq_jax.planning.limits import MAX_HORIZON, MAX_ITERATIONS, check_range
from wmq_jax.quantized import MethodSettings, VariantSpec, parse_variant
from wmq_jax.sweep.memory import num_samples

OPTIMIZERS = {"cem": CEMConfig, "gd": GDConfig}
CALIBRATION_SOURCES = ("planner", "dataset")
GOAL_SOURCES = ("random_state", "dset")  # the official names
# What a sweep may have of anything at the most; `wmq_jax.planning.limits` has the planner's. No sweep needs more, and
# counters and arrays of more overflow or do not fit.
MAX_EPISODES = 100_000
MAX_GOAL_HORIZON = 10_000
MAX_CELLS = 1_000_000  # planned together
MAX_TILES = 65_536  # of a call
MAX_DEVICES = 65_536
MAX_PICTURES = 1000
# Of calibration; samples are held together.
_CALIBRATION = {
    "episodes": (1, MAX_EPISODES),
    "iterations": (1, MAX_ITERATIONS),
    "samples": (1, 10_000),
    "seed": (0, MAX_SEED),
    "horizon": (1, MAX_HORIZON),
}
_ENGINE = {
    "tile": (0, MAX_CELLS),
    "noise_floor_tile": (0, MAX_CELLS),
    "tiles_per_call": (1, MAX_TILES),
    "devices": (0, MAX_DEVICES),
}


@dataclasses.dataclass(frozen=True)
class SweepSettings:
    """A checked configuration.

    Attributes:
      name: of the configuration; names the default results folder.
      checkpoint: ``'bundled'``, the folder of a checkpoint, or a published run.
      official: how to read a published run.
      dataset: folder or zip file of an official data set; empty for none.
      env: name and options of the environment.
      variants: what is compared; full precision first.
      methods: what the names of methods leave open.
      mpc: planner, longest horizon, iterations.
      objective: what plans minimise.
      horizons: horizons compared, in model actions.
      seeds: the planner's seeds.
      episodes, base_seed: size and base seed of the evaluation manifest.
      goal_source: one of ``GOAL_SOURCES``; where evaluation starts and ends.
      goal_horizon: model actions from start to goal of ``dset``.
      calibration_source: one of ``CALIBRATION_SOURCES``.
      calibration: episodes, iterations and samples per optimisation step that calibration looks at, planner's seed and
        horizon; same base seed as evaluation.
      tile, tiles_per_call, devices: layout on devices; 0 chooses.
      references: whether the true simulator and random actions are run beside the model.
      noise_floor_tile: a second tile size at which all cells are computed again; 0 does not.
      pictures: how many variants get pictures.
    """

    name: str
    checkpoint: str
    official: OfficialOptions
    dataset: str
    env: Mapping[str, Any]
    variants: tuple[VariantSpec, ...]
    methods: MethodSettings
    mpc: MPCConfig
    objective: Objective
    horizons: tuple[int, ...]
    seeds: tuple[int, ...]
    episodes: int
    base_seed: int
    goal_source: str
    goal_horizon: int
    calibration_source: str
    calibration: Mapping[str, int]
    tile: int
    tiles_per_call: int
    devices: int
    references: bool
    noise_floor_tile: int
    pictures: int


def _finite(group: str, fields: Mapping[str, Any]) -> None:
    for key, value in fields.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{group}.{key} must be a finite number, not {value}")


def parse_integers(where: str, text: str | int) -> tuple[int, ...]:
    """``'3 5'`` (or ``5``) as (3, 5).

    Raises:
      ValueError: something is not a whole number, is negative, or stands twice; ``where`` names the setting.
    """
    words = str(text).replace(",", " ").split()
    if not words or not all(word.isdecimal() for word in words):
        raise ValueError(f"{where} must be whole numbers separated by spaces, not {text!r}")
    values = tuple(int(word) for word in words)
    if len(set(values)) != len(values):
        raise ValueError(f"{where} names a number twice: {text!r}")
    return values


def _planner(config: Mapping[str, Any]) -> CEMConfig | GDConfig:
    if config["optimizer"] not in OPTIMIZERS:
        raise ValueError(f"planner.optimizer {config['optimizer']!r} is not one of {', '.join(OPTIMIZERS)}")
    # Both, so that no value is out of range because it is the other one's.
    planners = {
        kind: build(**{field.name: config[field.name] for field in dataclasses.fields(build)})
        for kind, build in OPTIMIZERS.items()
    }
    if config["check_every"] > config["steps"]:
        raise ValueError(
            f"planner.check_every must be 0 (never) to planner.steps, {config['steps']}, not {config['check_every']}"
        )
    return planners[config["optimizer"]]


def parse_variants(text: str) -> tuple[VariantSpec, ...]:
    """Variants separated by white space; full precision comes first, and is added where it is missing.

    Raises:
      ValueError: there is none, one cannot be read, or two have the same name.
    """
    if not text.split():
        raise ValueError("variants must be one or more separated by spaces, such as 'w8 w4g32', not ''")
    specs = [parse_variant(word) for word in text.split()]
    full = parse_variant("fp")
    specs = [full, *(spec for spec in specs if spec != full)]
    names = [spec.name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"variants names {', '.join(twice)} twice")
    return tuple(specs)


def check_settings(config: Mapping[str, Any]) -> SweepSettings:
    """Turns a resolved config (``configs/wall.py`` lists the fields) into settings.

    Raises:
      ValueError: a value is not accepted; the message names it and what is.
    """
    planner, episodes, engine = config["planner"], config["episodes"], config["engine"]
    horizons, seeds = _check_planner(planner)
    for key, (least, most) in _CALIBRATION.items():
        check_range(f"calibration.{key}", config["calibration"][key], least, most)
    _check_sources(config)
    for key, (least, most) in _ENGINE.items():
        check_range(f"engine.{key}", engine[key], least, most)
    options = dict(config["env"])
    make_env(**options)
    mpc = MPCConfig(
        planner=_planner(planner),
        horizon=max(*horizons, config["calibration"]["horizon"]),
        iterations=planner["iterations"],
        executed=planner["executed"],
    )
    return SweepSettings(
        name=check_name(config["name"]),
        checkpoint=config["checkpoint"],
        official=OfficialOptions(**config["official"]),
        dataset=config["dataset"],
        env=options,
        variants=parse_variants(config["variants"]),
        methods=MethodSettings(**config["methods"]),
        mpc=mpc,
        objective=make_objective(planner["objective"], planner["alpha"], planner["base"]),
        horizons=horizons,
        seeds=seeds,
        episodes=check_range("episodes.count", episodes["count"], 1, MAX_EPISODES),
        base_seed=episodes["base_seed"],
        goal_source=episodes["goal_source"],
        goal_horizon=check_range("episodes.goal_horizon", episodes["goal_horizon"], 1, MAX_GOAL_HORIZON),
        calibration_source=config["calibration_source"],
        calibration=_calibration(config, mpc),
        tile=engine["tile"],
        tiles_per_call=engine["tiles_per_call"],
        devices=engine["devices"],
        references=config["references"],
        noise_floor_tile=engine["noise_floor_tile"],
        pictures=check_range("pictures", config["pictures"], 0, MAX_PICTURES),
    )


def _check_planner(planner: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Checks what fields of the planner say of each other; its horizons and seeds."""
    horizons = parse_integers("planner.horizons", planner["horizons"])
    for horizon in horizons:
        check_range("planner.horizons", horizon, 1, MAX_HORIZON)
    _finite("planner", planner)
    seeds = parse_integers("planner.seeds", planner["seeds"])
    for seed in seeds:
        check_range("planner.seeds", seed, 0, MAX_SEED)
    if not 0 <= planner["executed"] <= min(horizons):
        raise ValueError(
            f"planner.executed must be 0 (all) to the shortest horizon, {min(horizons)}, not {planner['executed']}"
        )
    if planner["optimizer"] == "gd" and planner["check_every"]:
        raise ValueError("planner.check_every is a setting of cem; gd does not ask the simulator")
    return horizons, seeds


def _calibration(config: Mapping[str, Any], mpc: MPCConfig) -> dict[str, int]:
    """What calibration looks at: of the planner's own episodes, there is no more than it plans."""
    calibration = dict(config["calibration"])
    if config["calibration_source"] == "planner":
        calibration["iterations"] = min(calibration["iterations"], mpc.iterations)
        calibration["samples"] = min(calibration["samples"], num_samples(mpc))
    return calibration


def _check_sources(config: Mapping[str, Any]) -> None:
    for where, name, known in (
        ("calibration_source", config["calibration_source"], CALIBRATION_SOURCES),
        ("episodes.goal_source", config["episodes"]["goal_source"], GOAL_SOURCES),
    ):
        if name not in known:
            raise ValueError(f"{where} {name!r} is not one of {', '.join(known)}")
        if name in ("dataset", "dset") and not config["dataset"]:
            raise ValueError(f"{where} {name} needs a data set: set --config.dataset to its folder or zip file")
