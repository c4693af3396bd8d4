"""How the parts of a frame (visual latents, proprio and action embeddings) become predictor tokens, and back.

Leading axes are free. P: patches, D: encoder width, E and A: proprio and action embedding widths, P' and C: tokens
per frame and channels of a token. With concat_dim 1, P' = P and C = D + E * repeats + A * repeats; with concat_dim 0,
P' = P + 2 (patches, proprio, action) and C = D = E = A.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from wmq_jax.models.config import WorldModelConfig


class Latent(NamedTuple):
    """A frame in latent space.

    Attributes:
      visual: (..., P, D) float32, one latent per patch.
      proprio: (..., E) float32, the embedded proprioception.
    """

    visual: jax.Array
    proprio: jax.Array


def _per_patch(vector: jax.Array, repeats: int, patches: int) -> jax.Array:
    """(..., E) -> (..., patches, E * repeats): whole copies one after another, the same at every patch."""
    vector = jnp.tile(vector, (1,) * (vector.ndim - 1) + (repeats,))
    return jnp.broadcast_to(vector[..., None, :], (*vector.shape[:-1], patches, vector.shape[-1]))


def join(config: WorldModelConfig, latent: Latent, action: jax.Array) -> jax.Array:
    """Joins a latent and an action embedding (..., A) to tokens (..., P', C)."""
    if config.concat_dim == 0:
        return jnp.concatenate([latent.visual, latent.proprio[..., None, :], action[..., None, :]], axis=-2)
    patches = latent.visual.shape[-2]
    proprio = _per_patch(latent.proprio, config.num_proprio_repeat, patches)
    action = _per_patch(action, config.num_action_repeat, patches)
    return jnp.concatenate([latent.visual, proprio, action], axis=-1)


def separate(config: WorldModelConfig, z: jax.Array) -> tuple[Latent, jax.Array]:
    """Splits tokens (..., P', C) into a latent and an action embedding (..., A).

    With concat_dim 1 every patch carries its own copies of the two embeddings; the first copy at patch 0 is taken.
    """
    if config.concat_dim == 0:
        return Latent(z[..., :-2, :], z[..., -2, :]), z[..., -1, :]
    width = config.encoder.width
    proprio = z[..., 0, width : width + config.proprio_emb_dim]
    start = width + config.proprio_channels
    return Latent(z[..., :width], proprio), z[..., 0, start : start + config.action_emb_dim]


def without_action(config: WorldModelConfig, z: jax.Array) -> jax.Array:
    """The part of tokens (..., P', C) that the predictor must get right: all but the action's token or channels."""
    if config.concat_dim == 0:
        return z[..., :-1, :]
    return z[..., : -config.action_channels]


def replace_actions(config: WorldModelConfig, z: jax.Array, action: jax.Array) -> jax.Array:
    """Tokens (..., P', C) with their action part overwritten by the embedding `action` (..., A)."""
    kept = without_action(config, z)
    if config.concat_dim == 0:
        return jnp.concatenate([kept, action[..., None, :]], axis=-2)
    return jnp.concatenate([kept, _per_patch(action, config.num_action_repeat, z.shape[-2])], axis=-1)
