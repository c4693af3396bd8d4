"""Planning by gradient descent on the actions (DINO-WM, arXiv 2411.04983, appendix on planners)."""

import dataclasses
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from wmq_jax.planning.limits import MAX_STEPS, check_positive, check_range


@dataclasses.dataclass(frozen=True)
class GDConfig:
    """Settings of gradient-descent planning; the defaults are the published ones.

    Attributes:
      steps: gradient steps.
      learning_rate: step size, in normalised actions per unit of gradient.
      step_noise: standard deviation of the noise added after every step.

    Raises:
      ValueError: one of them is out of range.
    """

    steps: int = 10
    learning_rate: float = 1.0
    step_noise: float = 0.003

    def __post_init__(self):
        check_range("planner steps", self.steps, 1, MAX_STEPS)
        # Gradients of a mean of many squares are small, so rates may be large.
        check_positive("planner learning_rate", self.learning_rate, 1_000_000)
        check_range("planner step_noise", self.step_noise, 0, 1000)


def gd_step(
    actions: chex.Array, noise: chex.Array, cost: Callable[[chex.Array], chex.Array], config: GDConfig
) -> tuple[chex.Array, chex.Array, chex.Array]:
    """One step ``a <- a - lr * grad + step_noise * noise``.

    Args:
      actions: normalised plans (N, H, A).
      noise: standard normal of the same shape.
      cost: maps plans (N, H, A) to costs (N,); plans do not influence each other's cost, so the gradient of the sum is
        every plan's own gradient.
      config: step size and noise.

    Returns:
      New plans (N, H, A), costs (N,) of the old ones, gradient (N, H, A).
    """

    def total(actions):
        costs = cost(actions)
        return jnp.sum(costs), costs

    (_, costs), gradient = jax.value_and_grad(total, has_aux=True)(actions)
    actions = actions - config.learning_rate * gradient + config.step_noise * noise
    return actions, costs, gradient


def gd(
    cost: Callable[[chex.Array], chex.Array],
    noise: Callable[[chex.Numeric], chex.Array],
    actions: chex.Array,
    config: GDConfig,
) -> tuple[chex.Array, chex.Array, chex.Array]:
    """Descends for ``config.steps`` steps from ``actions`` (N, H, A).

    Returns:
      The plans (N, H, A); whether every cost on the way was finite, per plan (N,); and the plans before each step
      (steps, N, H, A).
    """

    def step(carry, index):
        before, finite = carry
        actions, costs, _ = gd_step(before, noise(index), cost, config)
        return (actions, finite & jnp.isfinite(costs)), before

    start = (actions, jnp.ones(actions.shape[0], bool))
    (actions, finite), trace = jax.lax.scan(step, start, jnp.arange(config.steps))
    return actions, finite, trace
