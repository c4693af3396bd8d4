"""World models built from the recorded weights, of whatever sizes the recording has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from wmq_jax.checkpoints.official import from_torch
from wmq_jax.models import DecoderConfig, PredictorConfig, ViTConfig, WorldModelConfig


def encoder_config(recording, **changes: Any) -> ViTConfig:
    """The backbone of `world_model.npz`."""
    base = "sd/encoder.base_model"
    table = recording[f"{base}.pos_embed"].shape[1] - 1
    sizes = dict(
        width=recording.scalar("spec/D"),
        depth=recording.scalar("spec/enc_depth"),
        heads=recording.scalar("spec/enc_heads"),
        patch=recording[f"{base}.patch_embed.proj.weight"].shape[-1],
        mlp_dim=recording[f"{base}.blocks.0.mlp.fc1.weight"].shape[0],
        table_grid=math.isqrt(table),
    )
    return ViTConfig(**{**sizes, **changes})


def predictor_config(recording, **changes: Any) -> PredictorConfig:
    """The predictors of `world_model.npz`."""
    sizes = dict(
        depth=recording.scalar("spec/p_depth"),
        heads=recording.scalar("spec/p_heads"),
        dim_head=recording.scalar("spec/p_dh"),
        mlp_dim=recording.scalar("spec/p_mlp"),
    )
    return PredictorConfig(**{**sizes, **changes})


def vqvae_config(state: Mapping[str, np.ndarray], **changes: Any) -> DecoderConfig:
    """The VQ-VAE decoder of a state dict, its names without the module."""
    blocks = {int(name.split(".")[2]) for name in state if name.startswith("dec.blocks.") and ".conv.1." in name}
    sizes = dict(
        channel=state["dec.blocks.0.weight"].shape[0],
        n_embed=state["quantize_b.embed"].shape[1],
        n_res_block=len(blocks),
        n_res_channel=state["dec.blocks.1.conv.1.weight"].shape[0] if blocks else 1,
    )
    return DecoderConfig(**{**sizes, **changes})


def image_sides(recording) -> dict[int, int]:
    """Patches per frame of each recorded predictor -> side of the images it belongs to."""
    patches = {
        int(name.split(".")[0].removeprefix("predictor"))
        for name in recording.names("sd/")
        if name.startswith("predictor")
    }
    return {count: 16 * math.isqrt(count) for count in patches}


def recorded_world_model(
    golden,
    image_size: int,
    concat_dim: int = 1,
    decoder: Mapping[str, np.ndarray] | None = None,
) -> tuple[WorldModelConfig, dict[str, Any]]:
    """Configuration and parameters of the recorded model for images of this side.

    Args:
      golden: the fixture.
      image_size: side of the images, in pixels.
      concat_dim: 1 for the weights of `world_model.npz`, 0 for those that `wm_ops.npz` adds.
      decoder: state dict of a VQ-VAE decoder, its names without the module; None for no decoder.
    """
    recording = golden("world_model.npz")
    state = recording.under("sd/")
    predictors = {name: state.pop(name) for name in list(state) if name.startswith("predictor")}
    patches = (image_size // 16) ** 2
    state |= {
        name.replace(f"predictor{patches}.", "predictor."): w
        for name, w in predictors.items()
        if name.startswith(f"predictor{patches}.")
    }
    if concat_dim == 0:
        state |= golden("wm_ops.npz").under("concat0/sd/")
    if decoder is not None:
        state |= {f"decoder.{name}": w for name, w in decoder.items()}
    tokens = patches + (2 if concat_dim == 0 else 0)
    config = WorldModelConfig(
        encoder=encoder_config(recording),
        predictor=predictor_config(recording),
        decoder=None if decoder is None else vqvae_config(decoder),
        image_size=image_size,
        concat_dim=concat_dim,
        num_hist=state["predictor.pos_embedding"].shape[1] // tokens,
        proprio_dim=recording.scalar("spec/prop_raw"),
        action_dim=recording.scalar("spec/act_raw"),
        proprio_emb_dim=state["proprio_encoder.patch_embed.weight"].shape[0],
        action_emb_dim=state["action_encoder.patch_embed.weight"].shape[0],
    )
    return config, from_torch(state, config)
