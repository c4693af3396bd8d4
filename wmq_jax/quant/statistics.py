"""What calibration keeps of the values that pass a site.

A statistic is a NamedTuple of arrays with a field ``count``, the calls seen; zeros everywhere stand for "nothing
seen", so that the state before the first batch follows from shapes alone. Statistics of two streams merge
(``a.merge(b)``), and those that know their channels follow a re-scaling of them (``rescaled``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Range(NamedTuple):
    """Smallest and largest value of a site.

    Attributes:
      count: int32, calls seen.
      minimum, maximum: float32.
    """

    count: jax.Array
    minimum: jax.Array
    maximum: jax.Array

    def range(self) -> tuple[jax.Array, jax.Array]:
        """The smallest and the largest value."""
        return self.minimum, self.maximum

    def merge(self, other: Range) -> Range:
        """The range of both streams, exact in any order."""
        return Range(self.count + other.count, *_wider(self, other))


class AverageRange(NamedTuple):
    """A moving average of the ranges of calls; fields as of ``Range``."""

    count: jax.Array
    minimum: jax.Array
    maximum: jax.Array

    def range(self) -> tuple[jax.Array, jax.Array]:
        """The averages of the smallest and of the largest value."""
        return self.minimum, self.maximum

    def merge(self, other: AverageRange) -> AverageRange:
        """Both averages, weighted by the calls behind them (an average of one stream depends on its order)."""
        count = self.count + other.count
        share = self.count / jnp.maximum(count, 1)
        low = share * self.minimum + (1 - share) * other.minimum
        return AverageRange(count, low, share * self.maximum + (1 - share) * other.maximum)


class ChannelRange(NamedTuple):
    """The range of every channel (the last axis), and a sample of tokens.

    C: channels, n: tokens that the sample has room for, possibly 0.

    Attributes:
      count: int32, calls seen.
      minimum, maximum: float32 (C,).
      tokens: float32 (n, C), a sample of what was seen.
      priority: float32 (n,), the draw by which each token came into the sample; 0 marks an empty place.
    """

    count: jax.Array
    minimum: jax.Array
    maximum: jax.Array
    tokens: jax.Array
    priority: jax.Array

    def range(self) -> tuple[jax.Array, jax.Array]:
        """The smallest and the largest value of the whole tensor."""
        return self.minimum.min(-1), self.maximum.max(-1)

    def absmax(self) -> jax.Array:
        """The largest magnitude of every channel, (C,)."""
        return jnp.maximum(jnp.abs(self.minimum), jnp.abs(self.maximum))

    def rescaled(self, scale: jax.Array, shift: jax.Array | float = 0.0) -> ChannelRange:
        """The statistic of ``(x - shift) / scale``, scale (C,) positive."""
        minimum, maximum, tokens = ((x - shift) / scale for x in (self.minimum, self.maximum, self.tokens))
        return self._replace(minimum=minimum, maximum=maximum, tokens=tokens)

    def merge(self, other: ChannelRange) -> ChannelRange:
        """The ranges of both streams, and the tokens with the highest priorities of both: a sample of their union."""
        if self.count.ndim:  # scanned layers: one statistic each
            return jax.vmap(ChannelRange.merge)(self, other)
        tokens, priority = keep_highest(self.tokens, self.priority, other.tokens, other.priority)
        return ChannelRange(self.count + other.count, *_wider(self, other), tokens, priority)


class Sequences(NamedTuple):
    """A sample of whole inputs of a block: sequences of tokens, images, whatever one element of a batch is.

    n: sequences that the sample has room for; L: the longest one's first axis.

    Attributes:
      count: int32, calls seen.
      inputs: float32 (n, L, ...); shorter sequences are filled up with zeros at their end.
      length: int32 (n,), how much of each is real.
      priority: float32 (n,), as in ``ChannelRange``.
    """

    count: jax.Array
    inputs: jax.Array
    length: jax.Array
    priority: jax.Array

    def merge(self, other: Sequences) -> Sequences:
        """The sequences with the highest priorities of both streams."""
        if self.count.ndim:  # scanned layers, as above
            return jax.vmap(Sequences.merge)(self, other)
        longest = max(self.inputs.shape[1], other.inputs.shape[1])
        ours, theirs = ((lengthened(part.inputs, longest), part.length) for part in (self, other))
        (inputs, length), priority = keep_highest(ours, self.priority, theirs, other.priority)
        return Sequences(self.count + other.count, inputs, length, priority)

    def mask(self) -> jax.Array:
        """float32 (n, L): 1 where an input is real, 0 where it was filled up or no sequence was kept."""
        real = jnp.arange(self.inputs.shape[1]) < self.length[:, None]
        return (real & (self.priority > 0)[:, None]).astype(jnp.float32)


KINDS = {kind.__name__: kind for kind in (Range, AverageRange, ChannelRange, Sequences)}


def is_statistic(node: Any) -> bool:
    """Whether ``node`` is a statistic (rather than a container of statistics)."""
    return isinstance(node, tuple) and hasattr(node, "_fields") and "count" in node._fields


def keep_highest(kept: Any, kept_priority: jax.Array, new: Any, new_priority: jax.Array) -> tuple[Any, jax.Array]:
    """The items with the highest priorities of two lists, as many as ``kept`` has.

    With priorities drawn independently and uniformly, that is a uniform sample of everything ever offered, whatever the
    order and however the stream was divided.

    Args:
      kept: pytree of arrays with leading axis n; n may be 0.
      kept_priority: (n,).
      new: pytree like ``kept``, leading axis m.
      new_priority: (m,).
    """
    room = kept_priority.shape[0]
    if not room:
        return kept, kept_priority
    priority, chosen = jax.lax.top_k(jnp.concatenate([kept_priority, new_priority]), room)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b])[chosen], kept, new), priority


def lengthened(inputs: jax.Array, length: int) -> jax.Array:
    """``inputs`` (n, L, ...) with zeros at the end of axis 1, so that it has ``length`` entries."""
    return jnp.pad(inputs, [(0, 0), (0, length - inputs.shape[1])] + [(0, 0)] * (inputs.ndim - 2))


def _wider(a: Any, b: Any) -> tuple[jax.Array, jax.Array]:
    """Elementwise range of two statistics with fields count, minimum and maximum."""
    low = jnp.where(b.count == 0, a.minimum, jnp.minimum(a.minimum, b.minimum))
    high = jnp.where(b.count == 0, a.maximum, jnp.maximum(a.maximum, b.maximum))
    return jnp.where(a.count == 0, b.minimum, low), jnp.where(a.count == 0, b.maximum, high)
