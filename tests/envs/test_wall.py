"""The Wall environment: what must hold for any layout, position and action."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wmq_jax.envs import Wall, execute, make_env
from wmq_jax.envs import wall as walls
from wmq_jax.envs.manifest import make_manifest

SEEDS = st.integers(0, 2**31 - 1)
STEP = jax.jit(jax.vmap(walls.step, in_axes=(0, 0, None, None)))
LAYOUTS = st.tuples(st.integers(10, 54), st.integers(12, 52))


def random_free(random, count, door_y, wall_x):
    """Positions in the two rooms, off the lines."""
    y = random.uniform(walls.LOW + 0.3, walls.HIGH - 0.3, count)
    left = random.uniform(walls.LOW + 0.3, wall_x - walls.HALF_WIDTH - 0.3, count)
    right = random.uniform(wall_x + walls.HALF_WIDTH + 0.3, walls.HIGH - 0.3, count)
    return np.stack([np.where(random.uniform(size=count) < 0.5, left, right), y], axis=1).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(SEEDS, LAYOUTS)
@example(107, (23, 17))
def test_an_agent_in_a_room_stays_inside_and_changes_rooms_only_through_the_door(seed, layout):
    door_y, wall_x = layout
    random = np.random.default_rng(seed)
    position = random_free(random, 256, door_y, wall_x)
    # Short of a room's width no move can pass the door and the far border at once.
    reach = min(wall_x, 64 - wall_x) - walls.LOW - 1
    action = np.clip(random.normal(size=(256, 2)) * 6, -reach / 2, reach / 2).astype(np.float32)
    new, code = (np.asarray(x) for x in STEP(position, action, door_y, wall_x))
    assert np.isfinite(new).all()
    assert (new > walls.LOW).all() and (new < walls.HIGH).all()
    crossed = (position[:, 0] < wall_x) != (new[:, 0] < wall_x)
    edge = np.where(position[:, 0] < wall_x, wall_x - walls.HALF_WIDTH, wall_x + walls.HALF_WIDTH)
    with np.errstate(divide="ignore", invalid="ignore"):
        height = position[:, 1] + (edge - position[:, 0]) / (2 * action[:, 0]) * 2 * action[:, 1]
    # The door's edges are tested first, as officially: a steep move that cuts the wall's corner ends at an edge,
    # inside.
    at_edge = (code == 1) | (code == 2)
    assert (np.abs(new[at_edge, 1] - door_y) < walls.HALF_DOOR).all()
    assert (np.abs(new[at_edge, 0] - wall_x) <= walls.HALF_WIDTH + walls.BOUNCE).all()
    through = crossed & ~at_edge
    assert (np.abs(height[through] - door_y) <= walls.HALF_DOOR + 1e-3).all()
    assert np.array_equal(new[code == 0], (position + 2 * action)[code == 0])


@settings(max_examples=30, deadline=None)
@given(SEEDS, LAYOUTS)
def test_a_move_along_an_axis_is_the_limit_of_slanted_ones(seed, layout):
    """Where the official slope form divides by zero, the outcome is that of a move slanted by next to nothing."""
    door_y, wall_x = layout
    random = np.random.default_rng(seed)
    position = random_free(random, 128, door_y, wall_x)
    position[:64, 0] = wall_x + random.uniform(-2.5, 2.5, 64)  # in the doorway
    position[:64, 1] = door_y + random.uniform(-3.5, 3.5, 64)
    along = np.where(random.uniform(size=128) < 0.5, 1.0, -1.0) * random.uniform(0.5, 5, 128)
    axis = (np.arange(128) % 2)[:, None] == np.arange(2)
    straight = np.where(axis, along[:, None], 0.0).astype(np.float32)
    slanted = np.where(axis, straight, 1e-5).astype(np.float32)
    (a, code_a), (b, code_b) = STEP(position, straight, door_y, wall_x), STEP(position, slanted, door_y, wall_x)
    assert np.array_equal(code_a, code_b)
    np.testing.assert_allclose(a, b, atol=1e-3)


def test_starting_on_a_line_is_a_hit_and_never_nan():
    lines = [(4.0, 30.0), (60.0, 30.0), (29.0, 40.0), (35.0, 40.0), (20.0, 4.0), (20.0, 60.0), (29.0, 4.0)]
    position = np.repeat(np.asarray(lines, np.float32), 5, axis=0)
    action = np.tile(np.asarray([(0, 0), (1, 0), (0, 1), (-1, 0), (0, -1)], np.float32), (len(lines), 1))
    new, code = STEP(position, action, 10, 32)
    assert np.isfinite(new).all() and (np.asarray(code) > 0).all()


@pytest.mark.parametrize("size", [65, 224])
def test_vmap_equals_single_calls_and_map(size):
    env = Wall(image_size=size)
    states = jnp.asarray(random_free(np.random.default_rng(0), 6, 10, 32))
    together = jax.jit(jax.vmap(env.observe))(states)
    for other in (jax.lax.map(env.observe, states), jax.tree.map(lambda *x: jnp.stack(x), *map(env.observe, states))):
        np.testing.assert_array_equal(together.proprio, other.proprio)
        # The last bit of an exponential may differ between a vectorised and a scalar loop: one grey level at most.
        assert np.abs(np.asarray(together.visual, np.float32) - np.asarray(other.visual, np.float32)).max() <= 1
    assert together.visual.dtype == (jnp.uint8 if size == 65 else jnp.float32)
    assert together.visual.shape == (6, size, size, 3) and env.spec.image_size == size


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_the_reddest_free_pixel_is_the_agents(seed):
    env = make_env("wall")
    state = random_free(np.random.default_rng(seed), 1, 10, 32)[0]
    image = np.asarray(env.observe(jnp.asarray(state)).visual, np.int32)
    redness = image[..., 0] - image[..., 1]
    y, x = np.unravel_index(redness.argmax(), redness.shape)
    assert np.abs([x - state[0], y - state[1]]).max() <= 1.5
    assert (redness >= 0).all() and (image[..., 1] == image[..., 2]).all()


@settings(max_examples=50, deadline=None)
@given(SEEDS)
def test_start_and_goal_lie_on_different_sides_inside_the_rooms(seed):
    start, goal = Wall().goal_states(seed)
    assert start.dtype == goal.dtype == np.float64
    assert (start[0] < 32) != (goal[0] < 32)
    for position in (start, goal):
        assert abs(position[0] - 32) >= 6.4 and 7.4 <= position[1] <= 56.6 and 7.4 <= position[0] <= 56.6


def test_success_is_a_distance_below_the_radius():
    env = Wall()
    goal = np.asarray([20.0, 30.0])
    for offset, expected in ((0.0, True), (4.499, True), (4.5, False), (9.0, False)):
        success, distance = env.evaluate(env.reset(goal + [offset, 0]), goal)
        assert bool(success) == expected and abs(float(distance) - offset) < 1e-5


def test_execute_is_a_loop_of_steps():
    env = Wall()
    state = env.reset(np.asarray([20.0, 20.0]))
    actions = np.random.default_rng(1).normal(size=(20, 2)).astype(np.float32) * 4
    last, states = execute(env, state, actions)
    for action, expected in zip(actions, states, strict=True):
        state = env.step(state, action)
        np.testing.assert_allclose(state, expected, atol=1e-4)
    np.testing.assert_array_equal(last, states[-1])


def test_a_state_with_its_own_layout_is_the_environment_of_that_layout():
    env, fixed = Wall(image_size=70), Wall(door_y=40, wall_x=22, image_size=70)
    layout = np.float32([40, 22])
    actions = np.random.default_rng(1).normal(size=(40, 2)).astype(np.float32) * 4
    with_layout = lambda position: np.concatenate([position, layout]).astype(np.float32)
    _, states = execute(fixed, fixed.reset(np.asarray([10.0, 40.0])), actions)
    last, found = execute(env, env.reset(with_layout([10.0, 40.0])), actions)
    np.testing.assert_array_equal(found[:, :2], states)
    assert (np.asarray(found)[:, 2:] == layout).all()
    for ours, theirs in zip(env.observe(last), fixed.observe(states[-1]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    goal = np.asarray([30.0, 20.0])
    assert env.evaluate(last, with_layout(goal)) == fixed.evaluate(states[-1], goal)


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("maze", {}, "unknown environment 'maze'.*wall"),
        ("wall", {"door": 3}, "no option door.*door_y"),
        ("wall", {"door_y": 100}, "door_y.*8..56.*100"),
        ("wall", {"wall_x": 20.5}, "wall_x.*20.5"),
        ("wall", {"image_size": 4}, "image_size.*16..1024"),
    ],
)
def test_bad_options_are_named(name, options, words):
    with pytest.raises(ValueError, match=words):
        make_env(name, **options)


def test_episodes_that_need_no_door_are_remarked_on():
    """The official starts and goals suit a wall in the middle, and no other."""
    episodes = lambda env: (lambda manifest: (manifest.init, manifest.goal))(make_manifest(env, "evaluation", 48, 99))
    assert Wall().remark(*episodes(Wall())) == ""
    starts, goals = episodes(Wall())
    # Inside the wall, in its door, on one side.
    starts[:3], goals[:3] = [[45, 50], [45, 10], [20, 20]], [[20, 20], [20, 20], [20, 30]]
    text = Wall(wall_x=45).remark(starts[:3], goals[:3])
    assert text == "1 of 3 episodes start or end inside the wall; 1 of 3 episodes stay on one side of the wall"
    own = [np.column_stack([states[:3], np.full((3, 2), [30, 60])]) for states in (starts, goals)]
    assert Wall(wall_x=45).remark(*own) == "3 of 3 episodes stay on one side of the wall"
