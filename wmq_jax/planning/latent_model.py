"""What a planner needs of a world model, and two things that offer it: a learned model and the true simulator."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from wmq_jax.data import Normalizer
from wmq_jax.envs import Environment, Observation, execute
from wmq_jax.models import Latent, WorldModelConfig, imagine, normalize_image

Variables = Any
Start = Any


class LatentModel(NamedTuple):
    """Three pure functions over one episode.

    Attributes:
      encode: ``(variables, observation) -> Latent``, visual (P, D) and proprio (E,): what objectives compare.
      start: ``(latent, env_state) -> start``: what imagination begins from, any pytree. A learned model begins from
        what it saw alone; the environment's state is there for the true simulator.
      rollout: ``(variables, start, actions (N, H, A), horizon, keep) -> Latent`` of N imagined futures: with
        ``keep='last'`` the frame after ``horizon`` model actions, (N, P, D) and (N, E); with ``'all'`` frames 0..H, (N,
        H+1, ...), zeros after ``horizon``. ``horizon`` is None for H (then differentiable in the actions), or a traced
        int32 in 1..H.
    """

    encode: Callable[[Variables, Observation], Latent]
    start: Callable[[Latent, Any], Start]
    rollout: Callable[[Variables, Start, chex.Array, chex.Numeric | None, Literal["last", "all"]], Latent]


def world_model(config: WorldModelConfig, apply: Callable[..., Any], normalizer: Normalizer) -> LatentModel:
    """A learned world model, plain or quantized.

    Args:
      config: the model's configuration.
      apply: ``apply(variables, *args, method=name)``: ``WorldModel(config).apply`` or its quantized form.
      normalizer: constants of proprioception.
    """

    def encode(variables: Variables, observation: Observation) -> Latent:
        visual = normalize_image(observation.visual)[None, None]
        proprio = normalizer.normalize_proprio(observation.proprio)[None, None]
        latent = apply(variables, visual, proprio, method="encode_obs")
        return jax.tree.map(lambda x: x[0, 0], latent)

    def rollout(variables, start, actions, horizon, keep) -> Latent:
        return imagine(apply, config, variables, start, actions, horizon, keep)

    return LatentModel(encode, lambda latent, env_state: latent, rollout)


def simulator_model(
    env: Environment,
    normalizer: Normalizer,
    frameskip: int,
    encode: Callable[[Variables, Observation], Latent] | None = None,
) -> LatentModel:
    """The true simulator in place of a model: the ceiling of what better predictions could buy a planner that samples.

    It is none for gradient descent: pictures are rounded to whole numbers, so that costs of encoded ones have a
    gradient of zero in the actions but for proprioception.

    Args:
      env: the environment.
      normalizer: constants of actions and proprioception.
      frameskip: environment actions per model action.
      encode: how observations are compared: a model's encoder (perfect dynamics under the same objective), or None for
        normalised positions (perfect dynamics and perfect perception).
    """

    def positions(variables: Variables, observation: Observation) -> Latent:
        del variables
        position = normalizer.normalize_proprio(observation.proprio)
        return Latent(visual=position[None], proprio=position)

    compare = encode or positions

    def rollout(variables, start, actions, horizon, keep) -> Latent:
        samples, length, _ = actions.shape
        raw = normalizer.denormalize_action(actions.reshape(samples, length, frameskip, -1))

        def model_action(state, action):
            state, _ = execute(env, state, action)
            return state, state

        def states_of(action):
            return jax.lax.scan(model_action, start, action)[1]

        states = jax.vmap(states_of)(raw)
        horizon = length if horizon is None else horizon
        look = lambda state: compare(variables, env.observe(state))
        if keep == "last":
            return jax.vmap(look)(jax.tree.map(lambda s: s[:, horizon - 1], states))
        first = jax.tree.map(lambda s: jnp.broadcast_to(s, (samples, 1, *s.shape)), start)
        states = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), first, states)
        read = jnp.arange(length + 1) <= horizon
        mask = lambda x: jnp.where(read.reshape((1, -1) + (1,) * (x.ndim - 2)), x, 0)
        # One frame of all samples at a time: an encoder's activations of all frames at once would be many times that.
        frames = jax.lax.map(jax.vmap(look), jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), states))
        return jax.tree.map(lambda x: mask(jnp.moveaxis(x, 0, 1)), frames)

    return LatentModel(compare, lambda latent, env_state: env_state, rollout)
