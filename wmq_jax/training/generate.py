"""Random trajectories of the Wall task, made on the device in one vmapped program.

Three kinds of behaviour are mixed: independent Gaussian actions, as a sampling planner's first guesses are; smooth
walks, whose actions are correlated over time; and trips steered through the door, which random motion rarely finds.
None uses a planner.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from wmq_jax.data.trajectories import Trajectories
from wmq_jax.envs import wall
from wmq_jax.envs.wall import Wall

MAX_STEPS = 100_000  # of a trajectory
MAX_ACTION = 1000  # far above what the layout lets through; float32 has room to multiply it


@dataclasses.dataclass(frozen=True)
class WalkConfig:
    """How trajectories behave; action sizes are in environment units (one unit moves the agent two pixels).

    Attributes:
      steps: environment steps T of a trajectory.
      scale: range of a trajectory's action deviation, drawn uniformly.
      gaussian: share of trajectories with independent actions.
      steered: share of trajectories steered through the door; the rest are smooth walks.
      smoothness: range of the correlation between successive actions of a smooth walk, drawn uniformly.
      speed: range of a steered trip's action length, drawn uniformly.

    Raises:
      ValueError: one of them is out of range.
    """

    steps: int = 50
    scale: tuple[float, float] = (0.5, 8.0)
    gaussian: float = 0.5
    steered: float = 0.25
    smoothness: tuple[float, float] = (0.3, 0.95)
    speed: tuple[float, float] = (1.0, 6.0)

    def __post_init__(self):
        if not 1 <= self.steps <= MAX_STEPS:
            raise ValueError(f"walks: steps must be 1..{MAX_STEPS}, not {self.steps}")
        # Here and below written so that NaN, which compares with nothing, is refused too.
        if not (self.gaussian >= 0 and self.steered >= 0 and self.gaussian + self.steered <= 1):
            raise ValueError(
                "walks: gaussian and steered are shares: non-negative, together at most 1, not "
                f"{self.gaussian} and {self.steered}"
            )
        for name, most in (("scale", MAX_ACTION), ("smoothness", 1), ("speed", MAX_ACTION)):
            limits = getattr(self, name)
            if len(limits) != 2 or not 0 <= limits[0] <= limits[1] <= most:
                raise ValueError(f"walks: {name} must be a range (low, high) within 0..{most}, not {limits}")
            # Where nothing moves, actions have no deviation to be normalised by.
            if name != "smoothness" and limits[1] == 0:
                raise ValueError(f"walks: {name} must reach above 0, not {limits}")


def generate_trajectories(key: jax.Array, env: Wall, count: int, config: WalkConfig) -> Trajectories:
    """Draws `count` trajectories; the same key gives the same trajectories.

    Args:
      key: consumed.
      env: the layout to walk in.
      count: number of trajectories N.
      config: their behaviour; T = config.steps.

    Returns:
      Numpy arrays: states (N, T + 1, 2) and actions (N, T, 2).
    """
    states, actions = _walks(jax.random.split(key, count), env, config)
    return Trajectories(np.asarray(states), np.asarray(actions))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _walks(keys, env, config):
    return jax.vmap(lambda key: _walk(key, env, config))(keys)


def _walk(key, env, config):
    """One trajectory: states (T + 1, 2) and actions (T, 2)."""
    start_key, kind_key, scale_key, smooth_key, speed_key, goal_key, noise_key = jax.random.split(key, 7)
    kind = jax.random.uniform(kind_key)
    is_gaussian, is_steered = kind < config.gaussian, kind >= 1 - config.steered
    scale = jax.random.uniform(scale_key, minval=config.scale[0], maxval=config.scale[1])
    smoothness = jax.random.uniform(smooth_key, minval=config.smoothness[0], maxval=config.smoothness[1])
    smoothness = jnp.where(is_gaussian, 0.0, smoothness)
    speed = jax.random.uniform(speed_key, minval=config.speed[0], maxval=config.speed[1])
    speed = jnp.where(is_steered, speed, 0.0)
    scale = jnp.where(is_steered, 0.5 * speed, scale)
    limit = action_limit(env)
    start = random_position(start_key, env)
    goal = _across(goal_key, env, start)

    def body(carry, noise):
        position, drift = carry
        drift = smoothness * drift + jnp.sqrt(1 - smoothness**2) * noise
        action = jnp.clip(scale * drift + speed * _towards(position, goal, env), -limit, limit)
        return (env.step(position, action), drift), (position, action)

    first, *noise = jnp.split(jax.random.normal(noise_key, (config.steps + 1, 2)), [1])
    (last, _), (states, actions) = jax.lax.scan(body, (start, first[0]), noise[0])
    return jnp.concatenate([states, last[None]]), actions


def action_limit(env: Wall) -> float:
    """The size of action with which no single move passes both the door and the room behind it.

    An agent that comes through the door is not tested against the far end of the room that it enters.
    """
    return min(env.wall_x - wall.LOW, wall.HIGH - env.wall_x) / wall.GAIN


def random_position(key: jax.Array, env: Wall) -> jax.Array:
    """A position (2,) float32, uniform over the columns of the free space and over the rows that are free there."""
    margin = wall.INSET
    position = jax.random.uniform(key, (2,), minval=wall.LOW + margin, maxval=wall.HIGH - margin)
    in_wall = jnp.abs(position[0] - env.wall_x) <= wall.HALF_WIDTH + margin
    fraction = (position[1] - wall.LOW) / (wall.HIGH - wall.LOW)
    in_door = env.door_y + (2 * fraction - 1) * (wall.HALF_DOOR - margin)
    return position.at[1].set(jnp.where(in_wall, in_door, position[1]))


def _across(key, env, start):
    """A random position in the other room than `start`."""
    fraction, y = jax.random.uniform(key, (2,))
    left, right = env.wall_x - wall.HALF_WIDTH, env.wall_x + wall.HALF_WIDTH
    from_left = start[0] < env.wall_x
    x = jnp.where(from_left, right + fraction * (wall.HIGH - right), wall.LOW + fraction * (left - wall.LOW))
    return jnp.stack([x, wall.LOW + y * (wall.HIGH - wall.LOW)])


def _towards(position, goal, env):
    """Unit vector to the next waypoint: the near mouth of the door, its far mouth, then the goal."""
    to_right = goal[0] > env.wall_x
    direction = jnp.where(to_right, 1.0, -1.0)
    mouth = wall.HALF_WIDTH + 1.0
    ahead = (position[0] - env.wall_x) * direction  # how far beyond the wall's centre
    in_rows = jnp.abs(position[1] - env.door_y) < wall.HALF_DOOR - 1
    near = jnp.stack([env.wall_x - direction * mouth, jnp.float32(env.door_y)])
    far = jnp.stack([env.wall_x + direction * (mouth + 2), jnp.float32(env.door_y)])
    waypoint = jnp.where(ahead > mouth, goal, jnp.where(in_rows | (ahead > -wall.HALF_WIDTH), far, near))
    offset = waypoint - position
    return offset / jnp.maximum(jnp.sqrt(jnp.sum(offset**2)), 1.0)
