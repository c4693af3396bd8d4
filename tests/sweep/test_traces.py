"""Pictures of a sweep: the imagined frames stand beside the real frames of the same time."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from wmq_jax import sweep as sweeps
from wmq_jax.models import WorldModel
from wmq_jax.models.image import normalize_image
from wmq_jax.sweep.cells import Cell
from wmq_jax.sweep.run import build_engine
from wmq_jax.sweep.scheduler import run_cells
from wmq_jax.sweep.traces import to_pixels


def test_decoded_frames_are_the_rollouts(prepare, tmp_path):
    sweep = prepare(variants="fp", planner__seeds="0", planner__horizons="2", pictures=1)
    folder = sweeps.open_folder(sweep, tmp_path)
    with folder.locked():
        sweeps.run_sweep(sweep, folder)
    (entry, *_) = json.loads((tmp_path / "traces.json").read_text())
    traces = np.load(tmp_path / "traces.npz")
    real, imagined = (traces[f"{entry['key']}/{name}"] for name in ("real", "imagined"))

    engine = build_engine(sweep)
    calls = run_cells(engine, [Cell(0, 0, 2, entry["episode"])])
    (done,) = [done for call in calls for done in call.finished]
    env, model = sweep.problem.env, WorldModel(sweep.checkpoint.config)
    rollout = jax.jit(lambda *inputs: model.apply({"params": sweep.checkpoint.params}, *inputs, method="rollout"))
    decode = lambda visual: model.apply({"params": sweep.checkpoint.params}, visual, method="decode")[0]
    state, at = env.reset(sweep.evaluation.init[entry["episode"]].astype(np.float32)), 0
    for record in done.records:
        seen = env.observe(state)
        proprio = sweep.checkpoint.normalizer.normalize_proprio(seen.proprio)
        inputs = normalize_image(seen.visual)[None, None], proprio[None, None], jnp.asarray(record.actions)[None, :2]
        frames = decode(rollout(*inputs).visual)
        count = min(2, len(imagined) - at)
        wanted = np.asarray(to_pixels(frames[0, 1:])).astype(int)
        assert np.abs(imagined[at : at + count].astype(int) - wanted[:count]).max() <= 1
        state, at = record.env_state, at + count
        np.testing.assert_array_equal(real[at - 1], env.observe(state).visual.astype(np.uint8))
    assert at == len(real) == len(imagined) > 0
