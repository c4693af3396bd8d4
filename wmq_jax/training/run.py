"""A whole training run: data, encoder, predictor, decoder, validation, and the checkpoint that planners load.

The workdir holds config.json, data/, a folder per stage, model/ (the checkpoint), rollouts.png and, in the end,
summary.json. Every part is written once it is complete, so the same command again goes on where the last one stopped.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wmq_jax import io
from wmq_jax.checkpoints import native
from wmq_jax.data import Normalizer, Trajectories, load_trajectories, save_trajectories
from wmq_jax.envs import make_manifest
from wmq_jax.models import WorldModel
from wmq_jax.planning import Problem, make_objective, world_model
from wmq_jax.training.decoder import decoder_stage
from wmq_jax.training.development import plan_episodes
from wmq_jax.training.encoder import encoder_stage, feature_statistics
from wmq_jax.training.frames import Frames, frames_of
from wmq_jax.training.generate import generate_trajectories
from wmq_jax.training.given import Given
from wmq_jax.training.loop import StageResult, run_stage, stage_progress
from wmq_jax.training.predictor import predictor_stage
from wmq_jax.training.settings import TrainSettings
from wmq_jax.training.validation import draw_rollouts, imagine_trajectories
from wmq_jax.training.wording import format_summary

Log = Callable[[str], None]
_SUMMARY = "summary.json"
STAGES = ("encoder", "predictor", "decoder")  # their folders
# DINOv2's initial position table (deviation 0.02) is lost beside the patches' own features, and a small encoder then
# takes thousands of steps to learn where a patch is.
_POSITION_GAIN = 25.0


def open_workdir(workdir: str | Path, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> Path:
    """Creates the folder of a run, or checks that an existing one belongs to the same config.

    Raises:
      ValueError: the folder cannot be written, or holds a run of another config, of which a differing field is named.
    """
    workdir = io.make_workdir(Path(workdir).absolute())
    io.adopt_config(workdir, {"config": dict(config), **provenance}, ("config",))
    return workdir


def check_folder(workdir: Path) -> bool:
    """Reads what an earlier start left in a folder of `open_workdir`; whether that is all there is to do.

    Raises:
      ValueError: a file is damaged or missing; the message names it and what to delete.
    """
    for name in ("train", "validation"):
        if (workdir / "data" / f"{name}.npz").exists():
            load_trajectories(workdir / "data" / f"{name}.npz")
    for stage in STAGES:
        stage_progress(workdir / stage)
    if not (workdir / _SUMMARY).exists():
        return False
    try:
        json.loads((workdir / _SUMMARY).read_text("utf-8"))
        native.load_model(workdir / "model")
    except (ValueError, OSError) as error:
        raise ValueError(f"{error}; delete {workdir / _SUMMARY} to write it and the model anew") from None
    return True


def train(
    settings: TrainSettings, workdir: Path, log: Log = print, given: Given = Given({}, {}, None)
) -> dict[str, Any]:
    """Runs every stage that is not done yet.

    Args:
      settings: what to train.
      workdir: a folder of `open_workdir`.
      log: takes progress lines.
      given: what is not made here; a given encoder has no stage.

    Returns:
      What summary.json holds: minutes and last losses per stage, validation errors, development success.
    """
    summary_path = workdir / _SUMMARY
    if summary_path.exists():
        log(f"all is done: the model is {workdir / 'model'}, the figures are in {summary_path}")
        return json.loads(summary_path.read_text("utf-8"))
    began = time.monotonic()
    key = jax.random.key(settings.seed)
    data_key, init_key, encoder_key, predictor_key, decoder_key = jax.random.split(key, 5)
    training, validation = _trajectories(settings, workdir, data_key, given, log)
    normalizer = given.normalizer or Normalizer.fit(training.actions, training.states)
    model = WorldModel(settings.model)
    params = {**init_params(model, init_key), **jax.tree.map(jnp.asarray, dict(given.params))}
    states = jnp.asarray(training.states)
    data_seconds = time.monotonic() - began

    results: dict[str, StageResult] = {}
    if "encoder" not in given.params:
        results["encoder"] = run_stage(
            encoder_stage(model, params, settings.env, states, encoder_key, settings.encoder), workdir, log
        )
        params = {**params, "encoder": results["encoder"].state.params["encoder"]}
        if settings.model.standardize_latents:
            params["encoder_stats"] = feature_statistics(model, params, settings.env, states)

    frames = _frames(settings, training, normalizer, settings.predictor.offsets)
    results["predictor"] = run_stage(
        predictor_stage(model, params, settings.env, frames, predictor_key, settings.predictor), workdir, log
    )
    params = {**params, **results["predictor"].state.params}

    results["decoder"] = run_stage(
        decoder_stage(model, params, settings.env, states, decoder_key, settings.decoder), workdir, log
    )
    params = {**params, **results["decoder"].state.params}

    began = time.monotonic()
    summary = {"stages": {name: _stage_summary(result) for name, result in results.items()}}
    summary["stages"]["data"] = {"minutes": round(data_seconds / 60, 2)}
    summary["validation"] = _validate(settings, model, params, validation, normalizer, workdir)
    _export(settings, workdir, params, normalizer, summary, given.portion)
    summary["development"] = _plan(settings, model, params, normalizer, log)
    summary["stages"]["validation"] = {"minutes": round((time.monotonic() - began) / 60, 2)}
    io.write_json(summary_path, summary)
    log(format_summary(summary))
    log(f"the model is {workdir / 'model'}, imagined rollouts are in {workdir / 'rollouts.png'}")
    return summary


def init_params(model: WorldModel, key: jax.Array) -> dict[str, Any]:
    """Random parameters of a world model; the encoder's position table is drawn wide (see `_POSITION_GAIN`)."""
    config = model.config
    sizes = (config.image_size, config.image_size, 3), (config.proprio_dim,), (config.action_dim,)
    params = dict(jax.jit(model.init)(key, *(jnp.zeros((1, 1, *size)) for size in sizes))["params"])
    encoder = params["encoder"]
    return {**params, "encoder": {**encoder, "pos_embed": _POSITION_GAIN * encoder["pos_embed"]}}


def _trajectories(settings: TrainSettings, workdir: Path, key: jax.Array, given: Given, log: Log) -> list[Trajectories]:
    """Training and validation trajectories, from disk where an earlier start left them."""
    folder = workdir / "data"
    folder.mkdir(exist_ok=True)
    parts = []
    for name, part_key in zip(("train", "validation"), jax.random.split(key), strict=True):
        path = folder / f"{name}.npz"
        if name in given.trajectories:
            save_trajectories(path, given.trajectories[name], {"env": "wall"})
        elif not path.exists():
            count = getattr(settings.data, name)
            log(f"data: generates {count} {name} trajectories of {settings.data.walk.steps} steps")
            part = generate_trajectories(part_key, settings.env, count, settings.data.walk)
            save_trajectories(path, part, {"env": "wall", "door_y": settings.env.door_y, "wall_x": settings.env.wall_x})
        parts.append(load_trajectories(path)[0])
    return parts


def _frames(settings: TrainSettings, trajectories: Trajectories, normalizer: Normalizer, offsets: int = 1) -> Frames:
    return frames_of(trajectories, settings.env, normalizer, settings.model.frameskip, offsets)


def _stage_summary(result: StageResult) -> dict[str, float]:
    return {"minutes": round(result.seconds / 60, 2), **{name: round(x, 6) for name, x in result.metrics.items()}}


def _validate(settings, model, params, trajectories, normalizer, workdir) -> dict[str, list[float]]:
    """Errors of open-loop imagination by frame, and rollouts.png."""
    frames = jax.tree.map(lambda x: x[: settings.validation.rollouts], _frames(settings, trajectories, normalizer))
    rollouts = imagine_trajectories(model, params, settings.env, frames)
    if settings.validation.pictures:
        draw_rollouts(workdir / "rollouts.png", rollouts, settings.validation.pictures)
    errors = rollouts._asdict()
    del errors["truth"], errors["imagined"]
    return {name: [round(float(x), 6) for x in values[1:]] for name, values in errors.items()}


def _export(settings, workdir, params, normalizer, summary, portion) -> None:
    """Writes the checkpoint anew: a kill may have left a part of it."""
    shutil.rmtree(workdir / "model", ignore_errors=True)
    metadata = {"name": settings.name, "seed": settings.seed, "env": "wall", **summary}
    if portion is not None:
        metadata[native.PORTION] = portion._asdict()
    else:  # an official data set has several layouts
        metadata[native.LAYOUT] = {"door_y": settings.env.door_y, "wall_x": settings.env.wall_x}
    native.save_model(workdir / "model", settings.model, params, normalizer, metadata)


def _plan(settings, model, params, normalizer, log: Log) -> dict[str, Any]:
    """Success on development episodes after every MPC iteration."""
    chosen = settings.validation
    if not chosen.episodes:
        return {}
    log(f"validation: plans {chosen.episodes} development episodes")
    problem = Problem(
        model=world_model(settings.model, model.apply, normalizer),
        env=settings.env,
        objective=make_objective(),
        config=chosen.mpc,
        normalizer=normalizer,
        frameskip=settings.model.frameskip,
    )
    episodes = make_manifest(settings.env, "development", chosen.episodes, chosen.base_seed)
    starts, goals = (jnp.asarray(states, jnp.float32) for states in (episodes.init, episodes.goal))
    run = jax.jit(lambda variables, starts, goals: plan_episodes(problem, variables, starts, goals))
    success = np.asarray(run({"params": params}, starts, goals))
    return {"episodes": chosen.episodes, "success": [round(float(x), 4) for x in success.mean(axis=0)]}
