"""Scaled dot-product attention, shared by encoder and predictor."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def split_heads(qkv: jax.Array, heads: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Splits (..., L, 3 * heads * d), laid out (3, heads, d), into queries, keys and values (..., L, heads, d)."""
    qkv = qkv.reshape(*qkv.shape[:-1], 3, heads, -1)
    return qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :]


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: np.ndarray | None = None,
    dropout: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v, heads merged.

    Args:
      q: queries (B, Q, heads, d).
      k: keys (B, K, heads, d).
      v: values (B, K, heads, d).
      mask: (Q, K) bool, true where a query sees a key; None if it sees all.
      dropout: applied to the attention weights; None for none.

    Returns:
      (B, Q, heads * d).
    """
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1)
    if dropout is not None:
        weights = dropout(weights)
    out = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
    return out.reshape(*out.shape[:-2], -1)
