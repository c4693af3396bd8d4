"""Small world models for the tests of this folder: every option of the real ones, little to compile."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wmq_jax.models import PredictorConfig, ViTConfig, WorldModel, WorldModelConfig


def tiny_config(concat_dim: int = 1, **changes: Any) -> WorldModelConfig:
    """32-pixel images, four patches; changes are fields of `WorldModelConfig`."""
    fields = dict(
        encoder=ViTConfig(width=8, depth=1, heads=2, mlp_dim=16, table_grid=3),
        predictor=PredictorConfig(depth=2, heads=2, dim_head=4, mlp_dim=16),
        decoder=None,
        proprio_dim=3,
        action_dim=4,
        image_size=32,
        num_hist=3,
        concat_dim=concat_dim,
        proprio_emb_dim=8 if concat_dim == 0 else 5,
        action_emb_dim=8 if concat_dim == 0 else 6,
    )
    return WorldModelConfig(**{**fields, **changes})


def observations(config: WorldModelConfig, batch: int, frames: int, seed: int = 0):
    """Random images (batch, frames, H, H, 3) in [-1, 1], proprioception and model actions."""
    keys = jax.random.split(jax.random.key(seed), 3)
    side = config.image_size
    return (
        jax.random.uniform(keys[0], (batch, frames, side, side, 3), minval=-1, maxval=1),
        jax.random.normal(keys[1], (batch, frames, config.proprio_dim)),
        jax.random.normal(keys[2], (batch, frames, config.action_dim)),
    )


def random_model(config: WorldModelConfig, seed: int = 0):
    """A model and variables in which no parameter has its trivial initial value."""
    model = WorldModel(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *observations(config, 1, 1))
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        centre = 1.0 if path[-1].key in ("scale", "gamma", "std") else 0.0
        return jnp.asarray(centre + rng.normal(0, 0.3, leaf.shape), jnp.float32)

    return model, jax.tree_util.tree_map_with_path(fill, shapes)
