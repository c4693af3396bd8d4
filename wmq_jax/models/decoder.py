"""Decoders from visual latents to images: the VQ-VAE decoder and the transposed-convolution decoder of DINO-WM.

Both map latents (B, P, D) to images (B, H, W, 3), neither clipped nor squashed, and a commitment term `diff`, a scalar.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from wmq_jax.models.config import DecoderConfig

_EMA_DECAY = 0.99
_EMA_EPS = 1e-5


def _transposed_conv(features: int, kernel: int, stride: int, padding: int) -> nn.ConvTranspose:
    """A transposed convolution as the original pads it: output side (n - 1) stride - 2 padding + kernel."""
    pad = kernel - 1 - padding
    return nn.ConvTranspose(
        features, (kernel, kernel), strides=(stride, stride), padding=[(pad, pad)] * 2, transpose_kernel=True
    )


class Codebook(NamedTuple):
    """The codes of a vector quantizer and their running statistics (van den Oord et al. 2017, appendix A.1).

    Attributes:
      embed: (D, K) the codes.
      cluster_size: (K,) decayed number of latents per code.
      embed_avg: (D, K) decayed sum of these latents.
    """

    embed: jax.Array
    cluster_size: jax.Array
    embed_avg: jax.Array


def nearest_codes(codebook: Codebook, z: jax.Array) -> jax.Array:
    """Index (...,) int32 of the code nearest to each latent z (..., D), in squared distance; the lower in a tie."""
    squared = jnp.sum(z**2, axis=-1, keepdims=True) - 2 * z @ codebook.embed + jnp.sum(codebook.embed**2, axis=0)
    return jnp.argmin(squared, axis=-1)


def update_codebook(codebook: Codebook, z: jax.Array) -> Codebook:
    """One step of the exponential moving averages that train the codes.

      N <- .99 N + .01 counts,  M <- .99 M + .01 sums,  embed = M / (smoothed share of N * sum N)

    A code that was never chosen gets a tiny divisor, hence a huge value: the original's behaviour.

    Args:
      codebook: the codes that the latents were assigned with.
      z: (..., D) the batch's latents.
    """
    latents = z.reshape(-1, z.shape[-1])
    codes = codebook.embed.shape[-1]
    chosen = jax.nn.one_hot(nearest_codes(codebook, latents), codes, dtype=latents.dtype)
    size = _EMA_DECAY * codebook.cluster_size + (1 - _EMA_DECAY) * chosen.sum(axis=0)
    total = _EMA_DECAY * codebook.embed_avg + (1 - _EMA_DECAY) * latents.T @ chosen
    smoothed = (size + _EMA_EPS) / (size.sum() + codes * _EMA_EPS) * size.sum()
    return Codebook(embed=total / smoothed, cluster_size=size, embed_avg=total)


class VectorQuantizer(nn.Module):
    """Replaces each latent by its nearest code; the gradient passes straight through to the latent.

    The codebook lives with the parameters, so that a checkpoint is one tree, but has no gradient: `update_codebook`
    trains it.
    """

    width: int
    n_embed: int

    def setup(self):
        shape = (self.width, self.n_embed)
        self.embed = self.param("embed", nn.initializers.normal(1.0), shape)
        self.cluster_size = self.param("cluster_size", nn.initializers.zeros, (self.n_embed,))
        self.embed_avg = self.param("embed_avg", nn.initializers.normal(1.0), shape)

    def __call__(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """z (..., D) -> codes (..., D) and diff, the mean squared distance to them."""
        codebook = jax.lax.stop_gradient(Codebook(self.embed, self.cluster_size, self.embed_avg))
        code = jnp.take(codebook.embed.T, nearest_codes(codebook, z), axis=0)
        diff = jnp.mean((code - z) ** 2)
        return z + jax.lax.stop_gradient(code - z), diff


class ResidualBlock(nn.Module):
    """x + conv1x1(relu(conv3x3(relu x)))."""

    channel: int
    hidden: int

    def setup(self):
        self.conv1 = nn.Conv(self.hidden, (3, 3), padding=1)
        self.conv2 = nn.Conv(self.channel, (1, 1))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.conv2(nn.relu(self.conv1(nn.relu(x))))


class Upsample4(nn.Module):
    """Residual blocks, then two transposed convolutions: (B, s, s, D) -> (B, 4s, 4s, features)."""

    config: DecoderConfig
    features: int

    def setup(self):
        c = self.config
        self.conv_in = nn.Conv(c.channel, (3, 3), padding=1)
        self.res_blocks = [ResidualBlock(c.channel, c.n_res_channel) for _ in range(c.n_res_block)]
        self.up1 = _transposed_conv(c.channel // 2, kernel=4, stride=2, padding=1)
        self.up2 = _transposed_conv(self.features, kernel=4, stride=2, padding=1)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv_in(x)
        for block in self.res_blocks:
            x = block(x)
        return self.up2(nn.relu(self.up1(nn.relu(x))))


class VQVAEDecoder(nn.Module):
    """A square grid of latents to images of 16 times its side (Razavi et al. 2019, decoder half)."""

    config: DecoderConfig
    width: int

    def setup(self):
        c = self.config
        if c.quantize:
            self.codebook = VectorQuantizer(self.width, c.n_embed)
        self.upsample = Upsample4(c, self.width)
        self.decode = Upsample4(c, 3)

    def __call__(self, latents: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(B, P, D) with P a square -> (B, 16 sqrt P, 16 sqrt P, 3), diff (0 without quantization)."""
        batch, patches, width = latents.shape
        side = math.isqrt(patches)
        x = latents.reshape(batch, side, side, width)
        diff = jnp.zeros((), latents.dtype)
        if self.config.quantize:
            x, diff = self.codebook(x)
        return self.decode(self.upsample(x)), diff


class TransposedConvDecoder(nn.Module):
    """One latent per image to an image: five transposed convolutions up to 243 pixels, then a plain bilinear resize."""

    config: DecoderConfig

    def setup(self):
        depth = self.config.depth
        self.fc = nn.Dense(32 * depth)
        self.ups = [
            _transposed_conv(f, kernel=5, stride=3, padding=1) for f in (8 * depth, 4 * depth, 2 * depth, depth, 3)
        ]

    def __call__(self, latents: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(B, 1, D) -> (B, output_size, output_size, 3), diff (always 0)."""
        x = self.fc(latents)[:, None]
        for up in self.ups[:-1]:
            x = nn.relu(up(x))
        x = self.ups[-1](x)
        size = self.config.output_size
        image = jax.image.resize(x, (x.shape[0], size, size, 3), "bilinear", antialias=False)
        return image, jnp.zeros((), latents.dtype)


def make_decoder(config: DecoderConfig, width: int) -> nn.Module:
    """The decoder that `config.kind` names, for latents of `width` channels."""
    if config.kind == "vqvae":
        return VQVAEDecoder(config, width)
    return TransposedConvDecoder(config)
