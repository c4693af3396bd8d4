"""Observers: what calibration keeps of the values that pass a site."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Statistic = Any


class Range(NamedTuple):
    """Smallest and largest value of a site. All zeros means that nothing was seen.

    Attributes:
      count: int32, calls seen.
      minimum, maximum: float32.
    """

    count: jax.Array
    minimum: jax.Array
    maximum: jax.Array


class Observer(NamedTuple):
    """A running statistic as pure functions.

    A statistic is a NamedTuple of arrays with a field ``count``; zeros everywhere stand for
    "nothing seen", so that the state before the first batch follows from shapes alone.

    Attributes:
      empty: ``x -> statistic`` of zeros, from the shape and dtype of ``x``.
      update: ``(statistic, x) -> statistic``, with ``x`` seen after everything before.
      merge: ``(statistic, statistic) -> statistic`` of two streams (batches, hosts).
    """

    empty: Callable[[jax.Array], Statistic]
    update: Callable[[Statistic, jax.Array], Statistic]
    merge: Callable[[Statistic, Statistic], Statistic]


def minmax() -> Observer:
    """The running range of a whole tensor, over all calls and batches (exact in any order)."""

    def empty(x):
        del x
        return Range(jnp.int32(0), jnp.float32(0), jnp.float32(0))

    def merge(a: Range, b: Range) -> Range:
        low = jnp.where(b.count == 0, a.minimum, jnp.minimum(a.minimum, b.minimum))
        high = jnp.where(b.count == 0, a.maximum, jnp.maximum(a.maximum, b.maximum))
        low = jnp.where(a.count == 0, b.minimum, low)
        high = jnp.where(a.count == 0, b.maximum, high)
        return Range(a.count + b.count, low, high)

    def update(statistic: Range, x: jax.Array) -> Range:
        seen = Range(jnp.int32(1), x.min().astype(jnp.float32), x.max().astype(jnp.float32))
        return merge(statistic, seen)

    return Observer(empty, update, merge)


def is_statistic(node: Any) -> bool:
    """Whether ``node`` is a statistic (rather than a container of statistics)."""
    return isinstance(node, tuple) and hasattr(node, "_fields") and "count" in node._fields
