"""Planning on development episodes, on which recipes and planner settings are chosen and no result is reported."""

from typing import Any

import jax
import jax.numpy as jnp

from wmq_jax.planning import Problem, episode_key, mpc_init, mpc_iteration, step_noise


def plan_episodes(problem: Problem, variables: Any, starts: jax.Array, goals: jax.Array, seed: int = 0) -> jax.Array:
    """Plans and executes until success or `problem.config.iterations` MPC iterations, one episode after another.

    Args:
      problem: model, environment (on device), objective, settings.
      variables: of the model.
      starts, goals: (N, s) float32.
      seed: of the planner's noise.

    Returns:
      (N, M) bool: success by the end of each MPC iteration (sticky).
    """
    iterations = problem.config.iterations

    def episode(inputs):
        index, start, goal = inputs
        key = episode_key(seed, index)

        def keep_on(carry):
            state, success = carry
            return (state.iteration < iterations) & ~success[-1]

        def iterate(carry):
            state, success = carry
            noise = step_noise(problem, key, state.iteration)
            reached = jnp.arange(iterations) >= state.iteration
            state, record = mpc_iteration(problem, variables, state, goal, noise, jnp.int32(problem.config.horizon))
            return state, success | (record.success & reached)

        return jax.lax.while_loop(keep_on, iterate, (mpc_init(problem, start), jnp.zeros(iterations, bool)))[1]

    return jax.lax.map(episode, (jnp.arange(starts.shape[0]), starts, goals))
