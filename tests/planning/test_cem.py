"""CEM and gradient descent on problems with known answers, and the properties that sweeps rest on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmq_jax.planning import (
    CEMConfig,
    GDConfig,
    MPCConfig,
    cem,
    cem_init,
    cem_step,
    episode_key,
    gd,
    iteration_key,
    plan_noise,
    sample_plans,
)

pytestmark = pytest.mark.quick

TARGET = jnp.array([[0.5, -1.0], [0.0, 2.0], [1.5, 0.25]])


def quadratic(plans):
    return jnp.sum((plans - TARGET) ** 2, axis=(-2, -1))


def noise_of(config, horizon=3, size=2, seed=0):
    key = iteration_key(episode_key(seed, 5), 0)
    return lambda step: plan_noise(key, step, config.samples, horizon, size)


def test_cem_finds_the_minimum_of_a_bowl():
    config = CEMConfig(samples=200, elites=20, steps=30)
    state, proposals = jax.jit(lambda: cem(quadratic, noise_of(config), jnp.zeros((3, 2)), config))()
    np.testing.assert_allclose(state.mean, TARGET, atol=1e-2)
    assert state.finite
    spread = np.asarray(proposals.std).mean((1, 2))
    assert spread[0] == 1.0 and spread[-1] < 0.05
    np.testing.assert_array_equal(proposals.mean[0], 0)


def test_gradient_descent_finds_the_minimum_of_a_bowl():
    config = GDConfig(steps=60, learning_rate=0.2, step_noise=0.0)
    plans, finite, trace = gd(quadratic, lambda step: jnp.zeros((1, 3, 2)), jnp.ones((1, 3, 2)), config)
    np.testing.assert_allclose(plans[0], TARGET, atol=1e-4)
    assert finite.all() and trace.shape == (60, 1, 3, 2)
    np.testing.assert_array_equal(trace[0], 1)


def test_a_warm_start_is_where_sampling_begins():
    config = CEMConfig(samples=16, elites=4, steps=1)
    _, proposals = cem(quadratic, noise_of(config), TARGET, config)
    np.testing.assert_array_equal(proposals.mean[0], TARGET)
    np.testing.assert_array_equal(sample_plans(TARGET, jnp.ones_like(TARGET), noise_of(config)(0))[0], TARGET)


@settings(max_examples=8, deadline=None)
@given(samples=st.integers(2, 40), data=st.data())
def test_a_step_refits_to_the_cheapest(samples, data):
    elites = data.draw(st.integers(2, samples))
    config = CEMConfig(samples, elites, 1)
    noise = np.random.RandomState(samples).randn(samples, 3, 2).astype(np.float32)
    state = cem_step(cem_init(jnp.zeros((3, 2)), config), noise, quadratic, config)
    plans = noise.copy()
    plans[0] = 0
    best = plans[np.argsort(np.asarray(quadratic(plans)), kind="stable")[:elites]]
    np.testing.assert_allclose(state.mean, best.mean(0), atol=1e-5)
    np.testing.assert_allclose(state.std, best.std(0, ddof=1), atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_costs_that_are_not_finite_never_win(bad):
    config = CEMConfig(samples=50, elites=5, steps=10)
    cost = lambda plans: jnp.where(plans[..., 0, 0] > 0, bad, quadratic(plans))
    state, _ = cem(cost, noise_of(config), jnp.zeros((3, 2)), config)
    assert not state.finite and np.isfinite(state.mean).all()
    assert state.mean[0, 0] <= 0


def test_stop_is_asked_on_schedule_and_ends_the_optimisation():
    asked = []

    def stop(mean):
        jax.debug.callback(lambda m: asked.append(np.asarray(m).copy()), mean)
        return jnp.linalg.norm(mean - TARGET) < 1.0

    config = CEMConfig(samples=100, elites=10, steps=20, check_every=2)
    state, proposals = cem(quadratic, noise_of(config), jnp.zeros((3, 2)), config, stop)
    jax.effects_barrier()
    taken = int((np.asarray(proposals.std).sum((1, 2)) > 0).sum())
    assert taken == proposals.taken
    assert taken < config.steps and taken == 2 * len(asked)
    assert np.linalg.norm(asked[-1] - TARGET) < 1.0
    assert all(np.linalg.norm(mean - TARGET) >= 1.0 for mean in asked[:-1])
    np.testing.assert_array_equal(state.mean, asked[-1])


def test_a_shorter_plan_sees_a_prefix_of_the_noise():
    key = episode_key(3, 7)
    long, short = plan_noise(key, 2, 8, 6, 4), plan_noise(key, 2, 8, 2, 4)
    np.testing.assert_array_equal(long[:, :2], short)


def test_every_coordinate_of_a_key_matters():
    base = dict(seed=0, episode=1, iteration=2, step=3)

    def noise(seed, episode, iteration, step):
        return np.asarray(plan_noise(iteration_key(episode_key(seed, episode), iteration), step, 4, 3, 2))

    reference = noise(**base)
    assert len(np.unique(reference)) == reference.size
    for name in base:
        assert (noise(**{**base, name: base[name] + 10}) != reference).all()


@pytest.mark.parametrize("steps", [0, -1])
def test_bad_gradient_settings(steps):
    with pytest.raises(ValueError, match=f"^planner steps must be 1..10000, not {steps}$"):
        GDConfig(steps=steps)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: GDConfig(learning_rate=0), "learning_rate must be more than 0 and at most 1000000, not 0"),
        (lambda: GDConfig(step_noise=-1), "step_noise must be 0..1000, not -1"),
        (lambda: CEMConfig(init_std=1e30), r"init_std must be more than 0 and at most 1000, not 1e\+30"),
        (lambda: CEMConfig(init_std=float("nan")), "init_std must be more than 0 and at most 1000, not nan"),
        (lambda: CEMConfig(samples=10**7), "samples must be 2..1000000, not 10000000"),
        (lambda: CEMConfig(check_every=2**31), "check_every must be 0..10000, not 2147483648"),
        (lambda: MPCConfig(horizon=101), "horizon must be 1..100, not 101"),
        (lambda: MPCConfig(iterations=2**40), "iterations must be 1..1000, not 1099511627776"),
    ],
)
def test_settings_out_of_range(build, message):
    with pytest.raises(ValueError, match=f"^planner {message}$"):
        build()
