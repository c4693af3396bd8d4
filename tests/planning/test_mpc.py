"""MPC with the true simulator as the model: plans must come true, and bookkeeping must hold."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmq_jax.data import Normalizer
from wmq_jax.envs import make_env
from wmq_jax.planning import (
    CEMConfig,
    MPCConfig,
    Problem,
    RandomConfig,
    episode_key,
    execute,
    make_objective,
    mpc_init,
    mpc_iteration,
    simulator_model,
    step_noise,
)

pytestmark = pytest.mark.quick

FRAMESKIP = 5
ENV = make_env("wall")
NORMALIZER = Normalizer(np.zeros(2), np.full(2, 1.5), np.full(2, 32.0), np.full(2, 15.0))


def problem_of(objective=None, planner=CEMConfig(64, 8, 6), **mpc):
    return Problem(
        model=simulator_model(ENV, NORMALIZER, FRAMESKIP),
        env=ENV,
        objective=objective or make_objective(),
        config=MPCConfig(planner=planner, horizon=4, **mpc),
        normalizer=NORMALIZER,
        frameskip=FRAMESKIP,
    )


def iterate(problem, start, goal, horizon=4):
    """One MPC iteration: the state after it and its record."""
    key = episode_key(0, 1)
    run = jax.jit(
        lambda state: mpc_iteration(
            problem,
            None,
            state,
            jnp.asarray(goal, jnp.float32),
            step_noise(problem, key, state.iteration),
            jnp.int32(horizon),
        )
    )
    return run(mpc_init(problem, jnp.asarray(start, jnp.float32)))


def test_the_simulator_keeps_its_promises():
    """Imagined with the simulator, the predicted cost is the realised one, and the goal in the same room is reached."""
    _, record = iterate(problem_of(), [10.0, 30.0], [24.0, 44.0])
    np.testing.assert_allclose(record.predicted_cost, record.realised_cost, rtol=1e-5)
    assert record.success and record.distance < 4.5
    assert record.realised_cost < record.initial_cost


def test_all_frames_of_the_simulator_are_its_path():
    model = simulator_model(ENV, NORMALIZER, FRAMESKIP)
    start = jnp.array([10.0, 30.0])
    actions = jax.random.normal(jax.random.key(0), (3, 4, 2 * FRAMESKIP))
    frames = model.rollout(None, start, actions, None, "all")
    assert frames.visual.shape == (3, 5, 1, 2)
    np.testing.assert_allclose(frames.proprio[:, 0], np.tile(NORMALIZER.normalize_proprio(start), (3, 1)), rtol=1e-6)
    for n in range(3):
        _, path = execute(problem_of(), start, actions[n], 4)
        np.testing.assert_allclose(frames.proprio[n, 1:], NORMALIZER.normalize_proprio(path[1:]), rtol=1e-5, atol=1e-6)
    short = model.rollout(None, start, actions, jnp.int32(2), "all")
    np.testing.assert_array_equal(short.proprio[:, :3], frames.proprio[:, :3])
    np.testing.assert_array_equal(short.proprio[:, 3:], 0)
    last = model.rollout(None, start, actions, jnp.int32(2), "last")
    np.testing.assert_array_equal(last.proprio, frames.proprio[:, 2])


def test_only_the_executed_part_of_a_plan_moves_the_agent():
    actions = jnp.ones((4, 2 * FRAMESKIP)) * 0.1
    problem = problem_of()
    for count in range(5):
        state, path = execute(problem, jnp.array([10.0, 30.0]), actions, count)
        moved = 2 * 0.1 * 1.5 * FRAMESKIP * count
        np.testing.assert_allclose(state, [10.0 + moved, 30.0 + moved], rtol=1e-5)
        np.testing.assert_allclose(path[-1], state, rtol=1e-6)
        np.testing.assert_array_equal(path[0], [10.0, 30.0])


@pytest.mark.parametrize("executed", [1, 3])
def test_what_was_not_executed_starts_the_next_plan(executed):
    state, record = iterate(problem_of(executed=executed), [10.0, 30.0], [50.0, 30.0])
    assert int(state.warm_length) == 4 - executed
    np.testing.assert_array_equal(state.warm[: 4 - executed], record.actions[executed:])
    np.testing.assert_array_equal(state.warm[4 - executed :], 0)


def test_a_horizon_is_the_planner_built_for_it():
    long = problem_of()
    short = dataclasses.replace(long, config=dataclasses.replace(long.config, horizon=2))
    _, a = iterate(long, [10.0, 30.0], [50.0, 30.0], horizon=2)
    _, b = iterate(short, [10.0, 30.0], [50.0, 30.0], horizon=2)
    np.testing.assert_array_equal(a.actions[:2], b.actions)
    np.testing.assert_array_equal(a.actions[2:], 0)
    np.testing.assert_array_equal(a.distance, b.distance)
    np.testing.assert_array_equal(a.predicted_cost, b.predicted_cost)


def test_random_actions_do_not_plan():
    problem = problem_of(planner=RandomConfig())
    _, towards = iterate(problem, [10.0, 30.0], [50.0, 30.0])
    _, away = iterate(problem, [10.0, 30.0], [5.0, 30.0])
    np.testing.assert_array_equal(towards.actions, away.actions)
    assert 0.3 < np.std(towards.actions) < 3


def test_a_plan_that_already_succeeds_ends_the_optimisation():
    """The published planner's check: with the goal at the start, staying put succeeds after the first step."""
    planner = CEMConfig(64, 8, 6, init_std=0.01, check_every=1)
    _, record = iterate(problem_of(planner=planner), [20.0, 30.0], [20.5, 30.0])
    assert (np.asarray(record.proposals.std).sum((1, 2)) > 0).sum() == 1 == record.proposals.taken


def test_nonfinite_costs_are_marked_and_actions_stay_finite():
    problem = problem_of()
    poisoned = dataclasses.replace(problem.objective, cost=lambda p, g, h: jnp.full(p.visual.shape[:1], jnp.nan))
    _, record = iterate(dataclasses.replace(problem, objective=poisoned), [10.0, 30.0], [50.0, 30.0])
    assert not record.finite and np.isfinite(record.actions).all() and np.isfinite(record.distance)


def test_objectives_on_a_hand_made_case():
    from wmq_jax.models import Latent

    goal = Latent(jnp.zeros((1, 2)), jnp.zeros(3))
    frames = Latent(jnp.arange(1.0, 4.0)[None, :, None, None] * jnp.ones((1, 3, 1, 2)), jnp.ones((1, 3, 3)))
    weights = np.array([1.0, 2.0, 4.0]) / 7
    expected = (np.array([1.0, 4.0, 9.0]) @ weights + 0.5 * weights.sum()) / 3
    np.testing.assert_allclose(make_objective("all", 0.5).cost(frames, goal, 2), [expected], rtol=1e-6)
    np.testing.assert_allclose(
        make_objective("all", 0.5).cost(frames, goal, 1), [((1 * 1 + 4 * 2) / 3 + 0.5) / 2], rtol=1e-6
    )
    last = Latent(frames.visual[:, -1], frames.proprio[:, -1])
    np.testing.assert_allclose(make_objective("last", 0.5).cost(last, goal, 2), [9.5], rtol=1e-6)


@pytest.mark.parametrize("base", [1e-3, 0.5, 1.0, 1000.0])
def test_weights_of_long_horizons_do_not_overflow(base):
    from wmq_jax.models import Latent

    horizon = 20
    values = jnp.arange(1.0, horizon + 2)
    frames = Latent(values[None, :, None, None] * jnp.ones((1, horizon + 1, 1, 2)), jnp.zeros((1, horizon + 1, 3)))
    goal = Latent(jnp.zeros((1, 2)), jnp.zeros(3))
    weights = np.float64(base) ** np.arange(horizon + 1)
    expected = (np.arange(1.0, horizon + 2) ** 2 @ weights) / weights.sum() / (horizon + 1)
    np.testing.assert_allclose(make_objective("all", 0.5, base).cost(frames, goal, horizon), [expected], rtol=1e-5)
