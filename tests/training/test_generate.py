"""Generated trajectories: deterministic, inside the rooms, consistent with the environment, and through the door."""

import jax
import numpy as np
import pytest

from wmq_jax.envs import Wall
from wmq_jax.training import WalkConfig, generate_trajectories
from wmq_jax.training.generate import action_limit, random_position

WALK = WalkConfig(steps=20)


@pytest.fixture(scope="module", params=[Wall(), Wall(door_y=40, wall_x=22)], ids=["official layout", "another"])
def env(request):
    return request.param


@pytest.fixture(scope="module")
def trajectories(env):
    return generate_trajectories(jax.random.key(0), env, 500, WALK)


def test_the_same_key_gives_the_same_trajectories_and_another_key_others(env, trajectories):
    again = generate_trajectories(jax.random.key(0), env, 500, WALK)
    other = generate_trajectories(jax.random.key(1), env, 500, WALK)
    for a, b, c in zip(trajectories, again, other, strict=True):
        assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_states_follow_from_actions(env, trajectories):
    states, actions = trajectories
    assert states.shape == (500, 21, 2) and actions.shape == (500, 20, 2) and states.dtype == np.float32
    step = jax.jit(jax.vmap(jax.vmap(env.step)))
    np.testing.assert_allclose(step(states[:, :-1], actions), states[:, 1:], atol=1e-3)


def test_nobody_leaves_the_rooms(env, trajectories):
    assert np.isfinite(trajectories.states).all()
    assert (trajectories.states >= 4).all() and (trajectories.states <= 60).all()
    assert np.abs(trajectories.actions).max() <= action_limit(env)


def test_steered_trajectories_pass_the_door_and_others_rarely(env):
    def share(**options):
        states = generate_trajectories(jax.random.key(2), env, 200, WalkConfig(steps=50, **options)).states
        right = states[..., 0] > env.wall_x
        return (right[:, :1] != right[:, -1:]).mean()

    assert share(steered=1.0, gaussian=0.0, speed=(3.0, 6.0)) > 0.6 > share(steered=0.0, gaussian=1.0)


def test_starts_cover_both_rooms_and_the_doorway(env):
    positions = np.asarray(jax.vmap(lambda key: random_position(key, env))(jax.random.split(jax.random.key(3), 4000)))
    x, y = positions.T
    inside = np.abs(x - env.wall_x) <= 3
    assert (np.abs(y[inside] - env.door_y) < 4).all() and inside.mean() > 0.05
    for room in (x < env.wall_x - 4, x > env.wall_x + 4):
        assert np.histogram(y[room], bins=7, range=(4, 60))[0].min() > 0.05 * room.sum()


@pytest.mark.parametrize("options, words", [({"steps": 0}, "steps"), ({"gaussian": 0.8, "steered": 0.3}, "shares")])
def test_bad_walks_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        WalkConfig(**options)
