"""Training of the predictor and of the proprio and action embeddings on frozen latents (DINO-WM's objective)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from wmq_jax.envs import Wall
from wmq_jax.models import Latent, WorldModel
from wmq_jax.training.compilation import jit_step
from wmq_jax.training.frames import Frames, encode_states
from wmq_jax.training.loop import Stage, TrainState
from wmq_jax.training.losses import PredictionLosses, predict_successors, prediction_losses
from wmq_jax.training.optimizer import predictor_optimizer
from wmq_jax.training.settings import PredictorSettings

TRAINED = ("predictor", "proprio_encoder", "action_encoder")


def clip_tokens(model: WorldModel, params: Any, visual: jax.Array, proprio: jax.Array, action: jax.Array) -> jax.Array:
    """Tokens (B, T, P', C) of clips whose frames are encoded already.

    Args:
      model, params: the world model.
      visual: latents (B, T, P, D).
      proprio: normalised (B, T, p).
      action: normalised model actions (B, T, A); the last one is not used.
    """
    embedded = model.apply({"params": params}, proprio, method=lambda model, x: model.proprio_encoder(x))
    return model.apply({"params": params}, Latent(visual, embedded), action, method="assemble")


def copy_losses(model: WorldModel, z: jax.Array) -> PredictionLosses:
    """Losses of the baseline that predicts no change: each frame of the tokens (B, T, P', C) as the next."""
    return prediction_losses(model, z[:, :-1], z)


def clip_losses(
    model: WorldModel,
    params: Any,
    clips: tuple[jax.Array, jax.Array, jax.Array],
    dropout_key: jax.Array | None = None,
) -> tuple[PredictionLosses, PredictionLosses]:
    """What the stage minimises (its `z`), and the losses of predicting no change.

    Targets get no gradient; inputs do, so that the embeddings learn through the predictor.

    Args:
      model, params: the world model.
      clips: visual latents, proprio and actions as `clip_tokens` takes them.
      dropout_key: turns the predictor's dropout on.
    """
    z = clip_tokens(model, params, *clips)
    return prediction_losses(model, predict_successors(model, params, z, dropout_key), z), copy_losses(model, z)


def predictor_stage(
    model: WorldModel,
    params: Any,
    env: Wall,
    frames: Frames,
    key: jax.Array,
    settings: PredictorSettings,
) -> Stage:
    """The stage that trains the modules `TRAINED`.

    A round takes the next shard of trajectories, in turn, encodes their frames once, and passes over all clips of
    `num_hist + 1` frames.

    Args:
      model: the world model.
      params: its parameters; the encoder and its statistics are read and not changed.
      env: draws the frames.
      frames: of the training trajectories.
      key: of the order of the clips and of dropout.
      settings: sizes and rates.
    """
    shards = frames.states.shape[0] // settings.shard
    length = model.config.num_hist + 1
    starts = frames.states.shape[1] - length + 1
    steps = settings.steps_of_pass(starts)
    optimizer = predictor_optimizer(settings, settings.steps(starts))

    def init() -> TrainState:
        trained = {name: params[name] for name in TRAINED}
        return TrainState(trained, optimizer.init(trained))

    def losses(trained, batch, dropout_key):
        found, copied = clip_losses(model, {**params, **trained}, batch, dropout_key)
        return found.z, {"latent": found.z, "visual": found.visual, "proprio": found.proprio, "copy": copied.z}

    def step(state, inputs):
        batch, dropout_key = inputs
        gradient, metrics = jax.grad(losses, has_aux=True)(state.params, batch, dropout_key)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        return TrainState(optax.apply_updates(state.params, updates), opt_state), metrics

    @jax.jit
    def encode(states):
        return encode_states(model, params, env, states)

    @jit_step
    def chunk(state, index, visual, proprio, actions):
        order_key, dropout_key = jax.random.split(jax.random.fold_in(key, index))

        def batch(clip):
            """Clip i starts at frame i % starts of trajectory i // starts."""
            where = (clip // starts)[:, None], (clip % starts)[:, None] + jnp.arange(length)
            return visual[where], proprio[where], actions[where]

        orders = jax.vmap(lambda key: jax.random.permutation(key, settings.shard * starts))(
            jax.random.split(order_key, settings.passes)
        )
        clips = orders[:, : steps * settings.batch].reshape(settings.passes * steps, settings.batch)
        keys = jax.random.split(dropout_key, settings.passes * steps)
        state, metrics = jax.lax.scan(lambda state, x: step(state, (batch(x[0]), x[1])), state, (clips, keys))
        return state, {name: values.mean() for name, values in metrics.items()}

    def run(state, index):
        rows = slice(index % shards * settings.shard, (index % shards + 1) * settings.shard)
        states, proprio, actions = (x[rows] for x in frames)
        return chunk(state, index, encode(states), proprio, actions)

    return Stage("predictor", settings.rounds, init, run)
