"""Configurations: sizes, JSON, and what they refuse."""

import json
import math

import jax
import pytest

from tests.models.tiny import observations, tiny_config
from wmq_jax.models import (
    DecoderConfig,
    PredictorConfig,
    ViTConfig,
    WorldModel,
    WorldModelConfig,
    bundled_config,
    official_config,
)

NAMED = {"bundled": bundled_config(), "tiny": tiny_config(), "tiny, concat_dim 0": tiny_config(0)} | {
    f"official {env}": official_config(env) for env in ("wall", "pusht", "point_maze")
}


def parameter_counts(config):
    """Parameters of each module, without computing any."""
    model = WorldModel(config)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *observations(config, 1, config.num_hist)))
    return {
        name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part)) for name, part in shapes["params"].items()
    }


@pytest.mark.parametrize("name", NAMED)
def test_json_round_trip(name):
    config = NAMED[name]
    assert WorldModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("env, num_hist", [("wall", 1), ("pusht", 3), ("point_maze", 3)])
def test_official_sizes(env, num_hist):
    config = official_config(env)
    assert (config.num_hist, config.encoder_image_size, config.num_patches, config.predictor_dim) == (
        num_hist,
        196,
        196,
        404,
    )
    counts = parameter_counts(config)
    # ViT-S/14 has 21.7 M parameters apart from its position table, which is stored for 37 x 37 patches.
    table = 37 * 37 * config.encoder.width
    assert counts["encoder"] - table == pytest.approx(21.53e6, rel=1e-3)
    assert counts["encoder"] - table + counts["predictor"] == pytest.approx(41.7e6, rel=5e-3)


def test_the_bundled_model_is_small():
    config = bundled_config()
    counts = parameter_counts(config)
    assert (config.num_patches, config.predictor_dim, config.num_hist) == (16, 96, 1)
    assert 0.4e6 < counts["encoder"] + counts["predictor"] < 0.5e6
    assert counts["decoder"] <= 0.4e6
    assert 4 * sum(counts.values()) <= 4e6


def test_tokens_of_a_frame():
    one, two = tiny_config(1), tiny_config(0)
    assert (one.tokens_per_frame, one.predictor_dim) == (4, 8 + 5 + 6)
    assert (two.tokens_per_frame, two.predictor_dim) == (4 + 2, 8)
    repeated = one.replace(num_proprio_repeat=2, num_action_repeat=3)
    assert repeated.predictor_dim == 8 + 2 * 5 + 3 * 6
    assert one.replace(encoder=one.encoder.replace(feature="x_norm_clstoken")).tokens_per_frame == 1


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: ViTConfig.from_dict({"widht": 3}), "ViTConfig has no field .'widht'."),
        (
            lambda: WorldModelConfig.from_dict({"encoder": {}, "predictor": {}, "decoder": None}),
            "needs the field .*action_dim",
        ),
        (
            lambda: WorldModelConfig.from_dict({**bundled_config().to_dict(), "predictor": {"layers": 3}}),
            "PredictorConfig has no field .'layers'.",
        ),
        (lambda: ViTConfig(width=10, heads=3), "must be a multiple of heads"),
        (lambda: ViTConfig(depth=0), r"depth must be a whole number in 1\.\.65536, got 0"),
        (lambda: ViTConfig(width=2**31), r"width must be a whole number in 1\.\.65536, got 2147483648"),
        (lambda: ViTConfig(interpolate_offset=float("nan")), r"interpolate_offset must lie in \[0, 1\), got nan"),
        (lambda: ViTConfig(interpolate_offset=float("inf")), r"interpolate_offset must lie in \[0, 1\), got inf"),
        (lambda: DecoderConfig(n_res_block=2**31), r"n_res_block must be in 0\.\.65536, got 2147483648"),
        (lambda: ViTConfig(feature="cls"), "feature must be one of"),
        (lambda: ViTConfig(registers=-1), r"registers must be in 0\.\.65536, got -1"),
        (lambda: PredictorConfig(dropout=1.0), r"dropout must lie in \[0, 1\)"),
        (lambda: DecoderConfig(kind="vae"), "kind must be one of"),
        (lambda: tiny_config(2), "concat_dim must be 0 or 1"),
        (lambda: tiny_config(0, action_emb_dim=3), "must equal the encoder's width"),
        (lambda: tiny_config(0, num_action_repeat=2), "both repeats must be 1"),
        (lambda: tiny_config(image_size=8), "image_size must be at least 16"),
        (lambda: tiny_config(encoder=ViTConfig(width=8, heads=2, patch=13)), "must be a multiple of its patch"),
        (lambda: tiny_config(decoder=DecoderConfig(kind="transposed_conv")), "takes one latent per frame"),
        (lambda: official_config("pong"), "no official configuration for 'pong'"),
    ],
)
def test_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
