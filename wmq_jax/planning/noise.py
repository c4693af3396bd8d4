"""Random numbers of a plan, as a function of *what* is planned and of nothing else.

The key of a number folds in the planner's seed, the episode, the MPC iteration, the optimisation step and the plan
step. Hence two variants of a model see the same numbers on the same episode (common random numbers: their difference is
paired), and a plan for a shorter horizon sees a prefix of the numbers of a longer one.
"""

import chex
import jax
import jax.numpy as jnp


def episode_key(seed: chex.Numeric, episode: chex.Numeric) -> chex.PRNGKey:
    """Key of one episode under one planner seed; both may be traced integers."""
    return jax.random.fold_in(jax.random.key(seed), episode)


def iteration_key(key: chex.PRNGKey, iteration: chex.Numeric) -> chex.PRNGKey:
    """Key of one MPC iteration of an episode."""
    return jax.random.fold_in(key, iteration)


def plan_noise(key: chex.PRNGKey, step: chex.Numeric, samples: int, horizon: int, action_dim: int) -> chex.Array:
    """Standard normal noise of optimisation step ``step``.

    Args:
      key: key of the MPC iteration.
      step: optimisation step, may be traced.
      samples: number N of sampled plans.
      horizon: number H of model actions.
      action_dim: size A of a model action.

    Returns:
      float32 (N, H, A). Plan step t has a key of its own, so ``plan_noise(..., h, ...)`` is the first h steps of
      ``plan_noise(..., H, ...)`` bit for bit.
    """
    step_key = jax.random.fold_in(key, step)
    keys = jax.vmap(lambda t: jax.random.fold_in(step_key, t))(jnp.arange(horizon))
    noise = jax.vmap(lambda k: jax.random.normal(k, (samples, action_dim)))(keys)
    return jnp.swapaxes(noise, 0, 1)
