"""A quantized checkpoint with figures of what it cost: calibrated as a sweep is, so that it is the sweep's variant.

The folder of a run holds config.json, statistics.npz, model/ (the checkpoint) and, written last, summary.json.
"""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from wmq_jax import quant, quantized
from wmq_jax.checkpoints.native import save_model
from wmq_jax.envs.manifest import make_manifest
from wmq_jax.io import CONFIG, adopt_config, make_workdir, sha256_of, write_json
from wmq_jax.io.wording import counted
from wmq_jax.models import WorldModel
from wmq_jax.planning.limits import check_range
from wmq_jax.runtime.devices import use_compilation_cache
from wmq_jax.sweep.calibration import drawn_episodes
from wmq_jax.sweep.preparation import COMPUTED_WITH, Sweep, given_identity, planning_params, prepare
from wmq_jax.sweep.run import calibration_rollouts, compile_planner
from wmq_jax.sweep.settings import MAX_EPISODES, check_settings
from wmq_jax.sweep.statistics_file import (
    CALIBRATION,
    HELD_OUT,
    PARTS,
    PLANNER,
    Statistics,
    Stream,
    load_statistics,
    save_statistics,
)

MODEL, STATISTICS, SUMMARY = "model", "statistics.npz", "summary.json"
_IDENTITY = ("config", "statistics", *COMPUTED_WITH)

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Quantization:
    """A quantization that is ready to run.

    Attributes:
      sweep: the model, the data set and the calibration episodes, held-out ones after those that methods look at.
      spec: the variant.
      held_out: episodes for block errors; 0 for none.
      statistics: given ones, of this model; None: calibrate.
      config: contents of ``config.json``.
    """

    sweep: Sweep
    spec: quantized.VariantSpec
    held_out: int
    statistics: Statistics | None
    config: dict[str, Any]


def prepare_quantization(config: Mapping[str, Any], statistics: Sequence[str | os.PathLike] = ()) -> Quantization:
    """Loads the model and checks everything that a user can get wrong.

    Args:
      config: the resolved config (``configs/quantize.py`` lists the fields).
      statistics: statistics.npz files of earlier runs, merged; none: calibrate.

    Raises:
      ValueError, FileNotFoundError: a setting, the checkpoint, the data set, the variant or a statistics file is wrong.
    """
    words = config["variant"].split()
    if len(words) != 1:
        raise ValueError(f"variant must be one variant, not {config['variant']!r}")
    spec = quantized.parse_variant(words[0])
    if spec == quantized.VariantSpec():
        raise ValueError(f"variant '{words[0]}' leaves nothing to quantize")
    held_out = config["held_out"]
    check_range("held_out", held_out, 0, MAX_EPISODES)
    settings = _sweep_config(config)
    sweep = prepare(check_settings(settings), settings)
    episodes = sweep.settings.calibration["episodes"]
    if sweep.settings.calibration_source == "dataset" and held_out:
        training = len(sweep.dataset.split().train)
        if training <= episodes:
            raise ValueError(
                f"data set {sweep.dataset.place.path} has {training} training episodes, and calibration.episodes takes "
                f"{episodes}: leave some for the block errors, or set held_out to 0"
            )
    manifest = make_manifest(sweep.problem.env, "calibration", episodes + held_out, sweep.settings.base_seed)
    given = load_statistics(statistics) if statistics else None
    if given is not None:
        _check_given(sweep, given, held_out, ", ".join(map(str, statistics)))
    places = ("name", "engine", "checkpoint", "official", "dataset")
    decisive = {name: value for name, value in config.items() if name not in places}
    return Quantization(
        sweep=dataclasses.replace(sweep, calibration=manifest),
        spec=spec,
        held_out=held_out,
        statistics=given,
        config={
            **{name: sweep.config[name] for name in sweep.config if name not in ("config", "rows", "planner")},
            "config": json.loads(json.dumps(decisive)),
            "given": given_identity(sweep.settings, sweep.checkpoint, sweep.dataset, episodes + held_out),
            "statistics": [sha256_of(path) for path in statistics],
        },
    )


def describe_quantization(job: Quantization) -> str:
    """What will be done, for a person, before it starts."""
    sweep, limits = job.sweep, job.sweep.settings.calibration
    device, planner = sweep.config["device"], sweep.config["planner"]
    seen = _stream(job).episodes
    episodes = counted(len(seen[CALIBRATION]), "episode")
    if job.held_out:
        episodes += f", and {counted(len(seen[HELD_OUT]), 'other')} for the errors of blocks"
    if job.statistics is not None:
        looks_at = "statistics of earlier runs"
    elif not _calibrates(job):
        looks_at = "nothing: the variant needs no statistics, and held_out is 0"
    elif sweep.settings.calibration_source == "dataset":
        looks_at = f"{episodes}, of {sweep.settings.dataset}"
    else:
        plans = limits["episodes"] * limits["iterations"] + job.held_out
        looks_at = f"{episodes}: {plans} plans of {planner['samples']} samples x {planner['steps']} steps"
    lines = [
        f"model      {sweep.settings.checkpoint} ({sweep.config['model_parameters'] / 1e6:.2f} M parameters)",
        f"variant    {job.spec.name}",
        f"looks at   {looks_at}",
        f"device     {device['count']} x {device['kind']}",
    ]
    return "\n".join(lines)


def open_workdir(job: Quantization, workdir: str | os.PathLike) -> Path:
    """The folder of a run, new or of the same config; of none yet, where an earlier start left nothing but its config.

    Args:
      job: what is to be done.
      workdir: the folder, such as :func:`default_workdir`; locked, if others may use it.

    Raises:
      ValueError: it cannot be written, or holds the result of another config.
    """
    workdir = make_workdir(workdir)
    if not any((workdir / name).exists() for name in (STATISTICS, MODEL, SUMMARY)):
        (workdir / CONFIG).unlink(missing_ok=True)
    adopt_config(workdir, job.config, _IDENTITY)
    use_compilation_cache(workdir.absolute() / "compilation_cache")
    return workdir


def default_workdir(name: str, spec: quantized.VariantSpec) -> Path:
    """``results/<name of the config>-<variant>``, the variant's punctuation as dashes."""
    return Path("results") / "-".join([name, *re.findall(r"[a-z0-9]+", spec.text)])


def _calibrates(job: Quantization) -> bool:
    """Whether statistics are wanted, for the method or for the errors of blocks."""
    return bool(job.held_out) or quantized.needs_statistics(job.spec)


def run_quantization(job: Quantization, workdir: Path, log: Log = print) -> dict[str, Any]:
    """Calibrates, quantizes, measures and saves what the folder lacks; a finished folder is left as it is.

    Args:
      job: of :func:`prepare_quantization`.
      workdir: of :func:`open_workdir`.
      log: takes a line about what is done next.

    Returns:
      What summary.json holds.
    """
    if (workdir / SUMMARY).exists():
        log(f"all is done: the model is {workdir / MODEL}")
        return json.loads((workdir / SUMMARY).read_text("utf-8"))
    checkpoint = job.sweep.checkpoint
    statistics = _statistics(job, workdir, log)
    log(f"quantizes: {job.spec.name}")
    build = lambda spec: quantized.build_variant(
        checkpoint.config, checkpoint.params, spec, statistics.get(CALIBRATION), job.sweep.settings.methods
    )
    variant = build(job.spec)
    summary = {
        "variant": job.spec.text,
        "name": job.spec.name,
        "sites": quantized.summarize_sites(checkpoint.config, job.spec, variant),
        "blocks": _block_summary(job, variant, build, statistics, log),
        "bytes": quantized.summarize_sizes(checkpoint.params, variant),
    }
    # A kill may have left a part of it.
    shutil.rmtree(workdir / MODEL, ignore_errors=True)
    made = {
        **checkpoint.metadata,
        "variant": job.spec.text,
        "methods": dataclasses.asdict(job.sweep.settings.methods),
        "quantized_from": job.config["params_sha256"],
    }
    save_model(
        workdir / MODEL, checkpoint.config, variant.params, checkpoint.normalizer, made, variant.codes, variant.quant
    )
    write_json(workdir / SUMMARY, summary)
    return summary


def _sweep_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a sweep of this variant, which checks and calibrates it."""
    settings = {name: value for name, value in config.items() if name not in ("variant", "held_out")}
    settings["engine"] = {**config["engine"], "noise_floor_tile": 0}
    return {**settings, "variants": config["variant"], "references": False, "pictures": 0}


def _check_given(sweep: Sweep, given: Statistics, held_out: int, place: str) -> None:
    """Checks that statistics from files are those of the model and that all is there which may be asked for."""
    config, params = sweep.checkpoint.config, sweep.checkpoint.params
    if given.params_sha256 != sweep.given_sha256:
        raise ValueError(
            f"statistics {place} are of the model with parameters {given.params_sha256[:12]}, but checkpoint "
            f"{sweep.settings.checkpoint} has {sweep.given_sha256[:12]}; calibrate again"
        )
    wanted = [CALIBRATION] + ([HELD_OUT] if held_out else [])
    missing = [part for part in wanted if part not in given.parts]
    if missing:
        raise ValueError(f"the statistics have no part '{missing[0]}'; the parts of these files are {', '.join(PARTS)}")
    settings = sweep.settings
    quantized.check_variants(config, params, settings.variants, given.parts[CALIBRATION], settings.methods)
    for part in wanted:
        blocks = quant.block_statistics(given.parts[part])
        for path in quantized.topology(config).first_blocks():
            if path not in blocks:
                raise ValueError(f"the statistics have no sampled inputs of block '{path}' in their part '{part}'")
            quant.check_statistics({path: blocks[path]})


def _statistics(job: Quantization, workdir: Path, log: Log) -> Mapping[str, Any]:
    """The statistics given, or of an earlier start in the folder, or new ones; {} where nothing asks for them."""
    if job.statistics is not None:
        return job.statistics.parts
    if not _calibrates(job):
        return {}
    path = workdir / STATISTICS
    if not path.exists():
        save_statistics(path, Statistics(_calibrate(job, log), job.sweep.given_sha256, (_stream(job),)))
    return load_statistics([path]).parts


def _stream(job: Quantization) -> Stream:
    """What this job calibrates on."""
    sweep, limits = job.sweep, job.sweep.settings.calibration
    if sweep.settings.calibration_source == "dataset":
        drawn = drawn_episodes(sweep.dataset, {**limits, "episodes": limits["episodes"] + job.held_out})
        source = str(Path(sweep.dataset.place.path).resolve())
    else:
        drawn = sweep.calibration.seeds
        source = " ".join([PLANNER, *(f"{name}={value}" for name, value in sorted(sweep.settings.env.items()))])
    numbers = [int(number) for number in drawn]
    parts = {CALIBRATION: numbers[: limits["episodes"]], HELD_OUT: numbers[limits["episodes"] :]}
    return Stream(source, limits["seed"], parts)


def _calibrate(job: Quantization, log: Log) -> dict[str, Any]:
    """Everything that any method needs, so that the file serves other variants too, and inputs for the block errors."""
    sweep, checkpoint = job.sweep, job.sweep.checkpoint
    limits, variables = sweep.settings.calibration, {"params": checkpoint.params}
    model, engine = WorldModel(checkpoint.config), None
    if sweep.settings.calibration_source == "planner":
        plain = quantized.build_variants(
            checkpoint.config, planning_params(checkpoint.params), [quantized.VariantSpec()]
        )
        log("compiles the planner")
        engine = compile_planner(sweep, sweep.problem, plain, sweep.tile)
    log(f"calibrates on {counted(limits['episodes'], 'episode')}")
    rollouts = calibration_rollouts(sweep, lambda: engine, limits)
    seed = limits["seed"]
    found = {CALIBRATION: quantized.calibrate(model, variables, rollouts, seed=seed)}
    if job.held_out:
        log(f"looks at {counted(len(_stream(job).episodes[HELD_OUT]), 'other episode')}")
        # One future of each: what is sampled from these is independent of what searches look at.
        others = {**limits, "episodes": job.held_out, "iterations": 1, "samples": 1}
        futures = calibration_rollouts(sweep, lambda: engine, others, skip=limits["episodes"])
        chosen = [jax.tree.map(lambda x: x[n % len(x)][None], future) for n, future in enumerate(futures)]
        batch = jax.tree.map(lambda *parts: jnp.concatenate(parts), *chosen)
        found[HELD_OUT] = quantized.calibrate(model, variables, [batch], tokens=0, sequences=job.held_out, seed=seed)
    return found


def _block_summary(
    job: Quantization,
    variant: quant.State,
    build: Callable[[quantized.VariantSpec], quant.State],
    statistics: Mapping[str, Any],
    log: Log,
) -> list[dict[str, Any]]:
    """Errors of the blocks' outputs on held-out inputs beside those of plain rounding."""
    if not job.held_out:
        return []
    log("measures the errors of blocks")
    checkpoint, plain = job.sweep.checkpoint, quantized.plain_rounding(job.spec)
    errors = lambda state: quantized.block_errors(checkpoint.config, checkpoint.params, state, statistics[HELD_OUT])
    found = errors(variant)
    return quantized.summarize_blocks(job.spec, found, found if plain == job.spec else errors(build(plain)))
