"""An environment in numpy, as a simulator that runs on the host is brought in: `wmq_jax.envs` has the protocol.

A point in a square moves by a share of each action and stops at the edges. A world model sees a bright square where it
is and is told its position; how much of an action it follows, neither says.
"""

import dataclasses

import numpy as np

from wmq_jax.envs import EnvSpec, Observation

HALF_SIDE = 3  # of the drawn square, in pixels
SUCCESS_DISTANCE = 6.0  # the larger of both coordinates, in pixels


@dataclasses.dataclass(frozen=True)
class PointMass:
    """A state is a dictionary of numbers: position (2,) in pixels, share of an action () and steps taken ().

    Starts and goals are (x, y, share) float64.

    Attributes:
      image_size: side of the picture and of the square that the point moves in, in pixels.
    """

    image_size: int = 65

    @property
    def spec(self) -> EnvSpec:
        return EnvSpec(
            "point_mass", action_dim=2, proprio_dim=2, state_dim=3, image_size=self.image_size, on_device=False
        )

    def reset(self, init_state):
        start = np.asarray(init_state, np.float32)
        return {"position": start[:2], "share": start[2], "steps": np.int32(0)}

    def step(self, state, action):
        moved = np.clip(state["position"] + state["share"] * action, 0, self.image_size - 1)
        return {**state, "position": moved.astype(np.float32), "steps": state["steps"] + 1}

    def observe(self, state):
        x, y = (abs(np.arange(self.image_size) - at) < HALF_SIDE for at in state["position"])
        square = np.where(y[:, None] & x, 255, 20).astype(np.uint8)
        return Observation(np.stack([square] * 3, -1), state["position"])

    def evaluate(self, state, goal_state):
        distance = abs(state["position"] - goal_state[:2]).max()
        return distance < SUCCESS_DISTANCE, distance

    def goal_states(self, seed):
        random = np.random.RandomState(seed)
        start, goal = random.uniform(8, 56, (2, 2)) * self.image_size / 65
        return np.append(start, random.uniform(0.4, 0.6)), np.append(goal, 0.5)
