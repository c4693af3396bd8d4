"""Pretraining of the visual encoder on images alone.

DINO-WM takes a published backbone and freezes it. Where none is at hand, a small encoder of the same modules is trained to predict blurred
views of its input (see `views`) by one linear map per patch latent, and then frozen. No position or action is used.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wmq_jax.envs import Wall
from wmq_jax.models import WorldModel
from wmq_jax.training.frames import encode_states, encode_visual, render
from wmq_jax.training.loop import Stage, TrainState
from wmq_jax.training.schedule import warmup_cosine
from wmq_jax.training.settings import EncoderSettings
from wmq_jax.training.views import blurred_views

_WEIGHT_DECAY = 0.01
# Without these two the loss jumps back to that of a blank guess every few hundred steps.
_CLIP, _SECOND_MOMENT = 1.0, 0.98
_STATISTICS_FRAMES = 4096  # from which the views' and the latents' means and deviations are taken


def encoder_stage(
    model: WorldModel, params: Any, env: Wall, states: jax.Array, key: jax.Array, settings: EncoderSettings
) -> Stage:
  """The stage that trains `params['encoder']`; its state holds the encoder and the linear readout.

  Args:
    model: the world model; the encoder's features are taken before standardisation.
    params: initial parameters of the whole model.
    env: draws the frames.
    states: (M, s) states of the training trajectories.
    key: of the batches.
    settings: sizes and rates.
  """
  rate = warmup_cosine(settings.learning_rate, settings.warmup, settings.steps)
  optimizer = optax.chain(
      optax.clip_by_global_norm(_CLIP), optax.adamw(rate, b2=_SECOND_MOMENT, weight_decay=_WEIGHT_DECAY)
  )
  side = model.config.encoder_image_size // model.config.encoder.patch
  views = functools.partial(blurred_views, blurs=settings.blurs, grid=settings.grid, patches=side)
  mean, scale = _view_statistics(views, env, states[:_STATISTICS_FRAMES])

  def init() -> TrainState:
    count, patches, channels = mean.shape
    shape = (count, model.config.encoder.width, channels)
    readout = {
        'kernel': jax.random.normal(jax.random.fold_in(key, 0), shape) / shape[1] ** 0.5,
        'bias': jnp.zeros((count, patches, channels)),
    }
    trained = {'encoder': params['encoder'], 'readout': readout}
    return TrainState(trained, optimizer.init(trained))

  def losses(trained, images):
    features = encode_visual(model, {**params, 'encoder': trained['encoder']}, images)
    readout = jnp.einsum('bpd,kdc->kbpc', features, trained['readout']['kernel'])
    error = readout + trained['readout']['bias'][:, None] - (views(images) - mean[:, None]) / scale[:, None]
    per_view = jnp.mean(error**2, axis=(1, 2, 3))
    return jnp.sum(per_view), per_view

  def step(state, step_key, states):
    batch = states[jax.random.randint(step_key, (settings.batch,), 0, states.shape[0])]
    gradient, per_view = jax.grad(losses, has_aux=True)(state.params, render(env, batch))
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), opt_state), per_view

  @jax.jit
  def chunk(state, index, states):
    keys = jax.random.split(jax.random.fold_in(key, index + 1), settings.chunk)
    state, per_view = jax.lax.scan(lambda state, step_key: step(state, step_key, states), state, keys)
    names = [f'blur {blur:g}' for blur in settings.blurs]
    return state, dict(zip(names, per_view.mean(axis=0)))

  return Stage('encoder', settings.steps // settings.chunk, init, lambda state, index: chunk(state, index, states))


def feature_statistics(model: WorldModel, params: Any, env: Wall, states: jax.Array) -> dict[str, jax.Array]:
  """Per-channel mean and standard deviation (D,) of the features of `states` (M, s), for `params['encoder_stats']`."""
  width = model.config.encoder.width
  plain = {**params, 'encoder_stats': {'mean': jnp.zeros(width), 'std': jnp.ones(width)}}
  features = jax.jit(functools.partial(encode_states, model, env=env))(plain, states=states[:_STATISTICS_FRAMES])
  return {'mean': features.mean(axis=(0, 1)), 'std': features.std(axis=(0, 1))}


def _view_statistics(views, env, states) -> tuple[jax.Array, jax.Array]:
  """Mean of every view value (K, P, V), and one deviation around it per view (K, 1, 1): views weigh alike in the loss."""

  @jax.jit
  def statistics(states):
    values = views(render(env, states))
    mean = values.mean(axis=1)
    return mean, jnp.sqrt(jnp.mean((values - mean[:, None]) ** 2, axis=(1, 2, 3)))[:, None, None]

  return statistics(states)
