"""The frame-causal transformer of DINO-WM (Zhou et al. 2024).

B: batch, F: frames, P: tokens per frame, C: channels of a token. Tokens are ordered by frame, then by patch. A token
sees every token of its own frame and of earlier ones. That gives two exact savings, both used when a model imagines:
keys and values of earlier frames do not change when a frame is appended (`extend`), and if only the last frame is
read, the last layer needs the others' keys and values alone (`last_frame`).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from wmq_jax.models.attention import attend, split_heads
from wmq_jax.models.config import PredictorConfig
from wmq_jax.models.gelu import gelu

_LAYER_NORM_EPS = 1e-5

# Keys and values of the frames seen so far, one pair per layer, each (B, tokens, heads, dim_head).
Cache = tuple[tuple[jax.Array, jax.Array], ...]


def frame_causal_mask(queries: int, keys: int, tokens_per_frame: int) -> np.ndarray:
    """(queries, keys) bool: may the last `queries` tokens of a sequence of `keys` tokens see each token?"""
    key_frame = np.arange(keys) // tokens_per_frame
    return key_frame[keys - queries :, None] >= key_frame[None, :]


class FrameAttention(nn.Module):
    """Pre-norm multi-head attention under the frame-causal mask."""

    config: PredictorConfig
    width: int
    tokens_per_frame: int

    def setup(self):
        c = self.config
        self.norm = nn.LayerNorm(epsilon=_LAYER_NORM_EPS, use_fast_variance=False)
        self.to_qkv = nn.Dense(3 * c.heads * c.dim_head, use_bias=c.qkv_bias)
        # One head of the full width needs no projection, and the original has none.
        self.to_out = None if c.heads == 1 and c.dim_head == self.width else nn.Dense(self.width)
        self.dropout = nn.Dropout(c.dropout)

    def __call__(
        self,
        x: jax.Array,
        past: tuple[jax.Array, jax.Array] | None = None,
        queries: int | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Attends from the last `queries` tokens (default all) of x (B, L, C) to `past` and x.

        Returns:
          The output (B, queries, C), before the residual connection, and the keys and values of `past` and x.
        """
        q, k, v = split_heads(self.to_qkv(self.norm(x)), self.config.heads)
        if past is not None:
            k, v = jnp.concatenate([past[0], k], axis=1), jnp.concatenate([past[1], v], axis=1)
        if queries is not None:
            q = q[:, -queries:]
        mask = frame_causal_mask(q.shape[1], k.shape[1], self.tokens_per_frame)

        def dropout(weights):
            return self.dropout(weights, deterministic=deterministic)

        out = attend(q, k, v, None if mask.all() else mask, dropout)
        if self.to_out is not None:
            out = dropout(self.to_out(out))
        return out, (k, v)


class FeedForward(nn.Module):
    """Pre-norm MLP: fc2(gelu(fc1(norm x))) with the exact (erf) GELU."""

    config: PredictorConfig
    width: int

    def setup(self):
        self.norm = nn.LayerNorm(epsilon=_LAYER_NORM_EPS, use_fast_variance=False)
        self.fc1 = nn.Dense(self.config.mlp_dim)
        self.fc2 = nn.Dense(self.width)
        self.dropout = nn.Dropout(self.config.dropout)

    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        hidden = gelu(self.fc1(self.norm(x)))
        hidden = self.dropout(hidden, deterministic=deterministic)
        return self.dropout(self.fc2(hidden), deterministic=deterministic)


class Layer(nn.Module):
    """x += attn(x); x += ff(x)."""

    config: PredictorConfig
    width: int
    tokens_per_frame: int

    def setup(self):
        self.attn = FrameAttention(self.config, self.width, self.tokens_per_frame)
        self.ff = FeedForward(self.config, self.width)

    def __call__(
        self,
        x: jax.Array,
        past: tuple[jax.Array, jax.Array] | None = None,
        queries: int | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """See `FrameAttention.__call__`; only the last `queries` tokens go on."""
        attended, seen = self.attn(x, past, queries, deterministic)
        x = x[:, -attended.shape[1] :] + attended
        return x + self.ff(x, deterministic), seen


class Predictor(nn.Module):
    """Maps the tokens of up to `num_frames` frames to those of the frames that follow each of them."""

    config: PredictorConfig
    width: int
    tokens_per_frame: int
    num_frames: int

    def setup(self):
        c = self.config
        tokens = self.num_frames * self.tokens_per_frame
        self.pos_embedding = self.param("pos_embedding", nn.initializers.normal(1.0), (1, tokens, self.width))
        self.layers = [Layer(c, self.width, self.tokens_per_frame) for _ in range(c.depth)]
        self.norm = nn.LayerNorm(epsilon=_LAYER_NORM_EPS, use_fast_variance=False)
        self.dropout = nn.Dropout(c.emb_dropout)

    def _with_positions(self, x: jax.Array, start: int = 0) -> jax.Array:
        stop = start + x.shape[1]
        if stop > self.pos_embedding.shape[1]:
            raise ValueError(
                f"the predictor takes at most {self.num_frames} frames of {self.tokens_per_frame} tokens, "
                f"got {stop} tokens."
            )
        return x + self.pos_embedding[:, start:stop]

    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        """Predicts every frame's successor: (B, F * P, C) -> (B, F * P, C), F <= num_frames.

        With `deterministic=False` dropout is on and the call needs an rng named 'dropout'.
        """
        x = self.dropout(self._with_positions(x), deterministic=deterministic)
        for layer in self.layers:
            x, _ = layer(x, deterministic=deterministic)
        return self.norm(x)

    def last_frame(self, x: jax.Array) -> jax.Array:
        """Predicts the last frame's successor only: (B, F * P, C) -> (B, P, C)."""
        x = self._with_positions(x)
        for layer in self.layers[:-1]:
            x, _ = layer(x)
        x, _ = self.layers[-1](x, queries=self.tokens_per_frame)
        return self.norm(x)

    def extend(self, x: jax.Array, cache: Cache | None = None) -> tuple[jax.Array, Cache]:
        """Predicts the successor of one more frame, given the cache of the frames before it.

        Args:
          x: tokens (B, P, C) of the new frame.
          cache: what the previous `extend` returned; None for the first frame.

        Returns:
          The successor's tokens (B, P, C), and the cache with the new frame in it.
        """
        start = 0 if cache is None else cache[0][0].shape[1]
        x = self._with_positions(x, start)
        seen = []
        for i, layer in enumerate(self.layers):
            x, keys_and_values = layer(x, None if cache is None else cache[i])
            seen.append(keys_and_values)
        return self.norm(x), tuple(seen)
