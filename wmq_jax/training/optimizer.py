"""DINO-WM's optimizers, one per module, as one optax transformation; and Muon, which small models need."""

from __future__ import annotations

import dataclasses
from typing import Any

import optax
import optax.contrib

from wmq_jax.training.schedule import make_schedule
from wmq_jax.training.settings import DecoderSettings, PredictorSettings


@dataclasses.dataclass(frozen=True)
class LearningRates:
    """A learning rate per module (a number or an optax schedule); the defaults are the official ones.

    Attributes:
      predictor: AdamW.
      embeddings: AdamW, of the proprio and action encoders.
      decoder: Adam.
      encoder: Adam, of the visual encoder; None freezes it, as the official system does. It uses 1e-6 otherwise.
      weight_decay: of AdamW, decoupled.
    """

    predictor: optax.ScalarOrSchedule = 5e-4
    embeddings: optax.ScalarOrSchedule = 5e-4
    decoder: optax.ScalarOrSchedule = 3e-4
    encoder: optax.ScalarOrSchedule | None = None
    weight_decay: float = 0.01


# Top-level entry of the parameter tree -> the optimizer that trains it.
_OPTIMIZER_OF = {
    "encoder": "encoder",
    "encoder_stats": "constant",
    "predictor": "predictor",
    "proprio_encoder": "embeddings",
    "action_encoder": "embeddings",
    "decoder": "decoder",
}


def official_optimizer(rates: LearningRates = LearningRates()) -> optax.GradientTransformation:
    """An optax transformation over the parameters of a `WorldModel`, or over some of its top-level modules."""
    frozen = optax.set_to_zero()
    return optax.partition(
        {
            "predictor": optax.adamw(rates.predictor, weight_decay=rates.weight_decay),
            "embeddings": optax.adamw(rates.embeddings, weight_decay=rates.weight_decay),
            "decoder": optax.adam(rates.decoder),
            "encoder": frozen if rates.encoder is None else optax.adam(rates.encoder),
            "constant": frozen,
        },
        _labels,
    )


def predictor_optimizer(settings: PredictorSettings, steps: int) -> optax.GradientTransformation:
    """What the predictor's stage trains predictor and embeddings with, over `steps` steps."""
    schedule = lambda peak: make_schedule(settings.schedule, peak, settings.warmup, steps)
    rate = schedule(settings.learning_rate)
    if settings.optimizer == "muon":
        return muon(rate, settings.weight_decay)
    embeddings = schedule(settings.embeddings_learning_rate or settings.learning_rate)
    return official_optimizer(LearningRates(rate, embeddings, weight_decay=settings.weight_decay))


def decoder_optimizer(settings: DecoderSettings) -> optax.GradientTransformation:
    """What the decoder's stage trains the decoder with."""
    rate = make_schedule(settings.schedule, settings.learning_rate, settings.warmup, settings.steps)
    return official_optimizer(LearningRates(decoder=rate))


def muon(rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for matrices, AdamW at a tenth of its rate for everything else.

    The momentum of a matrix is replaced by the nearest orthogonal matrix, so that rare directions move as far as
    frequent ones. On the bundled model a fifth of AdamW's steps then reach the same losses.
    """
    return optax.contrib.muon(
        rate,
        weight_decay=weight_decay,
        adam_learning_rate=lambda step: 0.1 * rate(step),
        adam_weight_decay=weight_decay,
        # With 0.999 the encoder's loss jumps back to that of a blank guess every few hundred steps.
        adam_b2=0.98,
    )


def _labels(params: Any) -> Any:
    """The optimizer of each top-level module; a label stands for the whole subtree."""
    unknown = sorted(set(params) - set(_OPTIMIZER_OF))
    if unknown:
        raise ValueError(f"there is no optimizer for the modules {unknown}; there is one for {sorted(_OPTIMIZER_OF)}.")
    return {module: _OPTIMIZER_OF[module] for module in params}
