"""The training objective and its optimizers: who gets a gradient, who is trained and how fast."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.models.tiny import observations, random_model, tiny_config
from tests.quick_jit import quick_jit
from wmq_jax.models import DecoderConfig, PredictorConfig, ViTConfig
from wmq_jax.training.losses import Clips, prediction_losses, world_model_losses
from wmq_jax.training.optimizer import LearningRates, official_optimizer

DECODER = DecoderConfig(channel=4, n_embed=6, n_res_block=1, n_res_channel=3)
DROPOUT = PredictorConfig(depth=1, heads=2, dim_head=4, mlp_dim=16, dropout=0.5)


def model_and_clips(**changes):
    shallow = {
        "encoder": ViTConfig(width=8, depth=1, heads=2, mlp_dim=16, table_grid=2),
        "predictor": PredictorConfig(depth=1, heads=2, dim_head=4, mlp_dim=16),
    }
    config = tiny_config(**{"decoder": DECODER, **shallow, **changes})
    model, variables = random_model(config)
    return model, variables["params"], Clips(*observations(config, 2, 4))


def reached(model, params, clips, select, **options):
    """The modules that get a gradient from a loss."""
    grads = quick_jit(jax.grad(lambda p: select(world_model_losses(model, p, clips, **options))))(params)
    return {module for module, part in grads.items() if any(np.any(g) for g in jax.tree.leaves(part))}


LATENT_MODULES = {"predictor", "proprio_encoder", "action_encoder"}


def test_the_decoder_learns_from_reconstructions_and_nothing_else_does():
    model, params, clips = model_and_clips(standardize_latents=True)
    assert reached(model, params, clips, lambda losses: losses.loss) == LATENT_MODULES | {"decoder"}
    images_only = reached(model, params, clips, lambda losses: losses.reconstruction.total + losses.imagination.total)
    assert images_only == {"decoder"}


@pytest.mark.parametrize("train_encoder", [False, True])
def test_the_encoder_learns_only_if_asked_to(train_encoder):
    model, params, clips = model_and_clips(decoder=None)
    modules = reached(model, params, clips, lambda losses: losses.loss, train_encoder=train_encoder)
    assert modules == LATENT_MODULES | ({"encoder"} if train_encoder else set())


def test_the_commitment_term_counts_a_quarter():
    model, params, clips = model_and_clips(decoder=DECODER.replace(quantize=True))
    losses = quick_jit(lambda p: world_model_losses(model, p, clips))(params)
    for part in (losses.reconstruction, losses.imagination):
        assert part.vq > 0
        np.testing.assert_allclose(part.total, part.recon + 0.25 * part.vq, rtol=1e-6)
    np.testing.assert_allclose(losses.loss, losses.prediction.z + losses.reconstruction.total, rtol=1e-6)


@pytest.mark.parametrize("concat_dim", [0, 1])
def test_prediction_losses_ignore_the_action_and_weigh_parts_by_size(concat_dim):
    model, _, _ = model_and_clips(concat_dim=concat_dim)
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
    model, params, clips = model_and_clips(decoder=None, predictor=DROPOUT)
    loss = quick_jit(lambda key: world_model_losses(model, params, clips, dropout_key=key).loss)
    plain = quick_jit(lambda: world_model_losses(model, params, clips).loss)()
    first, again, other = (loss(jax.random.key(seed)) for seed in (0, 0, 1))
    assert first == again and len({float(first), float(other), float(plain)}) == 3


def test_images_of_another_size_than_the_decoders_are_resized():
    """33-pixel observations become 28 pixels for the encoder, and 32-pixel images from the decoder."""
    model, params, clips = model_and_clips(image_size=33)
    losses = quick_jit(lambda p: world_model_losses(model, p, clips))(params)
    assert np.isfinite(losses.loss) and losses.reconstruction.recon > 0


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


def test_a_module_without_an_optimizer_is_named():
    with pytest.raises(ValueError, match=r"no optimizer for the modules \['critic'\]"):
        official_optimizer().init({"critic": {"w": jnp.zeros(2)}})
