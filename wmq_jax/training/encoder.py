"""Pretraining of the visual encoder on pairs of successive images.

DINO-WM takes a published backbone and freezes it. Where none is at hand, a small encoder of the same modules is
trained and then frozen. Its features f must

* tell what the image shows: blurred views of it (see `views`) are predicted by one linear map per patch, and
* change slowly (Wiskott & Sejnowski 2002): between successive frames little against their variance,

    slowness = mean over channels c of  E[(f_c(t+1) - f_c(t))^2] / (2 Var f_c).

Slow features vary smoothly with what moves in the picture, which makes them predictable, and they set apart what no
short path joins, which makes their distance a good one to descend. No position and no action is used.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wmq_jax.envs import Wall
from wmq_jax.models import WorldModel
from wmq_jax.training.frames import encode_states, encode_visual, render
from wmq_jax.training.loop import Stage, TrainState
from wmq_jax.training.optimizer import muon
from wmq_jax.training.schedule import warmup_cosine
from wmq_jax.training.settings import EncoderSettings
from wmq_jax.training.views import blurred_views

_WEIGHT_DECAY = 0.01
# Shares of the steps between which the weight of slowness rises from 0: a blank picture is slow too, so there must be
# something to slow.
_RAMP = 0.5, 0.75
_STATISTICS_FRAMES = 4096  # from which the views' and the latents' means and deviations are taken


def encoder_stage(
    model: WorldModel, params: Any, env: Wall, states: jax.Array, key: jax.Array, settings: EncoderSettings
) -> Stage:
    """The stage that trains `params['encoder']`; its state holds the encoder and the linear readout.

    A batch is half first and half second frames of its pairs.

    Args:
      model: the world model; the encoder's features are taken before standardisation.
      params: initial parameters of the whole model.
      env: draws the frames.
      states: (N, T + 1, s) states of the training trajectories.
      key: of the batches.
      settings: sizes and rates.
    """
    rate = warmup_cosine(settings.learning_rate, settings.warmup, settings.steps)
    optimizer = muon(rate, _WEIGHT_DECAY)
    side = model.config.encoder_image_size // model.config.encoder.patch
    views = functools.partial(blurred_views, blurs=settings.blurs, grid=settings.grid, patches=side)
    mean, scale = _view_statistics(views, env, some_states(states))

    def init() -> TrainState:
        count, patches, channels = mean.shape
        shape = (count, model.config.encoder.width, channels)
        readout = {
            "kernel": jax.random.normal(jax.random.fold_in(key, 0), shape) / shape[1] ** 0.5,
            "bias": jnp.zeros((count, patches, channels)),
        }
        trained = {"encoder": params["encoder"], "readout": readout}
        return TrainState(trained, optimizer.init(trained))

    def losses(trained, images, weight):
        features = encode_visual(model, {**params, "encoder": trained["encoder"]}, images)
        readout = jnp.einsum("bpd,kdc->kbpc", features, trained["readout"]["kernel"])
        error = readout + trained["readout"]["bias"][:, None] - (views(images) - mean[:, None]) / scale[:, None]
        per_view = jnp.mean(error**2, axis=(1, 2, 3))
        slow = slowness(*jnp.split(features, 2))
        return jnp.sum(per_view) + weight * slow, (per_view, slow)

    def step(state, inputs, states):
        step_key, weight = inputs
        row_key, time_key = jax.random.split(step_key)
        row = jax.random.randint(row_key, (settings.batch // 2,), 0, states.shape[0])
        time = jax.random.randint(time_key, (settings.batch // 2,), 0, states.shape[1] - 1)
        batch = jnp.concatenate([states[row, time], states[row, time + 1]])
        gradient, metrics = jax.grad(losses, has_aux=True)(state.params, render(env, batch), weight)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        return TrainState(optax.apply_updates(state.params, updates), opt_state), metrics

    @jax.jit
    def chunk(state, index, states):
        keys = jax.random.split(jax.random.fold_in(key, index + 1), settings.chunk)
        done = (index * settings.chunk + jnp.arange(settings.chunk)) / settings.steps
        weights = settings.slowness * jnp.clip((done - _RAMP[0]) / (_RAMP[1] - _RAMP[0]), 0, 1)
        state, (per_view, slow) = jax.lax.scan(lambda state, x: step(state, x, states), state, (keys, weights))
        names = [f"blur {blur:g}" for blur in settings.blurs]
        return state, {**dict(zip(names, per_view.mean(axis=0))), "slowness": slow.mean()}

    return Stage("encoder", settings.steps // settings.chunk, init, lambda state, index: chunk(state, index, states))


def slowness(first: jax.Array, second: jax.Array) -> jax.Array:
    """The slowness (see above) of features (B, P, D) of B pairs of successive frames; 1 for unrelated frames.

    Variances are over the batch, patch by patch, and averaged over patches: what never changes does not count.
    """
    both = jnp.concatenate([first, second])
    variance = jnp.mean(jnp.var(both, axis=0), axis=0)
    change = jnp.mean((second - first) ** 2, axis=(0, 1))
    return jnp.mean(change / jnp.maximum(2 * variance, 1e-12))


def some_states(states: jax.Array) -> jax.Array:
    """A few thousand of the states (N, T + 1, s), spread over trajectories and times: (M, s)."""
    flat = states.reshape(-1, states.shape[-1])
    stride = max(1, flat.shape[0] // _STATISTICS_FRAMES)
    # A stride that shares a factor with T + 1 would visit few times of a trajectory only.
    while stride > 1 and math.gcd(stride, states.shape[1]) > 1:
        stride -= 1
    return flat[::stride][:_STATISTICS_FRAMES]


def feature_statistics(model: WorldModel, params: Any, env: Wall, states: jax.Array) -> dict[str, jax.Array]:
    """Mean and standard deviation (D,) of each feature over states (N, T + 1, s), for `params["encoder_stats"]`."""
    width = model.config.encoder.width
    plain = {**params, "encoder_stats": {"mean": jnp.zeros(width), "std": jnp.ones(width)}}
    features = jax.jit(functools.partial(encode_states, model, env=env))(plain, states=some_states(states))
    return {"mean": features.mean(axis=(0, 1)), "std": features.std(axis=(0, 1))}


def _view_statistics(views, env, states) -> tuple[jax.Array, jax.Array]:
    """Mean of every view value (K, P, V), and a deviation per view (K, 1, 1), so that views weigh alike in the loss."""

    @jax.jit
    def statistics(states):
        values = views(render(env, states))
        mean = values.mean(axis=1)
        return mean, jnp.sqrt(jnp.mean((values - mean[:, None]) ** 2, axis=(1, 2, 3)))[:, None, None]

    return statistics(states)
