"""Cross-entropy method over action sequences (Rubinstein 1999), as DINO-WM plans with it (arXiv 2411.04983).

Per step: sample plans around a mean, keep the elites, refit mean and standard deviation; no momentum, no floor, and
sample 0 is the mean itself.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from wmq_jax.planning.limits import MAX_SAMPLES, MAX_STEPS, check_positive, check_range

Cost = Callable[[chex.Array], chex.Array]
Noise = Callable[[chex.Numeric], chex.Array]
Stop = Callable[[chex.Array], chex.Array]


@dataclasses.dataclass(frozen=True)
class CEMConfig:
    """Settings of a CEM optimisation; the defaults are the study's on Wall.

    Attributes:
      samples: sampled plans per step, N.
      elites: plans kept to refit the distribution, 2..N.
      steps: optimisation steps.
      init_std: initial standard deviation, in units of normalised actions.
      check_every: optimisation steps between calls of ``stop``; 0 never calls it.

    Raises:
      ValueError: one of them is out of range.
    """

    samples: int = 300
    elites: int = 30
    steps: int = 10
    init_std: float = 1.0
    check_every: int = 0

    def __post_init__(self):
        check_range("planner samples", self.samples, 2, MAX_SAMPLES)
        if not 2 <= self.elites <= self.samples:
            raise ValueError(f"planner elites must be 2..{self.samples} (the samples), not {self.elites}")
        check_range("planner steps", self.steps, 1, MAX_STEPS)
        # Normalised actions have a deviation of 1; squares of much larger ones overflow in float32.
        check_positive("planner init_std", self.init_std, 1000)
        check_range("planner check_every", self.check_every, 0, MAX_STEPS)


class Proposals(NamedTuple):
    """The distributions that an optimisation sampled from, one per step T; zeros for steps not taken.

    Attributes:
      mean: (T, ..., H, A) normalised actions.
      std: (T, ..., H, A).
      taken: int32, how many of the steps were taken.
    """

    mean: chex.Array
    std: chex.Array
    taken: chex.Array


class CEMState(NamedTuple):
    """A distribution over plans, and the costs it was fitted to.

    Attributes:
      mean: (..., H, A) mean plan, normalised actions.
      std: (..., H, A) standard deviation.
      costs: (..., N) costs of the latest samples (zeros before the first step).
      finite: (...) whether every cost so far was finite.
    """

    mean: chex.Array
    std: chex.Array
    costs: chex.Array
    finite: chex.Array


def cem_init(mean: chex.Array, config: CEMConfig) -> CEMState:
    """The distribution before the first step: the given mean (..., H, A) and ``init_std``."""
    batch = mean.shape[:-2]
    return CEMState(
        mean=mean,
        std=jnp.full_like(mean, config.init_std),
        costs=jnp.zeros((*batch, config.samples), mean.dtype),
        finite=jnp.ones(batch, bool),
    )


def sample_plans(mean: chex.Array, std: chex.Array, noise: chex.Array) -> chex.Array:
    """Plans (..., N, H, A) around a mean (..., H, A); sample 0 is the mean itself."""
    plans = noise * std[..., None, :, :] + mean[..., None, :, :]
    return plans.at[..., 0, :, :].set(mean)


def cem_step(state: CEMState, noise: chex.Array, cost: Cost, config: CEMConfig) -> CEMState:
    """One refit: sample, rank, keep the elites.

    Args:
      state: distribution over plans (..., H, A).
      noise: standard normal (..., N, H, A).
      cost: maps plans (..., N, H, A) to costs (..., N); costs that are not finite rank last.
      config: N, number of elites.

    Returns:
      The refitted state. The standard deviation is the unbiased one (n - 1) of the elites.
    """
    chex.assert_equal(noise.shape[-3:], (config.samples, *state.mean.shape[-2:]))
    plans = sample_plans(state.mean, state.std, noise)
    costs = cost(plans)
    finite = jnp.isfinite(costs)
    _, elite = jax.lax.top_k(-jnp.where(finite, costs, jnp.inf), config.elites)
    elites = jnp.take_along_axis(plans, elite[..., None, None], axis=-3)
    return CEMState(
        mean=jnp.mean(elites, axis=-3),
        std=jnp.std(elites, axis=-3, ddof=1),
        costs=costs,
        finite=state.finite & jnp.all(finite, axis=-1),
    )


def cem(
    cost: Cost, noise: Noise, mean: chex.Array, config: CEMConfig, stop: Stop | None = None
) -> tuple[CEMState, Proposals]:
    """Optimises plans for ``config.steps`` steps; the state's ``mean`` is the plan.

    Args:
      cost: as in :func:`cem_step`.
      noise: optimisation step -> standard normal (..., N, H, A).
      mean: initial plan (..., H, A): a warm start padded with zeros.
      config: the settings.
      stop: mean plan (..., H, A) -> scalar bool; called after every ``config.check_every``-th step, and true ends the
        optimisation there. The published planner asks the simulator whether the plan already succeeds.
    """

    def keep_on(carry):
        index, stopped, _, _ = carry
        return (index < config.steps) & ~stopped

    def step(carry):
        index, stopped, state, trace = carry
        trace = Proposals(trace.mean.at[index].set(state.mean), trace.std.at[index].set(state.std), index + 1)
        state = cem_step(state, noise(index), cost, config)
        if stop is not None and config.check_every:
            check = (index + 1) % config.check_every == 0
            stopped = jax.lax.cond(check, stop, lambda _: jnp.bool_(False), state.mean)
        return index + 1, stopped, state, trace

    empty = jnp.zeros((config.steps, *mean.shape), mean.dtype)
    start = (jnp.int32(0), jnp.bool_(False), cem_init(mean, config), Proposals(empty, empty, jnp.int32(0)))
    _, _, state, trace = jax.lax.while_loop(keep_on, step, start)
    return state, trace
