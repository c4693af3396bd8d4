"""Training of the decoder on frozen latents; it never shapes them, as in DINO-WM."""

from typing import Any

import jax
import optax

from wmq_jax.envs import Wall
from wmq_jax.models import WorldModel
from wmq_jax.training.convolution import convolve_by_matmul
from wmq_jax.training.frames import encode_visual, render
from wmq_jax.training.loop import Stage, TrainState
from wmq_jax.training.losses import DecoderLosses, decoder_losses
from wmq_jax.training.optimizer import decoder_optimizer
from wmq_jax.training.settings import DecoderSettings


def reconstruction_losses(model: WorldModel, params: Any, images: jax.Array) -> DecoderLosses:
    """What the stage minimises (its `total`): images (B, H, H, 3) decoded from their own latents."""
    latents = encode_visual(model, params, images)
    with convolve_by_matmul(jax.default_backend() == "cpu"):
        return decoder_losses(model, params, latents[:, None], images[:, None])


def decoder_stage(
    model: WorldModel, params: Any, env: Wall, states: jax.Array, key: jax.Array, settings: DecoderSettings
) -> Stage:
    """The stage that trains `params['decoder']` to redraw frames from their latents.

    Args:
      model: the world model.
      params: its parameters; the encoder and its statistics are read and not changed.
      env: draws the frames.
      states: (N, T + 1, s) states of the training trajectories.
      key: of the batches.
      settings: sizes and rates.
    """
    optimizer = decoder_optimizer(settings)

    def init() -> TrainState:
        trained = {"decoder": params["decoder"]}
        return TrainState(trained, optimizer.init(trained))

    def loss(trained, images):
        return reconstruction_losses(model, {**params, **trained}, images).total

    def step(state, step_key, states):
        flat = states.reshape(-1, states.shape[-1])
        batch = flat[jax.random.randint(step_key, (settings.batch,), 0, flat.shape[0])]
        pixel, gradient = jax.value_and_grad(loss)(state.params, render(env, batch))
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        return TrainState(optax.apply_updates(state.params, updates), opt_state), pixel

    @jax.jit
    def chunk(state, index, states):
        keys = jax.random.split(jax.random.fold_in(key, index), settings.chunk)
        state, pixel = jax.lax.scan(lambda state, step_key: step(state, step_key, states), state, keys)
        return state, {"pixel": pixel.mean()}

    return Stage("decoder", settings.steps // settings.chunk, init, lambda state, index: chunk(state, index, states))
