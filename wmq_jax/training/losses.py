"""The training objective of DINO-WM (Zhou et al. 2024): teacher-forced prediction of latents, and reconstruction.

B: batch, T: frames of a clip, H: image side, P' and C: tokens per frame and channels of a token.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from wmq_jax.models import WorldModel, layout
from wmq_jax.models.image import resize

# Weight of the commitment term in the decoder's loss.
VQ_WEIGHT = 0.25


class PredictionLosses(NamedTuple):
    """Mean squared errors of predicted tokens, scalars.

    Attributes:
      z: over everything but the action part: what is trained.
      visual: over the visual part.
      proprio: over the proprio part. Both are means over their own elements, so `z` is not their sum.
    """

    z: jax.Array
    visual: jax.Array
    proprio: jax.Array


class DecoderLosses(NamedTuple):
    """Losses of decoded images, scalars.

    Attributes:
      recon: mean squared error of the pixels, which lie in [-1, 1].
      vq: the commitment term.
      total: recon + 0.25 * vq.
    """

    recon: jax.Array
    vq: jax.Array
    total: jax.Array


def _mse(prediction: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(prediction - target))


def predict_successors(model: WorldModel, params: Any, z: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
    """Predicts frames 1.. of clips from the true frames before them: tokens (B, T, P', C) -> (B, T - 1, P', C).

    With a `dropout_key` the predictor's dropout is on.
    """
    if dropout_key is None:
        return model.apply({"params": params}, z[:, :-1], method="predict")
    return model.apply(
        {"params": params}, z[:, :-1], deterministic=False, method="predict", rngs={"dropout": dropout_key}
    )


def prediction_losses(model: WorldModel, predicted: jax.Array, z: jax.Array) -> PredictionLosses:
    """Compares predicted frames (B, T - 1, P', C) with frames 1.. of tokens (B, T, P', C), which get no gradient."""
    config = model.config
    predicted, target = (layout.without_action(config, x) for x in (predicted, jax.lax.stop_gradient(z[:, 1:])))
    if config.concat_dim == 0:
        parts = (predicted[..., :-1, :], target[..., :-1, :]), (predicted[..., -1:, :], target[..., -1:, :])
    else:
        width = config.encoder.width
        parts = (predicted[..., :width], target[..., :width]), (predicted[..., width:], target[..., width:])
    return PredictionLosses(_mse(predicted, target), *(_mse(*part) for part in parts))


def decoder_losses(model: WorldModel, params: Any, latents: jax.Array, images: jax.Array) -> DecoderLosses:
    """Compares images decoded from latents (B, T, P, D), which get no gradient, with the true ones (B, T, H, H, 3).

    Where the decoder's images are not as large as the observations, the true ones are resized.
    """
    decoded, vq = model.apply({"params": params}, jax.lax.stop_gradient(latents), method="decode")
    recon = _mse(decoded, resize(images, decoded.shape[-2]))
    return DecoderLosses(recon, vq, recon + VQ_WEIGHT * vq)
