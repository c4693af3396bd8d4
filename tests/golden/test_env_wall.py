"""The Wall environment against recordings of the official one."""

import jax
import jax.numpy as jnp
import numpy as np

from wmq_jax.envs import Wall
from wmq_jax.envs import wall as walls

STEP = jax.jit(jax.vmap(walls.step))
POSITION_TOLERANCE = 1e-4


def layout_of(door_wall, count):
    """(..., 2) rows (door_y, wall_x) as two arrays of `count` entries."""
    rows = np.broadcast_to(door_wall, (count, 2))
    return rows[:, 0], rows[:, 1]


def let_through(position, action, recorded, code):
    """Axis-parallel moves that the official code lets pass: it compares NaN, which is never less."""
    free = np.abs(recorded - (position + 2 * action)).max(axis=1) < POSITION_TOLERANCE
    return (action == 0).any(axis=1) & (code == 0) & free


def check_steps(position, action, door_wall, recorded, recorded_code, compared):
    new, code = (np.asarray(x) for x in STEP(position, action, *layout_of(door_wall, len(position))))
    assert np.isfinite(new).all()
    skipped = np.isnan(recorded).any(axis=1)
    # Ours stops such a move; that is a difference only where ours hits something.
    skipped |= let_through(position, action, recorded, recorded_code) & (code != 0)
    np.testing.assert_allclose(new[~skipped], recorded[~skipped], atol=POSITION_TOLERANCE)
    np.testing.assert_array_equal(code[~skipped], recorded_code[~skipped])
    assert skipped.mean() < 0.1
    compared(new[~skipped].size + code[~skipped].size)


def test_single_steps(golden, compared):
    z = golden("env_wall.npz")
    check_steps(
        z["onestep/pos"], z["onestep/action"], z["onestep/door_wall"], z["onestep/next"], z["onestep/code"], compared
    )


def test_trajectories(golden, compared):
    """Every recorded step from its recorded start: an error of one step cannot hide in the next."""
    z = golden("env_wall.npz")
    states, actions, codes = z["states_f64"], z["actions"], z["collision_code"]
    door_wall = np.repeat(z["door_wall"], actions.shape[1], axis=0)
    flat = lambda x: x.reshape(-1, 2)
    start = flat(states[:, :-1]).astype(np.float32)
    check_steps(start, flat(actions), door_wall, flat(states[:, 1:]), codes.reshape(-1), compared)
    for kind in set(codes.reshape(-1)) - {0}:
        assert (codes == kind).sum() > 0


def test_whole_trajectories(golden, compared):
    z = golden("env_wall.npz")
    states = z["states_f64"]

    def body(state, action):
        state = jax.vmap(lambda s, a, layout: walls.step(s, a, *layout)[0])(state, action, jnp.asarray(z["door_wall"]))
        return state, state

    _, found = jax.lax.scan(body, jnp.asarray(states[:, 0], jnp.float32), jnp.asarray(z["actions"].swapaxes(0, 1)))
    clean = ~np.isnan(states).any(axis=(1, 2))
    found = np.asarray(found).swapaxes(0, 1)[clean]
    error = np.abs(found - states[clean, 1:]).max(axis=(1, 2))
    # A move within rounding of a wall's end may fall to either side of it, and the paths part there.
    assert np.median(error) < POSITION_TOLERANCE and (error < POSITION_TOLERANCE).mean() >= 0.95
    compared(found.size)


def image_is_close(image, recorded):
    difference = np.abs(image.astype(int) - recorded.astype(int))
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3
    return difference.size


def test_images(golden, compared):
    z = golden("env_wall.npz")
    for case in z.names("render/"):
        position, (door_y, wall_x) = z[f"render/{case}/pos"], (int(n) for n in z[f"render/{case}/door_wall"])
        image = np.asarray(Wall(door_y, wall_x).observe(jnp.asarray(position, jnp.float32)).visual)
        compared(image_is_close(image, z[f"render/{case}/image65_u8"].transpose(1, 2, 0)))
        resized = Wall(door_y, wall_x, 224).observe(jnp.asarray(position, jnp.float32)).visual
        samples = z.sub(f"render/{case}/visual224_chw")
        assert np.abs(samples.of(np.asarray(resized).transpose(2, 0, 1)) - samples.values).max() <= 1.001
        compared(samples.values.size)


def test_frames_of_trajectories(golden, compared):
    z = golden("env_wall.npz")
    for case in z.names("frame/"):
        if "_proprio" in case:
            continue
        index, time = (int(part) for part in case.split("_"))
        env = Wall(*(int(n) for n in z["door_wall"][index]), 224)
        state = jnp.asarray(z[f"frame/{case}/state"], jnp.float32)
        observation = env.observe(state)
        small = np.asarray(walls.render(state, env.door_y, env.wall_x))
        compared(image_is_close(small, z[f"frame/{case}/image65_u8"].transpose(1, 2, 0)))
        samples = z.sub(f"frame/{case}/visual224")
        assert np.abs(samples.of(np.asarray(observation.visual)) - samples.values).max() <= 1.001
        np.testing.assert_allclose(observation.proprio, z[f"frame/{index}_proprio"][time], atol=POSITION_TOLERANCE)
        compared(samples.values.size)


def test_goals(golden, compared):
    z = golden("env_wall.npz")
    for seed, start, goal in zip(z["goals/seeds"], z["goals/init_f64"], z["goals/goal_f64"], strict=True):
        found = Wall(wall_x=20).goal_states(int(seed))  # the boxes stay where they are when the wall is elsewhere
        np.testing.assert_array_equal(found, (start, goal))
        compared(4)


def test_success(golden, compared):
    z = golden("env_wall.npz")
    env = Wall()
    success, distance = jax.vmap(env.evaluate)(jnp.asarray(z["eval/cur_f64"], jnp.float32), z["eval/goal_f64"])
    np.testing.assert_allclose(distance, z["eval/state_dist_f64"], atol=POSITION_TOLERANCE)
    sure = np.abs(z["eval/state_dist_f64"] - walls.SUCCESS_RADIUS) > POSITION_TOLERANCE
    np.testing.assert_array_equal(np.asarray(success)[sure], z["eval/success"][sure])
    compared(2 * sure.sum())


def test_constants(golden, compared):
    recorded = golden("env_wall.npz").json("constants_json")
    ours = {
        "img_size": walls.IMAGE_SIZE,
        "border_lines": [walls.LOW, walls.HIGH],
        "half_width": walls.HALF_WIDTH,
        "door_space": walls.HALF_DOOR,
        "dot_std": walls.DOT_STD,
        "action_gain": walls.GAIN,
        "success_radius": walls.SUCCESS_RADIUS,
        "bounce": walls.BOUNCE,
        "inset": walls.INSET,
    }
    assert {name: recorded[name] for name in ours} == ours
    compared(len(ours))
