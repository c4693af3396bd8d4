"""Planning objectives: how far imagined latents are from the goal's latent.

Source: DINO-WM (arXiv 2411.04983), section 3.3, and its published planning objectives ``last`` and ``all``.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import chex
import jax.numpy as jnp

from wmq_jax.models import Latent
from wmq_jax.planning.limits import check_positive, check_range

Mode = Literal["last", "all"]
MODES = ("last", "all")


@dataclasses.dataclass(frozen=True)
class Objective:
    """An objective and which imagined frames it reads.

    Attributes:
      cost: ``(predicted, goal, horizon) -> (N,)`` float32, one cost per sample.
      frame_cost: ``(frames, goal) -> (N,)``: the cost of single frames, visual (N, P, D) and proprio (N, E), whatever
        the mode.
      keep: which frames ``predicted`` must hold: ``'last'`` or ``'all'``.
      alpha: weight of the proprioceptive term.
    """

    cost: Callable[[Latent, Latent, chex.Numeric], chex.Array]
    frame_cost: Callable[[Latent, Latent], chex.Array]
    keep: Mode
    alpha: float


def _mean_square(predicted: chex.Array, goal: chex.Array, lead: int) -> chex.Array:
    error = jnp.square(predicted - goal)
    return jnp.mean(error, axis=tuple(range(lead, error.ndim)))


def _frame(alpha: float):
    def cost(frames: Latent, goal: Latent) -> chex.Array:
        visual = _mean_square(frames.visual, goal.visual, 1)
        return visual + alpha * _mean_square(frames.proprio, goal.proprio, 1)

    return cost


def _all(alpha: float, base: float):
    def cost(predicted: Latent, goal: Latent, horizon: chex.Numeric) -> chex.Array:
        frames = jnp.arange(predicted.visual.shape[1])
        # Normalised by the largest weight so that long horizons do not overflow; the ratio is what counts.
        exponents = (frames - (horizon if base >= 1 else 0)).astype(jnp.float32)
        weights = jnp.where(frames <= horizon, jnp.float32(base) ** exponents, 0.0)
        weights = weights / (jnp.sum(weights) * (horizon + 1))
        visual = _mean_square(predicted.visual, goal.visual, 2) @ weights
        return visual + alpha * (_mean_square(predicted.proprio, goal.proprio, 2) @ weights)

    return cost


def make_objective(mode: Mode = "last", alpha: float = 1.0, base: float = 2.0) -> Objective:
    """The objective of a plan.

    N samples, F frames (0 is the observation), P patches, D and E widths of visual and proprioceptive latents.

    * ``last``: mean squared error over (P, D) between the last imagined frame and the goal, plus ``alpha`` times that
      over E; ``predicted`` holds (N, P, D) and (N, E).
    * ``all``: the same per frame, weighted by ``base**t / sum(base**t)`` and averaged (not summed, as published) over
      frames 0..horizon; ``predicted`` holds (N, F, P, D) and (N, F, E), frames after ``horizon`` are not read.

    Raises:
      ValueError: ``mode`` is unknown, or ``alpha`` or ``base`` is out of range.
    """
    if mode not in MODES:
        raise ValueError(f"objective mode {mode!r} is not one of {', '.join(MODES)}")
    # Costs of larger ones overflow in float32.
    check_range("objective alpha", alpha, 0, 1_000_000)
    check_positive("objective base", base, 1000)
    frame_cost = _frame(alpha)
    last = lambda predicted, goal, horizon: frame_cost(predicted, goal)
    return Objective(cost=last if mode == "last" else _all(alpha, base), frame_cost=frame_cost, keep=mode, alpha=alpha)
