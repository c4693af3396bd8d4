"""The training objective and its optimizers: who gets a gradient, who is trained and how fast."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.models.tiny import observations, random_model, tiny_config
from tests.quick_jit import quick_jit
from wmq_jax.cli import load_config
from wmq_jax.models import DecoderConfig, PredictorConfig, ViTConfig
from wmq_jax.training.decoder import reconstruction_losses
from wmq_jax.training.frames import encode_visual
from wmq_jax.training.losses import prediction_losses
from wmq_jax.training.optimizer import (
    LearningRates,
    decoder_optimizer,
    official_optimizer,
    predictor_optimizer,
)
from wmq_jax.training.predictor import clip_losses
from wmq_jax.training.settings import DecoderSettings, PredictorSettings, check_settings

pytestmark = pytest.mark.quick

DECODER = DecoderConfig(channel=4, n_embed=6, n_res_block=1, n_res_channel=3)
DROPOUT = PredictorConfig(depth=1, heads=2, dim_head=4, mlp_dim=16, dropout=0.5)


def model_and_clips(**changes):
    shallow = {
        "encoder": ViTConfig(width=8, depth=1, heads=2, mlp_dim=16, table_grid=2),
        "predictor": PredictorConfig(depth=1, heads=2, dim_head=4, mlp_dim=16),
    }
    config = tiny_config(**{"decoder": DECODER, **shallow, **changes})
    model, variables = random_model(config)
    visual, proprio, action = observations(config, 2, 4)
    images = visual.reshape(-1, *visual.shape[2:])
    latents = encode_visual(model, variables["params"], images).reshape(2, 4, config.num_patches, -1)
    return model, variables["params"], (latents, proprio, action), images


def reached(loss, params):
    """The modules that get a gradient from a loss."""
    grads = quick_jit(jax.grad(loss))(params)
    return {module for module, part in grads.items() if any(np.any(g) for g in jax.tree.leaves(part))}


def test_each_stage_trains_its_modules_and_no_others():
    model, params, clips, images = model_and_clips(standardize_latents=True)
    latent = lambda params: clip_losses(model, params, clips)[0].z
    assert reached(latent, params) == {"predictor", "proprio_encoder", "action_encoder"}
    assert reached(lambda params: reconstruction_losses(model, params, images).total, params) == {"decoder"}


def test_the_commitment_term_counts_a_quarter():
    model, params, _, images = model_and_clips(decoder=DECODER.replace(quantize=True))
    losses = quick_jit(lambda p: reconstruction_losses(model, p, images))(params)
    assert losses.vq > 0
    np.testing.assert_allclose(losses.total, losses.recon + 0.25 * losses.vq, rtol=1e-6)


@pytest.mark.parametrize("concat_dim", [0, 1])
def test_prediction_losses_ignore_the_action_and_weigh_parts_by_size(concat_dim):
    model, *_ = model_and_clips(concat_dim=concat_dim)
    config = model.config
    z = jax.random.normal(jax.random.key(0), (2, 4, config.tokens_per_frame, config.predictor_dim))
    width, patches = config.encoder.width, config.num_patches
    if concat_dim == 0:
        parts = {"visual": np.s_[:, :, :patches], "proprio": np.s_[:, :, patches], "action": np.s_[:, :, patches + 1]}
        share = patches / (patches + 1)
    else:
        stop = width + config.proprio_channels
        parts = {"visual": np.s_[..., :width], "proprio": np.s_[..., width:stop], "action": np.s_[..., stop:]}
        share = width / stop
    expected = {"visual": (share, 1, 0), "proprio": (1 - share, 0, 1), "action": (0, 0, 0)}
    for name, part in parts.items():
        losses = prediction_losses(model, z[:, 1:].at[part].add(1.0), z)
        np.testing.assert_allclose(losses, expected[name], atol=1e-5, err_msg=name)


def test_dropout_needs_a_key():
    model, params, clips, _ = model_and_clips(decoder=None, predictor=DROPOUT)
    loss = quick_jit(lambda key: clip_losses(model, params, clips, key)[0].z)
    plain = quick_jit(lambda: clip_losses(model, params, clips)[0].z)()
    first, again, other = (loss(jax.random.key(seed)) for seed in (0, 0, 1))
    assert first == again and len({float(first), float(other), float(plain)}) == 3


def test_images_of_another_size_than_the_decoders_are_resized():
    """33-pixel observations become 28 pixels for the encoder, and 32-pixel images from the decoder."""
    model, params, _, images = model_and_clips(image_size=33)
    losses = quick_jit(lambda p: reconstruction_losses(model, p, images))(params)
    assert np.isfinite(losses.total) and losses.recon > 0


def test_learning_rates_per_module():
    """Adam's first step is its learning rate times the gradient's sign; AdamW's also shrinks the weight."""
    params = {
        name: {"w": jnp.array([2.0, -2.0])}
        for name in ("encoder", "encoder_stats", "predictor", "proprio_encoder", "action_encoder", "decoder")
    }
    grads = jax.tree.map(lambda x: jnp.array([3.0, 5.0]), params)
    weights = params["decoder"]["w"]

    def first_step(rates):
        optimizer = official_optimizer(rates)
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        return {name: update["w"] for name, update in updates.items()}

    steps = first_step(LearningRates())
    for name in ("predictor", "proprio_encoder", "action_encoder"):
        np.testing.assert_allclose(steps[name], -5e-4 * (1 + 0.01 * weights), rtol=1e-4)
    np.testing.assert_allclose(steps["decoder"], [-3e-4, -3e-4], rtol=1e-4)
    assert not np.any(steps["encoder"]) and not np.any(steps["encoder_stats"])
    np.testing.assert_allclose(first_step(LearningRates(encoder=1e-6))["encoder"], [-1e-6, -1e-6], rtol=1e-4)
    slower = first_step(LearningRates(decoder=optax.constant_schedule(1e-5)))
    np.testing.assert_allclose(slower["decoder"], [-1e-5, -1e-5], rtol=1e-4)


def rates_of(optimizer, modules, steps):
    """Size of the first and of the last of some steps under a constant gradient, which is Adam's learning rate."""
    params = {name: {"w": jnp.zeros(2)} for name in modules}
    state, sizes = optimizer.init(params), []
    for _ in range(steps):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        sizes.append({name: -float(update["w"][0]) for name, update in updates.items()})
    return sizes[0], sizes[-1]


@pytest.mark.parametrize("mode", ["official", "finetune"])
def test_the_official_rates_are_constant(mode):
    settings = check_settings(load_config(f"configs/train_wall.py:{mode}").to_dict())
    for rates in rates_of(predictor_optimizer(settings.predictor, 9), ["predictor", "action_encoder"], 9):
        assert rates == pytest.approx({"predictor": 5e-4, "action_encoder": 5e-4}, rel=1e-3)
    for rates in rates_of(decoder_optimizer(settings.decoder), ["decoder"], 9):
        assert rates == pytest.approx({"decoder": 3e-4}, rel=1e-3)


def test_schedules_and_the_rate_of_the_embeddings():
    modules, common = ["predictor", "proprio_encoder"], dict(rounds=1, shard=1, passes=1, batch=1, learning_rate=0.1)
    settings = PredictorSettings(**common, embeddings_learning_rate=0.3, weight_decay=0.0)
    first, last = rates_of(predictor_optimizer(settings, 9), modules, 10)
    assert first == pytest.approx({"predictor": 0.1, "proprio_encoder": 0.3}, rel=1e-3)
    assert last == pytest.approx({"predictor": 0.001, "proprio_encoder": 0.003}, rel=1e-3)
    warm = DecoderSettings(steps=9, chunk=1, batch=1, learning_rate=0.1, warmup=2, schedule="constant")
    first, last = rates_of(decoder_optimizer(warm), ["decoder"], 9)
    assert (first["decoder"], last["decoder"]) == pytest.approx((0.0, 0.1), rel=1e-3)


def test_a_module_without_an_optimizer_is_named():
    with pytest.raises(ValueError, match=r"no optimizer for the modules \['critic'\]"):
        official_optimizer().init({"critic": {"w": jnp.zeros(2)}})
