"""Embeddings of proprioception and actions, and the encoder-feature standardisation."""

from __future__ import annotations

import flax.linen as nn
import jax


class VectorEmbedding(nn.Module):
    """A learned affine map of a vector, the same at every time step: (..., p) -> (..., features)."""

    features: int

    def setup(self):
        self.proj = nn.Dense(self.features)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.proj(x)


class FeatureStatistics(nn.Module):
    """(f - mean) / std per channel, with constants that are stored with the parameters and never trained."""

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        width = features.shape[-1]
        mean = self.param("mean", nn.initializers.zeros, (width,))
        std = self.param("std", nn.initializers.ones, (width,))
        return (features - jax.lax.stop_gradient(mean)) / jax.lax.stop_gradient(std)
