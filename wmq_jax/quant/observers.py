"""Observers: how calibration updates a statistic with one more call of a site."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from wmq_jax.quant.statistics import AverageRange, ChannelRange, Range, Sequences

Statistic = Any


class Observer(NamedTuple):
    """A running statistic as pure functions.

    Attributes:
      empty: ``x -> statistic`` of zeros, from the shape and dtype of ``x``.
      update: ``(statistic, x) -> statistic``, with ``x`` seen after everything before.
    """

    empty: Callable[[jax.Array], Statistic]
    update: Callable[[Statistic, jax.Array], Statistic]


def default_observers(
    sites: Observer | None, blocks: Observer | None, sampled: Iterable[str]
) -> tuple[Observer, Observer]:
    """What is kept of sites and of blocks where the user does not say: ``linen.observe`` and ``quant.observe``."""
    if sites is None:
        sites = channel_ranges() if sampled else minmax()
    return sites, sequences(32) if blocks is None else blocks


def minmax() -> Observer:
    """The running range of a whole tensor, over all calls and batches (exact in any order)."""

    def update(statistic: Range, x: jax.Array) -> Range:
        return statistic.merge(Range(jnp.int32(1), *_range(x)))

    return Observer(lambda x: _nothing(Range), update)


def ema(rate: float = 0.01) -> Observer:
    """A moving average of the ranges of calls: the first sets it, then ``m += rate * (call - m)``.

    Raises:
      ValueError: the rate is not above 0 and at most 1.
    """
    return _averaged(_range, rate)


def percentile(share: float = 0.99999, rate: float = 0.01) -> Observer:
    """A moving average, as of ``ema``, of the quantiles ``1 - share`` and ``share`` of calls.

    Quantiles are over all values of a call, with linear interpolation.

    Raises:
      ValueError: the share is not above 0.5 and at most 1, or the rate not above 0 and at most 1.
    """
    if not 0.5 < share <= 1:
        raise ValueError(f"percentile's share must be above 0.5 and at most 1 (0.999 for 99.9 %), not {share}")

    def quantiles(x):
        low, high = jnp.quantile(x.astype(jnp.float32), jnp.array([1 - share, share], jnp.float32))
        return low, high

    return _averaged(quantiles, rate)


def channel_ranges(tokens: int = 0, last_call: bool = False, seed: int = 0) -> Observer:
    """The range of every channel, and a uniform sample of the tokens seen: what every method here needs of a site.

    Args:
      tokens: room of the sample; it bounds the memory. 0 keeps ranges only.
      last_call: keep tokens of the last call alone, as the released OMSE does for activations.
      seed: of the draws. Streams that are to be merged need different seeds.
    """

    def empty(x):
        channels = jnp.zeros(x.shape[-1], jnp.float32)
        room = jnp.zeros((tokens, x.shape[-1]), jnp.float32)
        return ChannelRange(jnp.int32(0), channels, channels, room, jnp.zeros(tokens, jnp.float32))

    def update(statistic: ChannelRange, x: jax.Array) -> ChannelRange:
        rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
        drawn = _draws(seed, statistic.count, rows.shape[0] if tokens else 0)
        if last_call:
            statistic = statistic._replace(priority=jnp.zeros_like(statistic.priority))
        sample = rows if tokens else statistic.tokens
        return statistic.merge(ChannelRange(jnp.int32(1), rows.min(0), rows.max(0), sample, drawn))

    return Observer(empty, update)


def sequences(room: int, seed: int = 0) -> Observer:
    """A uniform sample of ``room`` elements of the batches that a block was called with.

    Calls may differ in the length of axis 1 (windows of 1, 2, 3 frames): shorter inputs are filled up with zeros at
    their end, which is exact for blocks in which nothing early sees anything late; see ``Sequences``.

    Raises:
      ValueError: there is no room.
    """
    if room < 1:
        raise ValueError(f"sequences need room for 1 or more inputs, not {room}")

    def empty(x):
        nothing = jnp.zeros(room, jnp.float32)
        return Sequences(jnp.int32(0), jnp.zeros((room, *x.shape[1:]), jnp.float32), nothing.astype(jnp.int32), nothing)

    def update(statistic: Sequences, x: jax.Array) -> Sequences:
        length = jnp.full(x.shape[0], x.shape[1], jnp.int32)
        drawn = _draws(seed, statistic.count, x.shape[0])
        return statistic.merge(Sequences(jnp.int32(1), x.astype(jnp.float32), length, drawn))

    return Observer(empty, update)


def _averaged(range_of: Callable[[jax.Array], tuple[jax.Array, jax.Array]], rate: float) -> Observer:
    """A moving average of what ``range_of`` finds in each call."""
    if not 0 < rate <= 1:
        raise ValueError(f"the rate of a moving average must be above 0 and at most 1, not {rate}")

    def update(statistic: AverageRange, x: jax.Array) -> AverageRange:
        def step(average, found):
            return jnp.where(statistic.count == 0, found, average + rate * (found - average))

        return AverageRange(statistic.count + 1, *map(step, statistic.range(), range_of(x)))

    return Observer(lambda x: _nothing(AverageRange), update)


def _range(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x.min().astype(jnp.float32), x.max().astype(jnp.float32)


def _nothing(kind: type) -> Statistic:
    return kind(jnp.int32(0), jnp.float32(0), jnp.float32(0))


def _draws(seed: int, call: jax.Array, number: int) -> jax.Array:
    """Priorities in (0, 1] of the items of a call."""
    return 1 - jax.random.uniform(jax.random.fold_in(jax.random.key(seed), call), (number,), jnp.float32)
