"""Frames of trajectories, drawn when they are needed, and their latents under a frozen encoder."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from wmq_jax.data import Normalizer, Trajectories
from wmq_jax.envs import Wall
from wmq_jax.models import WorldModel, normalize_image


class Frames(NamedTuple):
    """What training sees of N trajectories at F moments, images apart, which are drawn from the states.

    Attributes:
      states: (N, F, s).
      proprio: (N, F, p), normalised.
      actions: (N, F, A) normalised model actions; `actions[:, t]` leads to frame t + 1, and the last one is zero.
    """

    states: jax.Array
    proprio: jax.Array
    actions: jax.Array


_BLOCK = 256  # frames encoded together, at the most


def render(env: Wall, states: jax.Array) -> jax.Array:
    """Images (..., H, H, 3), float32 in [-1, 1], of states (..., s)."""
    flat = states.reshape(-1, states.shape[-1])
    images = normalize_image(jax.vmap(lambda state: env.observe(state).visual)(flat))
    return images.reshape(*states.shape[:-1], *images.shape[1:])


def encode_visual(model: WorldModel, params: Any, images: jax.Array) -> jax.Array:
    """Visual latents (B, P, D) of images (B, H, H, 3)."""
    no_proprio = jnp.zeros((images.shape[0], 1, model.config.proprio_dim))
    return model.apply({"params": params}, images[:, None], no_proprio, method="encode_obs").visual[:, 0]


def encode_states(model: WorldModel, params: Any, env: Wall, states: jax.Array) -> jax.Array:
    """Visual latents (..., P, D) of states (..., s), rendered and encoded in blocks so that memory stays small."""
    flat = states.reshape(-1, states.shape[-1])
    size = min(_BLOCK, flat.shape[0])
    blocks = -(-flat.shape[0] // size)
    padded = jnp.resize(flat, (blocks * size, flat.shape[1])).reshape(blocks, size, -1)
    latents = jax.lax.map(lambda block: encode_visual(model, params, render(env, block)), padded)
    latents = latents.reshape(blocks * size, *latents.shape[2:])[: flat.shape[0]]
    return latents.reshape(*states.shape[:-1], *latents.shape[1:])


def count_frames(steps: int, frameskip: int, offsets: int = 1) -> int:
    """How many frames `frames_of` takes of each trajectory of so many environment steps."""
    return (steps - offsets + 1) // frameskip + 1


def frames_of(
    trajectories: Trajectories, env: Wall, normalizer: Normalizer, frameskip: int, offsets: int = 1
) -> Frames:
    """Every `frameskip`-th moment of trajectories, and the model actions between them.

    Args:
      trajectories: N of them.
      env: tells proprioception from states.
      normalizer: of actions and proprioception.
      frameskip: environment steps between two frames.
      offsets: each trajectory is taken so many times, from its first moment, its second and so on, all equally long;
        `frameskip` times, clips start at every step, as officially.

    Returns:
      `offsets` x N rows, those of the first moment first.
    """
    steps = (count_frames(trajectories.actions.shape[1], frameskip, offsets) - 1) * frameskip
    from_each = lambda x, length: jnp.concatenate([jnp.asarray(x[:, i : i + length]) for i in range(offsets)])
    states = from_each(trajectories.states, steps + 1)[:, ::frameskip]
    proprio = jax.jit(jax.vmap(jax.vmap(lambda state: env.observe(state).proprio)))(states)
    actions = normalizer.to_model_actions(from_each(trajectories.actions, steps), frameskip)
    return Frames(states, normalizer.normalize_proprio(proprio), jnp.pad(actions, [(0, 0), (0, 1), (0, 0)]))
