"""The learning-rate schedule that all stages share."""

import optax


def warmup_cosine(peak: float, warmup: int, steps: int) -> optax.Schedule:
    """Linear from 0 to `peak` over `warmup` steps, fewer than `steps`, then half a cosine to 1% of it at `steps`."""
    return optax.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, steps, 0.01 * peak)
