"""Calibration batches: the plans that the planner considered, where it considered them."""

import types

import jax
import numpy as np
import pytest

from wmq_jax.models.image import normalize_image
from wmq_jax.planning import Proposals
from wmq_jax.sweep.calibration import considered_plans, planner_rollouts
from wmq_jax.sweep.cells import Cell
from wmq_jax.sweep.run import build_engine
from wmq_jax.sweep.scheduler import run_cells

pytestmark = pytest.mark.quick


def test_plans_and_frames_are_the_planners(prepare):
    """With all samples as elites, a step's mean, its sample 0, is the mean of the samples of the step before."""
    changes = dict(planner__elites=12, planner__horizons="2", variants="fp", calibration__samples=12)
    sweep = prepare(**changes)
    engine = build_engine(sweep)
    limits = sweep.settings.calibration
    batches = list(planner_rollouts(engine, sweep.calibration, limits))
    cells = [Cell(0, limits["seed"], limits["horizon"], n) for n in range(limits["episodes"])]
    on_calibration = engine.with_data(engine.table, sweep.calibration)
    finished = {done.cell.episode: done.records for call in run_cells(on_calibration, cells) for done in call.finished}
    records = [record for episode in sorted(finished) for record in finished[episode]]
    assert len(batches) == len(records) == limits["episodes"] * limits["iterations"]
    for (visual, _, plans), record in zip(batches, records, strict=True):
        plans = plans.reshape(3, 12, *plans.shape[1:])
        np.testing.assert_allclose(plans[1:, 0], plans[:-1].mean(axis=1), atol=1e-5)
        np.testing.assert_allclose(record.actions[: limits["horizon"]], plans[-1].mean(axis=0), atol=1e-5)
        assert np.ptp(visual, axis=0).max() == 0, "one frame, all plans"
    env = sweep.problem.env
    starts = [env.reset(sweep.calibration.init[n].astype(np.float32)) for n in range(limits["episodes"])]
    before = [starts[0], records[0].env_state, starts[1], records[2].env_state]
    for (visual, _, _), state in zip(batches, before, strict=True):
        np.testing.assert_allclose(visual[0, 0], normalize_image(env.observe(state).visual), atol=1e-6)


def test_steps_that_an_early_end_left_out_are_not_looked_at(prepare):
    problem = prepare(variants="fp").problem
    shape = problem.config.horizon, problem.action_dim
    mean = np.zeros((5, *shape), np.float32)
    std = np.zeros((5, *shape), np.float32)
    mean[:2], std[:2] = [np.full(shape, 3.0), np.full(shape, -3.0)], 0.1
    plans = {}
    for taken, steps in ((5, 5), (2, 2)):
        record = types.SimpleNamespace(proposals=Proposals(mean[:steps], std[:steps], np.int32(taken)))
        plans[taken] = considered_plans(problem, record, jax.random.key(0), 0, 4).reshape(steps, 4, *shape)
    record = types.SimpleNamespace(proposals=Proposals(mean, std, np.int32(2)))
    found = considered_plans(problem, record, jax.random.key(0), 0, 4).reshape(5, 4, *shape)
    np.testing.assert_array_equal(found[:2], plans[5][:2])
    np.testing.assert_array_equal(found, plans[2][np.array([0, 1, 0, 1, 0])])
    assert (plans[5][2:] == 0).all(), "what the zeros of steps not taken would be"
