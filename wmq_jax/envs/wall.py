"""The Wall task of DINO-WM: a point in two rooms, joined by a door (arXiv:2411.04983).

Coordinates (x, y) are pixels of a 65x65 image indexed [y, x]. A wall of half width 3 stands at column `wall_x` and has
a door of half height 4 at row `door_y`; the rooms end at the lines 4 and 60. One action moves the agent by twice its
value.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from wmq_jax.envs.base import EnvSpec, Observation

IMAGE_SIZE = 65
LOW, HIGH = 4.0, 60.0  # the outer lines, on both axes
HALF_WIDTH = 3  # of the wall
HALF_DOOR = 4  # of the door's opening
GAIN = 2.0  # pixels moved by a unit action
BOUNCE = 0.5  # distance put between the agent and what it hit
INSET = 0.3  # a bounced agent that still touches a line is put this far inside
DOT_STD = 1.7  # of the agent's Gaussian dot, in pixels
SUCCESS_RADIUS = 4.5  # pixels
# Ends of the official start and goal boxes. They belong to a wall at 32, and stay when the wall is elsewhere.
LEFT_ROOM_X, RIGHT_ROOM_X, ROOM_Y = (7.4, 25.6), (38.4, 56.6), (7.4, 56.6)


@dataclasses.dataclass(frozen=True)
class Wall:
    """The Wall environment as pure JAX functions; a state is the agent's position (x, y), float32.

    A state may also bring its own layout, (x, y, door_y, wall_x), as trajectories of official data sets do: it then
    stands in place of the environment's.

    Attributes:
      door_y: row of the door's centre.
      wall_x: column of the wall's centre.
      image_size: side of the observed image: 65 as drawn (uint8), any other size resized as the official 224 is
        (float32).
    """

    door_y: int = 10
    wall_x: int = 32
    image_size: int = IMAGE_SIZE

    def __post_init__(self):
        for name, low, high in (("door_y", 8, 56), ("wall_x", 8, 56), ("image_size", 16, 1024)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
                raise ValueError(f"wall: {name} must be a whole number in {low}..{high}, not {value!r}")

    @property
    def spec(self) -> EnvSpec:
        edge = IMAGE_SIZE - 0.5
        return EnvSpec(
            "wall",
            action_dim=2,
            proprio_dim=2,
            state_dim=2,
            image_size=self.image_size,
            on_device=True,
            extent=(-0.5, edge, edge, -0.5),
        )

    def reset(self, init_state):
        return jnp.asarray(init_state, jnp.float32)

    def step(self, state, action):
        position, layout = self._parts(state)
        moved = step(position, action, *layout)[0]
        return moved if len(state) == 2 else jnp.concatenate([moved, state[2:]])

    def observe(self, state) -> Observation:
        position, layout = self._parts(state)
        visual = render(position, *layout)
        if self.image_size != IMAGE_SIZE:
            visual = jax.image.resize(visual.astype(jnp.float32), (self.image_size, self.image_size, 3), "bilinear")
        return Observation(visual=visual, proprio=position)

    def _parts(self, state):
        """Position (2,) and layout (door_y, wall_x) of a state."""
        return (state, (self.door_y, self.wall_x)) if len(state) == 2 else (state[:2], (state[2], state[3]))

    def evaluate(self, state, goal_state):
        offset = state[:2] - jnp.asarray(goal_state, jnp.float32)[:2]
        distance = jnp.sqrt(jnp.sum(offset**2))
        return distance < SUCCESS_RADIUS, distance

    def goal_states(self, seed: int):
        random = np.random.RandomState(seed)
        start_x, goal_x = random.uniform(*LEFT_ROOM_X), random.uniform(*RIGHT_ROOM_X)
        start_y, goal_y = random.uniform(*ROOM_Y), random.uniform(*ROOM_Y)
        if random.uniform() < 0.5:
            start_x, goal_x = goal_x, start_x
        return np.array([start_x, start_y]), np.array([goal_x, goal_y])

    def remark(self, init_states: np.ndarray, goal_states: np.ndarray) -> str:
        """Which episodes do not lead through the door: the official starts and goals suit a wall in the middle."""
        starts, goals = (states[:, :2] for states in (init_states, goal_states))
        own = init_states.shape[1] > 2
        door_y, wall_x = init_states[:, 2:4].T if own else (self.door_y, self.wall_x)
        beside = lambda at: (np.abs(at[:, 0] - wall_x) <= HALF_WIDTH) & (np.abs(at[:, 1] - door_y) > HALF_DOOR)
        within = beside(starts) | beside(goals)
        same = ~within & ((starts[:, 0] < wall_x) == (goals[:, 0] < wall_x))
        parts = [f"{within.sum()} of {len(starts)} episodes start or end inside the wall"] * bool(within.any())
        parts += [f"{same.sum()} of {len(starts)} episodes stay on one side of the wall"] * bool(same.any())
        return "; ".join(parts)


def step(position: jax.Array, action: jax.Array, door_y, wall_x) -> tuple[jax.Array, jax.Array]:
    """One move of the agent, stopped by the first thing it hits.

    With p the position, q = p + 2a and the segment p -> q, the first of these that applies decides: the door's two
    horizontal edges inside the wall (codes 1 and 2), a vertical line of the agent's side (3) or an outer horizontal
    line (4) whichever crosses nearer, nothing (0). Crossings are computed from the fraction of the segment travelled,
    so that a move along an axis, where the official slope form divides by zero and returns NaN, meets the line where
    one expects.

    Args:
      position: (2,) float32.
      action: (2,) float32, unclipped.
      door_y, wall_x: the layout; may be traced.

    Returns:
      The new position (2,) float32 and the collision code, int32.
    """
    position, action = jnp.asarray(position, jnp.float32), jnp.asarray(action, jnp.float32)
    aim = position + GAIN * action
    px, py = position
    qx, qy = aim
    left_of_wall = wall_x > px
    left = jnp.where(left_of_wall, LOW, wall_x + HALF_WIDTH)
    right = jnp.where(left_of_wall, wall_x - HALF_WIDTH, HIGH)

    # The lower and upper edges of the doorway, met from inside it.
    upper, lower = door_y + HALF_DOOR, door_y - HALF_DOOR
    upper_x, lower_x = _crossing(px, qx, py, qy, upper), _crossing(px, qx, py, qy, lower)
    hits_upper = (py < upper) & (upper < qy) & (jnp.abs(upper_x - wall_x) <= HALF_WIDTH)
    hits_lower = (qy < lower) & (lower < py) & (jnp.abs(lower_x - wall_x) <= HALF_WIDTH)

    # Vertical lines of the agent's side; the wall's line has a hole, the outer one has none.
    left_y, right_y = _crossing(py, qy, px, qx, left), _crossing(py, qy, px, qx, right)
    hits_left = _touches(px, qx, left) & (left_of_wall | _beside_door(left_y, door_y))
    hits_right = _touches(px, qx, right) & (~left_of_wall | _beside_door(right_y, door_y))
    hits_vertical = hits_left | hits_right
    vertical_x = jnp.where(hits_left, left, right)
    vertical = jnp.stack([vertical_x, jnp.where(hits_left, left_y, right_y)])

    # The outer horizontal lines.
    hits_top, hits_bottom = _touches(py, qy, LOW), _touches(py, qy, HIGH)
    hits_horizontal = hits_top | hits_bottom
    horizontal_y = jnp.where(hits_top, LOW, HIGH)
    horizontal = jnp.stack([_crossing(px, qx, py, qy, horizontal_y), horizontal_y])

    nearer = jnp.sum((vertical - position) ** 2) < jnp.sum((horizontal - position) ** 2)
    takes_vertical = hits_vertical & (~hits_horizontal | nearer)
    stopped = jnp.where(
        takes_vertical,
        vertical + jnp.stack([BOUNCE * jnp.sign(px - vertical_x), BOUNCE]),
        horizontal + jnp.stack([BOUNCE, BOUNCE * jnp.sign(py - horizontal_y)]),
    )
    low, high = jnp.stack([left, LOW]), jnp.stack([right, HIGH])
    stopped = jnp.where(stopped <= low, low + INSET, jnp.where(stopped >= high, high - INSET, stopped))

    cases = [hits_upper, hits_lower, takes_vertical, hits_horizontal]
    new = jnp.where(takes_vertical | hits_horizontal, stopped, aim)
    new = jnp.where(hits_lower, jnp.stack([lower_x + BOUNCE, lower + BOUNCE]), new)
    new = jnp.where(hits_upper, jnp.stack([upper_x + BOUNCE, upper - BOUNCE]), new)
    return new.astype(jnp.float32), jnp.select(cases, [1, 2, 3, 4], 0).astype(jnp.int32)


def render(position: jax.Array, door_y, wall_x) -> jax.Array:
    """The official picture of a position: black walls, a red Gaussian dot on white.

    Args:
      position: (2,) float32.
      door_y, wall_x: the layout; may be traced.

    Returns:
      (65, 65, 3) uint8.
    """
    grid = jnp.arange(IMAGE_SIZE, dtype=jnp.float32)
    # The dot is a product of two profiles, each divided by its largest value on the grid: 130 exponentials, not 4225.
    squares = (grid - jnp.asarray(position, jnp.float32)[:, None]) ** 2
    profile = jnp.exp((jnp.min(squares, axis=1, keepdims=True) - squares) / (2 * DOT_STD**2))
    dot = profile[1][:, None] * profile[0][None, :]
    shade = 255 - (255 * dot).astype(jnp.int32)
    columns, rows = grid[None, :], grid[:, None]
    wall = (jnp.abs(columns - wall_x) <= HALF_WIDTH) & (jnp.abs(rows - door_y) > HALF_DOOR)
    border = (columns == LOW) | (columns == HIGH) | (rows == LOW) | (rows == HIGH)
    image = jnp.stack([jnp.full_like(shade, 255), shade, shade], axis=-1)
    return jnp.where((wall | border)[..., None], 0, image).astype(jnp.uint8)


def _crossing(a_from, a_to, b_from, b_to, line):
    """Coordinate a where the segment's coordinate b meets `line`; its start where the segment runs along the line."""
    along = b_to - b_from
    fraction = jnp.where(along == 0, 0.0, (line - b_from) / jnp.where(along == 0, 1.0, along))
    return a_from + fraction * (a_to - a_from)


def _touches(start, end, line):
    """Whether a segment crosses a line or has an end on it; sign(0) = 0, so an end exactly on the line counts."""
    return jnp.sign(start - line) * jnp.sign(end - line) <= 0


def _beside_door(y, door_y):
    return jnp.abs(y - door_y) > HALF_DOOR
