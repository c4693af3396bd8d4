"""Parts of a program that must give the same bits whatever is compiled around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def fenced(step: Callable[[], Any]) -> Any:
    """Returns `step()`, a pytree of arrays, compiled apart from its surroundings.

    XLA rounds differently when it fuses a computation with its neighbours, and those differ between a planner built for
    one horizon and one that takes it as data, or between programs for one device and for several. A computation inside
    a loop is never fused with those outside; the loop has two trips, of which the first does nothing, since one would
    be unrolled.
    """
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(step))
    return lax.fori_loop(0, 2, lambda i, out: lax.cond(i == 1, step, lambda: out), nothing)
