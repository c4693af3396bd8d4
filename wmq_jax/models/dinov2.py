"""The DINOv2 vision transformer (Oquab et al. 2023), inference only.

B: images, N: patches, L = 1 + registers + N: tokens, D: width.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from wmq_jax.models.attention import attend, split_heads
from wmq_jax.models.config import ViTConfig
from wmq_jax.models.gelu import gelu
from wmq_jax.models.image import interpolate_positions

_LAYER_NORM_EPS = 1e-6
_TOKEN_INIT = nn.initializers.truncated_normal(0.02)


def _dense(features: int) -> nn.Dense:
    return nn.Dense(features, kernel_init=nn.initializers.truncated_normal(0.02))


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    width: int
    heads: int

    def setup(self):
        self.qkv = _dense(3 * self.width)
        self.proj = _dense(self.width)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.proj(attend(*split_heads(self.qkv(x), self.heads)))


class Mlp(nn.Module):
    """fc2(gelu(fc1 x)) with the exact (erf) GELU."""

    width: int
    mlp_dim: int

    def setup(self):
        self.fc1 = _dense(self.mlp_dim)
        self.fc2 = _dense(self.width)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """Multiplies each channel by a learned gain (Touvron et al. 2021)."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.param("gamma", nn.initializers.ones, (self.width,))


class Block(nn.Module):
    """x += ls1(attn(norm1 x)); x += ls2(mlp(norm2 x))."""

    config: ViTConfig

    def setup(self):
        c = self.config
        self.norm1 = nn.LayerNorm(epsilon=_LAYER_NORM_EPS, use_fast_variance=False)
        self.attn = Attention(c.width, c.heads)
        self.ls1 = LayerScale(c.width)
        self.norm2 = nn.LayerNorm(epsilon=_LAYER_NORM_EPS, use_fast_variance=False)
        self.mlp = Mlp(c.width, c.mlp_dim)
        self.ls2 = LayerScale(c.width)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """Images to the features of `config.feature`."""

    config: ViTConfig

    def setup(self):
        c = self.config
        self.patch_embed = nn.Conv(c.width, (c.patch, c.patch), strides=(c.patch, c.patch), padding="VALID")
        self.cls_token = self.param("cls_token", _TOKEN_INIT, (1, 1, c.width))
        self.pos_embed = self.param("pos_embed", _TOKEN_INIT, (1, 1 + c.table_grid**2, c.width))
        if c.registers:
            self.register_tokens = self.param("register_tokens", _TOKEN_INIT, (1, c.registers, c.width))
        self.blocks = [Block(c) for _ in range(c.depth)]
        self.norm = nn.LayerNorm(epsilon=_LAYER_NORM_EPS, use_fast_variance=False)

    def positions(self, grid: int) -> jax.Array:
        """The position table (1, 1 + grid * grid, D) for grid x grid patches; entry 0 is the class token's."""
        c = self.config
        table = self.pos_embed[0, 1:].reshape(c.table_grid, c.table_grid, c.width)
        table = interpolate_positions(table, grid, offset=c.interpolate_offset, antialias=c.interpolate_antialias)
        return jnp.concatenate([self.pos_embed[:, :1], table.reshape(1, grid * grid, c.width)], axis=1)

    def tokens(self, images: jax.Array) -> jax.Array:
        """Images (B, H, H, 3) to the first block's input (B, L, D): class token, registers, patches by rows."""
        patches = self.patch_embed(images)
        batch, grid, _, width = patches.shape
        cls = jnp.broadcast_to(self.cls_token, (batch, 1, width))
        x = jnp.concatenate([cls, patches.reshape(batch, grid * grid, width)], axis=1) + self.positions(grid)
        if not self.config.registers:
            return x
        # Registers have no position, so they join after the table is added.
        registers = jnp.broadcast_to(self.register_tokens, (batch, self.config.registers, width))
        return jnp.concatenate([x[:, :1], registers, x[:, 1:]], axis=1)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Encodes images (B, H, H, 3), H a multiple of the patch, to (B, N, D), or (B, 1, D) for the class token."""
        x = self.tokens(images)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if self.config.feature == "x_norm_clstoken":
            return x[:, :1]
        return x[:, 1 + self.config.registers :]
