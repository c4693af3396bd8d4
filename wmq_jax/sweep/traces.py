"""What the report draws: for chosen cells, the real frames, the imagined ones, start, goal and path."""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wmq_jax.checkpoints.native import ModelCheckpoint
from wmq_jax.envs.manifest import Manifest
from wmq_jax.io import write_bytes, write_json
from wmq_jax.models import WorldModelConfig, imagine
from wmq_jax.planning import Problem, execute, num_executed
from wmq_jax.sweep.cells import Cell
from wmq_jax.sweep.engine import Engine
from wmq_jax.sweep.scheduler import run_cells
from wmq_jax.sweep.store import ResultsFolder


def chosen_variants(success: Mapping[str, float], full: str, count: int) -> list[str]:
    """Full precision and, of the others ordered by success, evenly spread ones from best to worst."""
    others = sorted((name for name in success if name != full), key=lambda name: -success[name])
    picks = np.unique(np.linspace(0, len(others) - 1, max(0, min(count - 1, len(others)))).round().astype(int))
    return ([full] if count else []) + [others[i] for i in picks]


def chosen_rows(rows: Sequence[Mapping[str, Any]], variants: Sequence[str]) -> list[tuple[str, Mapping[str, Any]]]:
    """The first success and the first failure of each variant, as (outcome, row)."""
    picks = []
    for variant in variants:
        for outcome, wanted in (("success", True), ("failure", False)):
            row = next((r for r in rows if r["variant"] == variant and r["success"][-1] == wanted), None)
            if row is not None:
                picks.append((outcome, row))
    return picks


def traced_variants(folder: ResultsFolder) -> set[str]:
    """Names of the variants that a results folder has pictures of; none if a file of theirs is damaged."""
    index, arrays = folder.path / "traces.json", folder.path / "traces.npz"
    if not index.exists() or not zipfile.is_zipfile(arrays):
        return set()
    try:
        return {entry["variant"] for entry in json.loads(index.read_text())}
    except ValueError:
        return set()


def to_pixels(images: jax.Array) -> jax.Array:
    """Decoded images in -1..1 as uint8."""
    return jnp.clip(jnp.round((images + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


def _iteration_frames(problem: Problem, config: WorldModelConfig, apply, variables, env_state, actions, horizon):
    """Frames of one executed plan, uint8: real (H, h, w, 3), imagined (H, h', w', 3); unused past the horizon."""
    observation = problem.env.observe(env_state)
    latent = problem.model.encode(variables, observation)
    frames = imagine(apply, config, variables, latent, actions[None], None, "all")
    decoded, _ = apply(variables, frames.visual[:, 1:], method="decode")
    seen = lambda count: problem.env.observe(execute(problem, env_state, actions, count)[0]).visual
    real = jax.vmap(seen)(jnp.minimum(jnp.arange(1, actions.shape[0] + 1), horizon))
    return real.astype(jnp.uint8), to_pixels(decoded[0])


def save_traces(
    folder: ResultsFolder,
    engine: Engine,
    apply: Any,
    checkpoint: ModelCheckpoint,
    names: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    manifest: Manifest,
    count: int,
) -> None:
    """Plans the chosen cells again (rows are reproducible) and saves ``traces.npz`` with ``traces.json``.

    Args:
      folder: the results.
      engine: compiled, with the sweep's table and episodes.
      apply: the model's quantized apply.
      checkpoint: the model; it must have a decoder.
      names: of the variants, in the table's order.
      rows: the finished rows, of which those of the longest horizon are drawn, as everywhere in a report.
      manifest: the episodes.
      count: how many variants are drawn.
    """
    problem = engine.problem
    longest = max(row["horizon"] for row in rows)
    rows = [row for row in rows if row["horizon"] == longest]
    success = {n: np.mean([r["success"][-1] for r in rows if r["variant"] == n]) for n in names}
    picks = chosen_rows(rows, chosen_variants(success, names[0], count))
    cells = {
        Cell(names.index(row["variant"]), row["seed"], row["horizon"], row["episode"]): outcome
        for outcome, row in picks
    }
    draw = _Tracer(problem, checkpoint.config, apply)
    index, arrays = [], {}
    finished = {done.cell: done.records for call in run_cells(engine, list(cells)) for done in call.finished}
    for cell, outcome in cells.items():
        key = f"{names[cell.variant]}/{outcome}"
        variables = jax.tree.map(lambda x: x[cell.variant], engine.table)
        variables["params"]["decoder"] = checkpoint.params["decoder"]
        ends = (manifest.init[cell.episode], manifest.goal[cell.episode])
        found = draw(variables, *ends, finished[cell], cell.horizon)
        entry = {"variant": names[cell.variant], "outcome": outcome, "key": key}
        entry |= {"episode": cell.episode, "seed": cell.seed, "horizon": cell.horizon}
        entry["goal"] = found.pop("goal_position").tolist()
        if problem.env.spec.extent is not None:
            entry["extent"] = list(problem.env.spec.extent)
        index.append(entry)
        arrays |= {f"{key}/{name}": value for name, value in found.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(folder.path / "traces.npz", buffer.getvalue())
    write_json(folder.path / "traces.json", index)


class _Tracer:
    """What happened in a cell and what the model imagined, as arrays; compiled once for all cells."""

    def __init__(self, problem: Problem, config: WorldModelConfig, apply: Any):
        self.problem = problem
        self.frames = jax.jit(lambda *args: _iteration_frames(problem, config, apply, *args))
        self._observe = jax.jit(lambda state: problem.env.observe(problem.env.reset(state)))

    def seen(self, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The picture, uint8, and the proprioception of a start or goal vector."""
        visual, proprio = jax.device_get(self._observe(state.astype(np.float32)))
        return visual.astype(np.uint8), proprio

    def __call__(self, variables, init, goal, records, horizon: int) -> dict[str, np.ndarray]:
        init, goal = init.astype(np.float32), goal.astype(np.float32)
        executed = int(num_executed(self.problem.config, horizon))
        env_state = self.problem.env.reset(init)
        real, imagined, path = [], [], [records[0].path[0]]
        for record in records:
            seen, decoded = self.frames(variables, env_state, record.actions, np.int32(horizon))
            real.append(np.asarray(seen[:executed]))
            imagined.append(np.asarray(decoded[:executed]))
            path += [*record.path[1 : executed + 1]]
            env_state = record.env_state
        goal_picture, goal_position = self.seen(goal)
        return {
            "real": np.concatenate(real),
            "imagined": np.concatenate(imagined),
            "path": np.stack(path)[:, :2],
            "start": self.seen(init)[0],
            "goal": goal_picture,
            "goal_position": goal_position[:2],
        }
