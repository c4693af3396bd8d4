"""The world model's options, and what must hold for any weights."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.tiny import observations, random_model, tiny_config
from tests.quick_jit import quick_jit
from wmq_jax.models import DecoderConfig, PredictorConfig, ViTConfig, layout

pytestmark = pytest.mark.quick

CLOSE = dict(rtol=1e-4, atol=1e-5)
SMALL_DECODER = DecoderConfig(channel=4, n_embed=6, n_res_block=1, n_res_channel=3)


def apply(model, variables, *args, method, **kwargs):
    return quick_jit(functools.partial(model.apply, method=method, **kwargs))(variables, *args)


def random_tokens(config, frames, seed=5):
    return jax.random.normal(jax.random.key(seed), (2, frames, config.tokens_per_frame, config.predictor_dim))


@pytest.mark.parametrize(
    "changes", [dict(concat_dim=1), dict(concat_dim=0), dict(concat_dim=1, num_proprio_repeat=2, num_action_repeat=3)]
)
def test_separate_inverts_assemble_and_actions_can_be_replaced(changes):
    config = tiny_config(**changes)
    model, variables = random_model(config)
    _, proprio, action = observations(config, 2, 3)
    visual = jax.random.normal(jax.random.key(1), (2, 3, config.num_patches, config.encoder.width))
    latent = layout.Latent(visual, apply(model, variables, proprio, method="encode_proprio"))
    z = apply(model, variables, latent, action, method="assemble")
    assert z.shape == (2, 3, config.tokens_per_frame, config.predictor_dim)
    back, embedded = apply(model, variables, z, method="separate")
    np.testing.assert_array_equal(back.visual, visual)
    np.testing.assert_array_equal(back.proprio, latent.proprio)
    np.testing.assert_array_equal(embedded, apply(model, variables, action, method="encode_act"))
    other = apply(model, variables, z, action[::-1], method="replace_actions")
    np.testing.assert_array_equal(other, apply(model, variables, latent, action[::-1], method="assemble"))


def test_predictions_do_not_see_later_frames():
    config = tiny_config()
    model, variables = random_model(config)
    z = random_tokens(config, 3)
    before = apply(model, variables, z, method="predict")
    after = apply(model, variables, z.at[:, 2].multiply(-1.0), method="predict")
    np.testing.assert_array_equal(before[:, :2], after[:, :2])
    assert np.abs(before[:, 2] - after[:, 2]).max() > 1e-3
    earlier = apply(model, variables, z.at[:, 0].multiply(-1.0), method="predict")
    assert (np.abs(before - earlier).max(axis=(0, 2, 3)) > 1e-3).all()


@pytest.mark.parametrize("concat_dim", [0, 1])
def test_residual_adds_the_input_frame_but_not_its_action(concat_dim):
    plain, variables = random_model(tiny_config(concat_dim))
    predictor = plain.config.predictor.replace(residual=True)
    residual = plain.clone(config=plain.config.replace(predictor=predictor))
    z = random_tokens(plain.config, 2)
    difference = apply(residual, variables, z, method="predict") - apply(plain, variables, z, method="predict")
    without = layout.replace_actions(plain.config, z, jnp.zeros((2, 2, plain.config.action_emb_dim)))
    np.testing.assert_allclose(difference, without, **CLOSE)
    np.testing.assert_allclose(
        layout.without_action(plain.config, difference), layout.without_action(plain.config, z), **CLOSE
    )


def test_standardised_latents():
    config = tiny_config(standardize_latents=True)
    model, variables = random_model(config)
    visual, proprio, _ = observations(config, 2, 1)
    scaled = apply(model, variables, visual, proprio, method="encode_obs")
    plain = apply(
        model.clone(config=config.replace(standardize_latents=False)), variables, visual, proprio, method="encode_obs"
    )
    statistics = variables["params"]["encoder_stats"]
    np.testing.assert_allclose(scaled.visual, (plain.visual - statistics["mean"]) / statistics["std"], **CLOSE)
    np.testing.assert_array_equal(scaled.proprio, plain.proprio)
    total = lambda v: model.apply(v, visual, proprio, method="encode_obs").visual.sum()
    grads = quick_jit(jax.grad(total))(variables)
    assert not any(np.any(g) for g in jax.tree.leaves(grads["params"]["encoder_stats"]))


@pytest.mark.parametrize("feature, latents", [("x_norm_patchtokens", 4), ("x_norm_clstoken", 1)])
def test_register_tokens_take_part_but_are_not_features(feature, latents):
    encoder = ViTConfig(
        width=8,
        depth=2,
        heads=2,
        mlp_dim=16,
        table_grid=5,
        registers=3,
        interpolate_offset=0.0,
        interpolate_antialias=True,
        feature=feature,
    )
    config = tiny_config(encoder=encoder)
    model, variables = random_model(config)
    visual, proprio, _ = observations(config, 2, 1)
    before = apply(model, variables, visual, proprio, method="encode_obs").visual
    assert before.shape == (2, 1, latents, 8)
    variables["params"]["encoder"]["register_tokens"] *= -1.0
    after = apply(model, variables, visual, proprio, method="encode_obs").visual
    assert np.abs(before - after).max() > 1e-3


def test_dropout_is_off_unless_asked_for():
    config = tiny_config(
        predictor=PredictorConfig(depth=2, heads=2, dim_head=4, mlp_dim=16, dropout=0.5, emb_dropout=0.2)
    )
    model, variables = random_model(config)
    z = random_tokens(config, 2)
    plain = apply(model, variables, z, method="predict")
    none = model.clone(config=config.replace(predictor=config.predictor.replace(dropout=0.0, emb_dropout=0.0)))
    np.testing.assert_array_equal(plain, apply(none, variables, z, method="predict"))

    @quick_jit
    def dropped(key):
        return model.apply(variables, z, deterministic=False, method="predict", rngs={"dropout": key})

    first, again, other = (dropped(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3 and np.abs(first - plain).max() > 1e-3


def test_every_quantizable_linear_is_a_dense_that_is_called():
    """Quantized places are named by the paths of these modules, and quantizers are attached to their calls."""
    config = tiny_config()
    model, variables = random_model(config)
    called = set()

    def note(next_fun, args, kwargs, context):
        if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
            called.add("/".join(context.module.path))
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(lambda: model.apply(variables, *observations(config, 1, 1)))
    blocks = [
        f"encoder/blocks_{i}/{site}"
        for i in range(config.encoder.depth)
        for site in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")
    ]
    layers = [
        f"predictor/layers_{i}/{site}"
        for i in range(config.predictor.depth)
        for site in ("attn/to_qkv", "attn/to_out", "ff/fc1", "ff/fc2")
    ]
    assert called == {*blocks, *layers, "proprio_encoder/proj", "action_encoder/proj"}


@pytest.mark.parametrize(
    "changes",
    [
        dict(decoder=SMALL_DECODER),
        dict(decoder=SMALL_DECODER.replace(quantize=True)),
        dict(
            decoder=DecoderConfig(kind="transposed_conv", depth=1, output_size=20),
            encoder=ViTConfig(width=8, depth=2, heads=2, mlp_dim=16, table_grid=3, feature="x_norm_clstoken"),
        ),
    ],
)
def test_decoding(changes):
    config = tiny_config(**changes)
    model, variables = random_model(config)
    latents = jax.random.normal(jax.random.key(2), (2, 3, config.num_patches, config.encoder.width))
    images, diff = apply(model, variables, latents, method="decode")
    side = 20 if config.decoder.kind == "transposed_conv" else 32
    assert images.shape == (2, 3, side, side, 3) and diff.shape == ()
    assert (diff > 0) == config.decoder.quantize
    # Frames are decoded one by one.
    alone, _ = apply(model, variables, latents[1:, 2:], method="decode")
    np.testing.assert_allclose(images[1, 2], alone[0, 0], **CLOSE)


def test_init_and_a_qkv_bias():
    config = tiny_config(
        decoder=SMALL_DECODER, predictor=PredictorConfig(depth=1, heads=2, dim_head=4, mlp_dim=16, qkv_bias=True)
    )
    model, variables = random_model(config)
    assert variables["params"]["predictor"]["layers_0"]["attn"]["to_qkv"]["bias"].shape == (3 * 2 * 4,)
    assert set(variables["params"]) == {"encoder", "predictor", "proprio_encoder", "action_encoder", "decoder"}
    assert apply(model, variables, *observations(config, 2, 3), method="__call__").shape == (2, 3, 4, 19)


def test_wrong_inputs_are_refused():
    config = tiny_config()
    model, variables = random_model(config)
    visual, proprio, _ = observations(config, 1, 1)
    with pytest.raises(ValueError, match=r"takes images of shape \(32, 32, 3\), got \(16, 32, 3\)"):
        model.apply(variables, visual[:, :, :16], proprio, method="encode_obs")
    with pytest.raises(ValueError, match="at most 3 frames of 4 tokens, got 16 tokens"):
        model.apply(variables, random_tokens(config, 4), method="predict")
    with pytest.raises(ValueError, match="has no decoder"):
        model.apply(variables, jnp.zeros((1, 1, 4, 8)), method="decode")
