"""Simulators that run on the host, inside the compiled sweep."""

import dataclasses
import functools
import threading
from typing import Any

import jax
import numpy as np

from wmq_jax.envs.base import Array, Environment, EnvSpec, Observation, State


def on_device(env: Environment) -> Environment:
    """An environment whose functions can be traced: the same one, or a host simulator behind callbacks.

    A host simulator (`spec.on_device` False) is a pure function of an explicit state, as every environment: a state is
    numbers (a simulator's own objects are set from them at every call and read afterwards), so that a killed sweep
    goes on and thousands of episodes take turns in one simulator. Compiled programs stop for it at every environment
    step of every cell, one cell after the other; planning in a world model, which asks it for nothing, stays as fast.

    Args:
      env: its `reset` is called once with zeros, and `observe` and `evaluate` with what that returns, to learn shapes
        and dtypes; every later call must return the same ones.
    """
    return env if env.spec.on_device else _OnHost(env)


@dataclasses.dataclass(frozen=True, eq=False)
class _OnHost:
    """A host simulator as a device environment; one call at a time, whatever the number of devices."""

    env: Environment
    _lock: Any = dataclasses.field(default_factory=threading.Lock, repr=False)

    @functools.cached_property
    def spec(self) -> EnvSpec:
        return dataclasses.replace(self.env.spec, on_device=True)

    @functools.cached_property
    def _results(self) -> dict[str, Any]:
        """Shapes and dtypes of what each function returns."""
        zeros = np.zeros(self.env.spec.state_dim, np.float32)
        state = self.env.reset(zeros)
        returned = {"state": state, "observe": self.env.observe(state), "evaluate": self.env.evaluate(state, zeros)}
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), _dtype(x)), returned)

    def _call(self, function: Any, result: Any, *arguments: Any) -> Any:
        def on_host(*arguments):
            with self._lock:
                returned = function(*jax.tree.map(np.asarray, arguments))
            return jax.tree.map(lambda shape, x: _like(shape, x, self.spec.name), result, returned)

        return jax.pure_callback(on_host, result, *arguments, vmap_method="sequential")

    def reset(self, init_state: Array) -> State:
        return self._call(self.env.reset, self._results["state"], init_state)

    def step(self, state: State, action: Array) -> State:
        return self._call(self.env.step, self._results["state"], state, action)

    def observe(self, state: State) -> Observation:
        return self._call(self.env.observe, self._results["observe"], state)

    def evaluate(self, state: State, goal_state: Array) -> tuple[Array, Array]:
        return self._call(self.env.evaluate, self._results["evaluate"], state, goal_state)

    def goal_states(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        return self.env.goal_states(seed)


def _dtype(value: Any) -> np.dtype:
    """A number's dtype as JAX has it: 32 bits."""
    return jax.dtypes.canonicalize_dtype(np.asarray(value).dtype)


def _like(wanted: jax.ShapeDtypeStruct, value: Any, name: str) -> np.ndarray:
    """A returned value with the dtype that the program was compiled for.

    Raises:
      ValueError: it has another shape.
    """
    if np.shape(value) != wanted.shape:
        raise ValueError(f"environment {name} returned an array of shape {np.shape(value)}, and {wanted.shape} before")
    return np.asarray(value, wanted.dtype)
