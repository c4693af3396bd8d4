"""Losses, gradients and optimizer steps of the training stages against training.npz (dropout off)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.quick_jit import quick_jit
from wmq_jax.checkpoints.official import to_torch
from wmq_jax.models import WorldModel, normalize_image
from wmq_jax.training.decoder import reconstruction_losses
from wmq_jax.training.frames import encode_visual
from wmq_jax.training.losses import decoder_losses, predict_successors
from wmq_jax.training.optimizer import official_optimizer
from wmq_jax.training.predictor import TRAINED, clip_losses, clip_tokens

# Adam's first steps are lr * sign(gradient): entries whose gradient is rounding noise may go either way.
TINY_GRADIENT = 1e-5


@pytest.fixture(scope="module")
def recording(golden):
    return golden("training.npz")


def clips_of(recording, case):
    visual = normalize_image(np.moveaxis(recording[f"{case}/visual_u8"], -3, -1))
    return visual, recording[f"{case}/proprio"], recording[f"{case}/act"]


def encoded(model, params, clips):
    """The clips as the predictor's stage takes them: frames encoded one by one, by the frozen encoder."""
    visual, proprio, action = clips
    latents = encode_visual(model, params, visual.reshape(-1, *visual.shape[2:]))
    return latents.reshape(*visual.shape[:2], *latents.shape[1:]), proprio, action


@pytest.fixture(scope="module", params=["concat1", "concat0"])
def case(request, recording, recorded_model):
    """Name, model, parameters and clips of a recorded case."""
    name = request.param
    clips = clips_of(recording, name)
    config, params = recorded_model(
        clips[0].shape[-2], concat_dim=int(name[-1]), decoder=recording.under("sd/decoder.")
    )
    return name, WorldModel(config), params, clips


@functools.lru_cache
def gradient_function(model):
    """``(params, clips) -> (losses by recorded name, gradients)``: each module's gradient is of its stage's loss."""

    def predictor(trained, params, clips):
        found, _ = clip_losses(model, {**params, **trained}, encoded(model, params, clips))
        return found.z, found

    def decoder(trained, params, images):
        found = reconstruction_losses(model, {**params, **trained}, images)
        return found.total, found

    def imagined(params, clips):
        predicted = predict_successors(model, params, clip_tokens(model, params, *encoded(model, params, clips)))
        latent, _ = model.apply({"params": params}, predicted, method="separate")
        return decoder_losses(model, params, latent.visual, clips[0][:, 1:])

    def run(params, clips):
        part = lambda names: {name: params[name] for name in names}
        images = clips[0].reshape(-1, *clips[0].shape[2:])
        found, latent = jax.grad(predictor, has_aux=True)(part(TRAINED), params, clips)
        of_decoder, pixels = jax.grad(decoder, has_aux=True)(part(["decoder"]), params, images)
        losses = {"loss": latent.z + pixels.total, "z_loss": latent.z}
        losses |= {"z_visual_loss": latent.visual, "z_proprio_loss": latent.proprio}
        for suffix, of in (("reconstructed", pixels), ("pred", imagined(params, clips))):
            losses |= {f"decoder_recon_loss_{suffix}": of.recon, f"decoder_vq_loss_{suffix}": of.vq}
            losses[f"decoder_loss_{suffix}"] = of.total
        frozen = jax.tree.map(jnp.zeros_like, part(params.keys() - {*TRAINED, "decoder"}))
        return losses, {**frozen, **found, **of_decoder}

    return quick_jit(run)


def test_losses(recording, case, close):
    name, model, params, clips = case
    ours, _ = gradient_function(model)(params, clips)
    recorded = recording.names(f"{name}/loss/")
    assert set(recorded) == set(ours)
    for key in recorded:
        close(ours[key], recording[f"{name}/loss/{key}"].reshape(()), rel_l2=1e-5, what=key)


def test_predictions_and_images(recording, case, close):
    name, model, params, clips = case

    @quick_jit
    def run(variables):
        z = model.apply(variables, *clips, method="encode")
        predicted = model.apply(variables, z[:, :-1], method="predict")
        decode = lambda x: model.apply(
            variables, model.apply(variables, x, method="separate")[0].visual, method="decode"
        )[0]
        return predicted, decode(predicted), decode(z)

    predicted, imagined, reconstructed = run({"params": params})
    close(predicted, recording.sub(f"{name}/z_pred"), atol=5e-4, rel_l2=1e-5, what="z_pred")
    for key, images in (("visual_pred", imagined), ("visual_reconstructed", reconstructed)):
        close(np.moveaxis(images, -1, -3), recording.sub(f"{name}/{key}"), atol=1e-5, what=key)


def recorded_tensors(recording, prefix):
    """Names of the sub-sampled tensors under `prefix`."""
    return [
        key.removeprefix(prefix).removesuffix("/idx")
        for key in recording
        if key.startswith(prefix) and key.endswith("/idx")
    ]


def test_gradients(recording, case, close):
    name, model, params, clips = case
    _, grads = gradient_function(model)(params, clips)
    ours = to_torch(grads, model.config)
    names = recorded_tensors(recording, f"{name}/grad/")
    assert set(names) == {key for key in ours if not key.startswith("encoder.")}
    for key in names:
        recorded = recording.sub(f"{name}/grad/{key}")
        close(ours[key], recorded, rel_l2=1e-3, what=key)
        close(
            np.linalg.norm(ours[key].astype(np.float64)),
            recording[f"{name}/grad/{key}/norm"],
            rel_l2=1e-4,
            what=f"norm of {key}",
        )


def test_one_optimizer_step_and_loss_curve(recording, case, compared, close):
    name, model, params, clips = case
    gradients = gradient_function(model)
    optimizer = official_optimizer()

    @quick_jit
    def update(grads, state, params):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state, curve, trained = optimizer.init(params), [], params
    for step in range(len(recording[f"{name}/loss_curve"])):
        losses, grads = gradients(trained, clips)
        trained, state = update(grads, state, trained)
        curve.append(losses["loss"])
        if step == 0:
            first_grads, after_one = to_torch(grads, model.config), to_torch(trained, model.config)
    for key in recorded_tensors(recording, f"{name}/step1/"):
        recorded = recording.sub(f"{name}/step1/{key}")
        clear = np.abs(recorded.of(first_grads[key])) > TINY_GRADIENT
        assert clear.any() or np.abs(first_grads[key]).max() <= TINY_GRADIENT
        np.testing.assert_allclose(
            recorded.of(after_one[key])[clear], recorded.values[clear], rtol=0, atol=1e-6, err_msg=key
        )
        compared(max(1, clear.sum()))
    for key, before in to_torch(params, model.config).items():
        if key.startswith("encoder."):
            np.testing.assert_array_equal(after_one[key], before)
    close(np.stack(curve), recording[f"{name}/loss_curve"], rel_l2=1e-4, what="loss curve")


def test_without_decoder(recording, recorded_model, close):
    clips = clips_of(recording, "concat1")
    config, params = recorded_model(clips[0].shape[-2])
    model = WorldModel(config)
    losses, _ = quick_jit(lambda p: clip_losses(model, p, encoded(model, p, clips)))(params)
    close(losses.z, recording["nodec/loss"], rel_l2=1e-5)
