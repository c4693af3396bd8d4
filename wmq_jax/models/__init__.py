"""The DINO-WM world model as Flax Linen modules."""

from wmq_jax.models.config import (
    DecoderConfig,
    PredictorConfig,
    ViTConfig,
    WorldModelConfig,
    bundled_config,
    official_config,
)
from wmq_jax.models.image import normalize_image
from wmq_jax.models.imagination import imagine
from wmq_jax.models.layout import Latent
from wmq_jax.models.world_model import WorldModel

__all__ = [
    "DecoderConfig",
    "Latent",
    "PredictorConfig",
    "ViTConfig",
    "WorldModel",
    "WorldModelConfig",
    "bundled_config",
    "imagine",
    "normalize_image",
    "official_config",
]
