"""Pictures of a sweep: the imagined frames stand beside the real frames of the same time."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmq_jax import sweep as sweeps
from wmq_jax.models import WorldModel
from wmq_jax.models.image import normalize_image
from wmq_jax.quantized import quantized_apply
from wmq_jax.sweep.cells import Cell
from wmq_jax.sweep.rows import from_line, row_key
from wmq_jax.sweep.run import build_engine
from wmq_jax.sweep.scheduler import run_cells
from wmq_jax.sweep.traces import to_pixels

pytestmark = pytest.mark.quick


def test_pictures_are_what_the_variant_saw_and_imagined(prepare, tmp_path):
    sweep = prepare(variants="w3", planner__seeds="0", planner__horizons="1 2", pictures=2)
    folder = sweeps.open_folder(sweep, tmp_path)
    with folder.locked():
        sweeps.run_sweep(sweep, folder)
    index, traces = json.loads((tmp_path / "traces.json").read_text()), np.load(tmp_path / "traces.npz")
    assert {entry["variant"] for entry in index} == set(sweep.names)
    rows = {row_key(row): row for row in map(from_line, (tmp_path / "rows.jsonl").read_text().splitlines())}
    assert {entry["horizon"] for entry in index} == {2}, "a report is about the longest"
    for entry in index:
        assert rows[row_key(entry)]["success"][-1] == (entry["outcome"] == "success")

    engine, env, frameskip = build_engine(sweep), sweep.problem.env, sweep.problem.frameskip
    apply = quantized_apply(WorldModel(sweep.checkpoint.config))

    @jax.jit
    def imagine(variables, visual, proprio, actions):
        frames = apply(variables, visual, proprio, actions, method="rollout").visual
        return to_pixels(apply(variables, frames, method="decode")[0])[0, 1:]

    for entry in index:
        real, imagined = (traces[f"{entry['key']}/{name}"] for name in ("real", "imagined"))
        row = sweep.names.index(entry["variant"])
        variables = jax.tree.map(lambda leaf: leaf[row], engine.table)
        variables["params"]["decoder"] = sweep.checkpoint.params["decoder"]
        calls = run_cells(engine, [Cell(row, 0, 2, entry["episode"])])
        (done,) = [done for call in calls for done in call.finished]
        state, at = env.reset(sweep.evaluation.init[entry["episode"]].astype(np.float32)), 0
        for record in done.records:
            seen, actions = env.observe(state), jnp.asarray(record.actions[:2])
            proprio = sweep.checkpoint.normalizer.normalize_proprio(seen.proprio)
            wanted = imagine(variables, normalize_image(seen.visual)[None, None], proprio[None, None], actions[None])
            count = min(2, len(imagined) - at)
            assert np.abs(imagined[at : at + count].astype(int) - np.asarray(wanted[:count]).astype(int)).max() <= 1
            for step in range(count):
                for action in sweep.checkpoint.normalizer.denormalize_action(actions[step].reshape(frameskip, -1)):
                    state = env.step(state, action)
                np.testing.assert_array_equal(real[at + step], env.observe(state).visual.astype(np.uint8))
            state, at = record.env_state, at + count
        assert at == len(real) == len(imagined) > 0
