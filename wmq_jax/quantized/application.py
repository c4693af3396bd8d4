"""Running DINO-WM with quantizers, and watching it run for calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp

from wmq_jax import quant
from wmq_jax.models import WorldModel, WorldModelConfig
from wmq_jax.quant import linen
from wmq_jax.quantized.structure import topology

PyTree = Any


# Tokens sampled at every site for the search of OMSE, and inputs sampled of first blocks for AWQ and OmniQuant.
TOKENS = 128
SEQUENCES = 32


def observe(
    config: WorldModelConfig, tokens: int = TOKENS, sequences: int = SEQUENCES, seed: int = 0
) -> Callable[..., PyTree]:
    """What a calibration pass keeps of a rollout, for ``quant.calibrate``: by default all that any method here needs.

    Args:
      config: the model.
      tokens: sampled at every site; 0: only ranges of channels are kept.
      sequences: inputs sampled of the first block of encoder and predictor; 0: none.
      seed: of what is sampled. Statistics that are to be merged need different ones.
    """
    blocks = topology(config).first_blocks() if sequences else ()
    sampled = quant.sequences(sequences, seed) if sequences else None
    return linen.observe(WorldModel(config), "rollout", quant.channel_ranges(tokens, seed=seed), blocks, sampled)


def calibrate(
    model: WorldModel, variables: PyTree, batches: Iterable[tuple], statistics: PyTree | None = None, **samples: int
) -> PyTree:
    """Statistics of every site, and samples of block inputs, over plain rollouts.

    Args:
      model: the world model.
      variables: its variables, not quantized.
      batches: arguments of ``WorldModel.rollout``: images (B, n, H, W, 3), proprioception (B, n, p), actions (B, n +
        m, A).
      statistics: continue from these.
      **samples: ``tokens``, ``sequences`` and ``seed`` of ``observe``.
    """
    return quant.calibrate(observe(model.config, **samples), variables, batches, statistics)


def quantized_apply(model: WorldModel, straight_through: bool = False) -> Callable[..., Any]:
    """``model.apply`` that honours ``variables['quant']``.

    Args:
      model: the world model.
      straight_through: let gradients pass the rounding of activations, for planners that descend them.
    """
    rounding = quant.straight_through_round if straight_through else jnp.round
    return linen.quantized_apply(model, rounding=rounding)
