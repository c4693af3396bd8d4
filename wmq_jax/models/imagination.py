"""Imagination for planning: the rollout of many action sequences from one frame, with nothing computed twice.

Frame 0 is the observation; frame t is predicted from frames max(0, t - num_hist) .. t - 1 and their actions. Equal to
`WorldModel.rollout` to float rounding, and cheaper by

* encoding the observation once for all samples,
* keys and values: while the window grows (frames 1 .. num_hist), earlier frames keep theirs, since attention is
  frame-causal; when it slides, every frame gets another position, and the window is computed anew,
* the last layer, which computes attention, MLP and final norm for the last frame of the window alone,
* the trip count: a traced horizon h costs h steps where the loop is a real loop (`lax.map`, not `vmap`).

N: samples, H: actions per sample, A: entries of a model action, P, D, E: see `layout`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from wmq_jax.models import layout
from wmq_jax.models.config import WorldModelConfig
from wmq_jax.models.fence import fenced
from wmq_jax.models.layout import Latent

Apply = Callable[..., Any]


def imagine(
    apply: Apply,
    config: WorldModelConfig,
    variables: Any,
    latent: Latent,
    actions: jax.Array,
    horizon: int | jax.Array | None = None,
    keep: Literal["last", "all"] = "last",
) -> Latent:
    """Imagines what each of N action sequences leads to.

    Args:
      apply: `apply(variables, *args, method=name)`, such as a `WorldModel`'s `apply`.
      config: the model's configuration.
      variables: its variables.
      latent: the observed frame, shared by all samples: visual (P, D), proprio (E,).
      actions: model actions (N, H, A); action t is taken at frame t.
      horizon: how many of them to imagine, 1 .. H; None for all. A whole number is static, and the result can be
        differentiated in reverse mode. A traced int32 bounds a loop, and gives bit for bit what the first
        `horizon` actions give alone.
      keep: 'last' for frame `horizon` alone, 'all' for every frame.

    Returns:
      With 'last' a latent (N, P, D), (N, E); with 'all' one of H + 1 frames (N, H + 1, P, D), (N, H + 1, E), where
      frame 0 is the observation, and frames after a traced horizon are zeros.

    Raises:
      ValueError: a shape, a static horizon or `keep` is not as above.
    """
    _check(latent, actions, horizon, keep)
    if horizon is None or isinstance(horizon, int):
        actions = actions[:, :horizon]
        horizon = actions.shape[1]
    samples, steps, _ = actions.shape

    observed = Latent(*(jnp.broadcast_to(x, (samples, *x.shape)) for x in latent))
    no_action = jnp.zeros((samples, config.action_emb_dim), observed.visual.dtype)
    # XLA may move what joins a frame into the first step, where it would round as no traced horizon does.
    frame = lax.optimization_barrier(layout.join(config, observed, no_action))
    kept = _first_of(observed, steps + 1) if keep == "all" else None

    def act(frame, t):
        action = lax.dynamic_index_in_dim(actions, t, axis=1, keepdims=False)
        return apply(variables, frame, action, method="replace_actions")

    def grow(t, frame, cache):
        z = act(frame, t - 1)
        frame, cache = apply(variables, z, cache, method="predict_next")
        return frame, z, cache

    def slide(t, frame, window):
        window = jnp.concatenate([window, act(frame, t - 1)[:, None]], axis=1)
        return apply(variables, window, method="predict_last"), window[:, 1:]

    # A window of one frame never grows: it slides from the start.
    grown = min(config.num_hist, steps) if config.num_hist > 1 else 0
    past, cache = [], None
    for t in range(1, grown + 1):
        frame, z, cache = _if_needed(t <= horizon, lambda: grow(t, frame, cache), frame)
        kept = _store(config, kept, frame, t, t <= horizon)
        past.append(z)

    def step(t, carry):
        frame, window, kept = carry
        # The first trip does nothing, for `fenced`'s reason: XLA would unroll a loop that has one trip only.
        frame, window = lax.cond(t > grown, lambda: slide(t, frame, window), lambda: (frame, window))
        return frame, window, _store(config, kept, frame, t)

    if grown < steps:
        window = jnp.stack(past[1:], axis=1) if grown > 1 else frame[:, None][:, :0]
        frame, _, kept = lax.fori_loop(grown, horizon + 1, step, (frame, window, kept))
    return layout.separate(config, frame)[0] if kept is None else kept


def _if_needed(needed: bool | jax.Array, step: Callable[[], Any], frame: jax.Array) -> Any:
    """Returns `step()`, fenced; if it is not needed, `frame` and zeros nobody reads."""
    if needed is True:
        return fenced(step)

    def skip():
        _, *rest = jax.eval_shape(step)
        return frame, *jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), rest)

    return fenced(lambda: lax.cond(needed, step, skip))


def _first_of(latent: Latent, frames: int) -> Latent:
    """A latent (N, ...) as the first of `frames` frames (N, frames, ...), the others zero."""
    return Latent(*(jnp.zeros((x.shape[0], frames, *x.shape[1:]), x.dtype).at[:, 0].set(x) for x in latent))


def _store(
    config: WorldModelConfig,
    kept: Latent | None,
    frame: jax.Array,
    t: int | jax.Array,
    imagined: bool | jax.Array = True,
) -> Latent | None:
    """Writes the latent of tokens (N, P', C) at frame t of `kept`, or zeros if it was not imagined; None stays None."""
    if kept is None:
        return None
    latent, _ = layout.separate(config, frame)
    return Latent(
        *(
            lax.dynamic_update_index_in_dim(frames, jnp.where(imagined, one, 0), t, axis=1)
            for frames, one in zip(kept, latent)
        )
    )


def _check(latent: Latent, actions: jax.Array, horizon: int | jax.Array | None, keep: str) -> None:
    if latent.visual.ndim != 2 or latent.proprio.ndim != 1:
        raise ValueError(
            "imagine takes the latent of one frame, visual (P, D) and proprio (E,), got "
            f"{latent.visual.shape} and {latent.proprio.shape}."
        )
    if actions.ndim != 3 or actions.shape[1] < 1:
        raise ValueError(f"imagine takes actions (N, H, A) with H at least 1, got {actions.shape}.")
    if isinstance(horizon, int) and not 1 <= horizon <= actions.shape[1]:
        raise ValueError(f"the horizon must lie in 1..{actions.shape[1]}, got {horizon}.")
    if keep not in ("last", "all"):
        raise ValueError(f"keep must be 'last' or 'all', got {keep!r}.")
