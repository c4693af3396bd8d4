"""The learning-rate schedules that the stages share."""

import optax

SCHEDULES = ("cosine", "constant")


def warmup_cosine(peak: float, warmup: int, steps: int) -> optax.Schedule:
    """Linear from 0 to `peak` over `warmup` steps, fewer than `steps`, then half a cosine to 1% of it at `steps`."""
    return optax.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, steps, 0.01 * peak)


def warmup_constant(peak: float, warmup: int) -> optax.Schedule:
    """Linear from 0 to `peak` over `warmup` steps, then `peak`; DINO-WM's rates are constant from the first step."""
    return optax.warmup_constant_schedule(0.0, peak, warmup) if warmup else optax.constant_schedule(peak)


def make_schedule(name: str, peak: float, warmup: int, steps: int) -> optax.Schedule:
    """The schedule of a name of `SCHEDULES` for a stage of `steps` steps."""
    return warmup_cosine(peak, warmup, steps) if name == "cosine" else warmup_constant(peak, warmup)
