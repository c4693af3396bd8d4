"""The name maps to official state dicts: complete, reversible, and clear about what does not fit."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from tests.models.tiny import random_model, tiny_config
from wmq_jax.checkpoints.official import from_torch, to_torch, weights
from wmq_jax.models import DecoderConfig, PredictorConfig, ViTConfig, official_config

VQVAE = DecoderConfig(channel=4, n_embed=6, n_res_block=2, n_res_channel=3)
CLASS_TOKEN = ViTConfig(width=8, depth=1, heads=2, mlp_dim=16, table_grid=3, feature="x_norm_clstoken")
CONFIGS = {
    "no decoder": tiny_config(),
    "concat_dim 0": tiny_config(0),
    "registers": tiny_config(encoder=ViTConfig(width=8, depth=1, heads=2, mlp_dim=16, registers=2)),
    "qkv bias": tiny_config(predictor=PredictorConfig(depth=1, heads=2, dim_head=4, mlp_dim=8, qkv_bias=True)),
    "one head": tiny_config(predictor=PredictorConfig(depth=1, heads=1, dim_head=19, mlp_dim=8)),
    "VQ-VAE": tiny_config(decoder=VQVAE),
    "VQ-VAE with codes": tiny_config(decoder=VQVAE.replace(quantize=True)),
    "transposed convolutions": tiny_config(decoder=DecoderConfig(kind="transposed_conv", depth=1), encoder=CLASS_TOKEN),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip(name):
    """Every parameter has exactly one official weight, and comes back from it unchanged."""
    config = CONFIGS[name]
    _, variables = random_model(config)
    params = jax.tree.map(np.asarray, variables["params"])
    state = to_torch(params, config)
    assert len(state) == len(jax.tree.leaves(params))
    back = from_torch(state, config)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_official_names_and_shapes():
    """The published wall model: DINOv2 ViT-S/14 names, a fused qkv, a convolution over time as an embedding."""
    by_name = {w.name: w.path for w in weights(official_config("wall"))}
    assert by_name["encoder.base_model.blocks.11.attn.qkv.weight"] == ("encoder", "blocks_11", "attn", "qkv", "kernel")
    assert by_name["predictor.transformer.layers.5.1.net.4.weight"] == ("predictor", "layers_5", "ff", "fc2", "kernel")
    assert by_name["decoder.upsample_b.blocks.8.weight"] == ("decoder", "upsample", "up2", "kernel")
    assert "predictor.transformer.layers.0.0.to_qkv.bias" not in by_name
    assert len(set(by_name.values())) == len(by_name)


@pytest.fixture
def state():
    config = CONFIGS["VQ-VAE"]
    _, variables = random_model(config)
    return config, to_torch(variables["params"], config)


def test_everything_that_does_not_fit_is_named(state):
    config, state = state
    del state["encoder.base_model.norm.bias"]
    state["predictor.to_q.weight"] = np.zeros((3, 3))
    state["proprio_encoder.patch_embed.weight"] = np.zeros((4, 3, 1))
    with pytest.raises(ValueError) as error:
        from_torch(state, config)
    message = str(error.value)
    assert "missing (1): encoder.base_model.norm.bias; " in message
    assert "surplus (1): predictor.to_q.weight; " in message
    assert "of other shapes (1): proprio_encoder.patch_embed.weight with (4, 3, 1) instead of (5, 3, 1)." in message


def test_weights_that_are_stored_but_unused_may_be_there(state):
    config, state = state
    extra = {"encoder.base_model.mask_token": np.zeros((1, 8)), "decoder.quantize_b.embed": np.zeros((8, 6))}
    both = from_torch(state | extra, config), from_torch(state, config)
    jax.tree.map(np.testing.assert_array_equal, *both)
    quantizing = config.replace(decoder=config.decoder.replace(quantize=True))
    with pytest.raises(ValueError, match=r"missing \(2\): decoder.quantize_b.cluster_size"):
        from_torch(state | extra, quantizing)


def test_parameters_without_an_official_counterpart_are_refused():
    config = tiny_config(standardize_latents=True)
    _, variables = random_model(config)
    with pytest.raises(ValueError, match="no official counterpart.*encoder_stats/mean"):
        to_torch(variables["params"], config)
    with pytest.raises(ValueError, match="standardize_latents must be false"):
        from_torch({}, config)
    flat = traverse_util.flatten_dict(variables["params"])
    flat = {path: leaf for path, leaf in flat.items() if path[0] not in ("encoder_stats", "predictor")}
    with pytest.raises(ValueError, match="these are missing: .*predictor/norm/bias"):
        to_torch(traverse_util.unflatten_dict(flat), config.replace(standardize_latents=False))
