"""A training stage: a pure step scanned in chunks, saved as it goes, and continued bit for bit after a kill.

The state after chunk c is a function of the settings alone: the keys of its steps are folded from their indices,
never carried, so a run that was stopped and resumed passes through the same states as one that was not; on the same
kind of device and, on a CPU, the same number of cores, since XLA divides large arrays among them.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from wmq_jax import io
from wmq_jax.io.orbax import restore_tree, save_tree

_PROGRESS, _METRICS = "progress.json", "metrics.jsonl"


class TrainState(NamedTuple):
    """What a chunk changes.

    Attributes:
      params: the trained parameters.
      opt_state: the optimizer's state.
    """

    params: Any
    opt_state: Any


class Stage(NamedTuple):
    """One stage of a training run.

    Attributes:
      name: also the name of its folder.
      chunks: how many calls of `chunk` complete it.
      init: the state before the first.
      chunk: `(state, index) -> (state, metrics)`: some optimizer steps and their mean losses, as scalars.
    """

    name: str
    chunks: int
    init: Callable[[], TrainState]
    chunk: Callable[[TrainState, int], tuple[TrainState, Mapping[str, Any]]]


class StageResult(NamedTuple):
    """The end of a stage.

    Attributes:
      state: the last state.
      metrics: of the last chunk.
      seconds: computing time over all starts, compilation included.
    """

    state: TrainState
    metrics: dict[str, float]
    seconds: float


def run_stage(stage: Stage, workdir: Path, log: Callable[[str], None], save_every: float = 20.0) -> StageResult:
    """Runs a stage to its end, from where an earlier start left it.

    Args:
      stage: what to run.
      workdir: folder of the run; the stage keeps `workdir / stage.name`.
      log: takes progress lines.
      save_every: seconds between two saved states; the last one is always saved.

    Raises:
      FloatingPointError: a loss is no longer finite; the last saved state stays.
      ValueError: the folder is damaged.
    """
    folder = workdir / stage.name
    folder.mkdir(parents=True, exist_ok=True)
    state, done, seconds = _load(stage, folder)
    metrics = _keep_metrics(folder, done)
    if done == stage.chunks:
        log(f"{stage.name}: done before")
        return StageResult(state, metrics, seconds)
    if done:
        log(f"{stage.name}: resumes after chunk {done} of {stage.chunks}")
    began = saved = time.monotonic()
    before = seconds
    for index in range(done, stage.chunks):
        state, values = stage.chunk(state, index)
        metrics = {name: float(value) for name, value in values.items()}
        now = time.monotonic()
        seconds = before + now - began
        if not np.isfinite(list(metrics.values())).all():
            raise FloatingPointError(
                f"{stage.name}: a loss is not finite in chunk {index + 1} of {stage.chunks}: {metrics}"
            )
        io.append_line(folder / _METRICS, json.dumps({"chunk": index + 1, **metrics}))
        rate = (now - began) / (index + 1 - done)
        log(_progress_line(stage, index + 1, metrics, rate))
        if index + 1 == stage.chunks or now - saved >= save_every:
            _save(folder, state, index + 1, seconds)
            saved = time.monotonic()
    return StageResult(state, metrics, seconds)


def _progress_line(stage: Stage, done: int, metrics: Mapping[str, float], rate: float) -> str:
    losses = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    left = rate * (stage.chunks - done)
    return f"{stage.name}: {done}/{stage.chunks} chunks, {losses} ({left / 60:.1f} min left of this stage)"


def _save(folder: Path, state: TrainState, done: int, seconds: float) -> None:
    """Saves a state; the progress file is the moment at which it counts."""
    name = _state_name(done)
    shutil.rmtree(folder / name, ignore_errors=True)  # left by a kill between the two writes
    save_tree(folder / name, state._asdict())
    io.write_json(folder / _PROGRESS, {"chunks": done, "seconds": seconds})
    _drop_other_states(folder, name)


def _drop_other_states(folder: Path, name: str) -> None:
    for other in folder.glob("state_*"):
        if other.name != name:
            shutil.rmtree(other)


def _load(stage: Stage, folder: Path) -> tuple[TrainState, int, float]:
    """The latest saved state, the number of chunks behind it and the seconds they took."""
    done, seconds = stage_progress(folder)
    if not done:
        return stage.init(), 0, 0.0
    name = _state_name(done)
    like = jax.eval_shape(stage.init)
    saved = restore_tree(folder / name, like._asdict())
    _drop_other_states(folder, name)  # left by a kill
    return TrainState(**jax.tree.map(jax.numpy.asarray, saved)), done, seconds


def stage_progress(folder: Path) -> tuple[int, float]:
    """How many chunks of the stage in a folder are saved, and the seconds they took; zeros where there are none.

    Raises:
      ValueError: the stage's progress file is damaged, or the state that it names is gone; the message says which.
    """
    if not (folder / _PROGRESS).exists():
        return 0, 0.0
    anew = f"delete {folder} to train this stage anew"
    try:
        progress = json.loads((folder / _PROGRESS).read_text("utf-8"))
        done, seconds = int(progress["chunks"]), float(progress["seconds"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / _PROGRESS} is damaged ({error}); {anew}") from None
    if done and not (folder / _state_name(done)).is_dir():
        raise ValueError(f"{folder} lacks {_state_name(done)}, which its {_PROGRESS} names; {anew}")
    return done, seconds


def _state_name(chunks: int) -> str:
    return f"state_{chunks:06d}"


def _keep_metrics(folder: Path, done: int) -> dict[str, float]:
    """Drops lines of chunks that will be computed again, and those that a kill tore; returns the last of the rest."""
    path = folder / _METRICS
    lines = path.read_text("utf-8", errors="replace").splitlines()[:done] if path.exists() else []
    lines = [line for line in lines if io.object_of(line) is not None]
    io.write_text(path, "".join(line + "\n" for line in lines))
    last = io.object_of(lines[-1]) if lines else {}
    return {name: value for name, value in last.items() if name != "chunk"}
