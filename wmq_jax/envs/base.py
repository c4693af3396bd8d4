"""The protocol that every environment implements, on the device or on the host."""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Array = jax.Array | np.ndarray
State = Any  # a pytree of arrays


class Observation(NamedTuple):
    """What a world model sees of one moment.

    Attributes:
      visual: (H, W, 3) image with values 0..255; uint8 at the environment's own size, float32 where it was resized.
      proprio: (p,) float32, in the environment's units.
    """

    visual: Array
    proprio: Array


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """What planners and models must know of an environment.

    Attributes:
      name: its name in the registry.
      action_dim: width of one environment action.
      proprio_dim: width of `Observation.proprio`.
      state_dim: width of the start and goal vectors.
      image_size: side of `Observation.visual` in pixels.
      on_device: True if every function is pure JAX, so that it can be traced, vmapped and looped over; False for a
        simulator on the host, whose functions take and return numpy arrays (see `wmq_jax.envs.on_device`).
      extent: left, right, bottom and top edge of `Observation.visual` in the units of the first two entries of
        `Observation.proprio`, for pictures; None if they are no position.
    """

    name: str
    action_dim: int
    proprio_dim: int
    state_dim: int
    image_size: int
    on_device: bool
    extent: tuple[float, float, float, float] | None = None


class Environment(Protocol):
    """A simulator as pure functions of an explicit state; `s`, `A`, `p`, `H`, `W` as in `EnvSpec` and `Observation`.

    What `register_env` takes is a dataclass whose fields are the environment's options, one of them `image_size`, to
    which models set what they see.

    It may have a method `remark(init_states (n, s), goal_states (n, s)) -> str`, in which it says what is unusual about
    episodes, or nothing ('').
    """

    @property
    def spec(self) -> EnvSpec:
        """The environment's sizes."""

    def reset(self, init_state: Array) -> State:
        """The state at the start vector `init_state` (s,)."""

    def step(self, state: State, action: Array) -> State:
        """The state after one environment action (A,), in the environment's units."""

    def observe(self, state: State) -> Observation:
        """The observation of a state."""

    def evaluate(self, state: State, goal_state: Array) -> tuple[Array, Array]:
        """Success (bool) and distance (float32) of a state with respect to the goal vector (s,)."""

    def goal_states(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The official start and goal of a seed, each (s,) float64; always computed on the host."""


def execute(env: Environment, state: State, actions: Array) -> tuple[State, State]:
    """Applies a sequence of environment actions in a device environment.

    Args:
      env: an environment with `spec.on_device`.
      state: where to start.
      actions: (T, A) environment actions, in the environment's units.

    Returns:
      The last state, and all T states after each action stacked along a leading axis.
    """

    def body(state, action):
        state = env.step(state, action)
        return state, state

    return jax.lax.scan(body, state, actions)
