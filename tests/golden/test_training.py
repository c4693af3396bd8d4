"""Losses, gradients and optimizer steps against training.npz (dropout off)."""

import functools

import jax
import numpy as np
import optax
import pytest

from tests.quick_jit import quick_jit
from wmq_jax.checkpoints.official import to_torch
from wmq_jax.models import WorldModel, normalize_image
from wmq_jax.training.losses import Clips, world_model_losses
from wmq_jax.training.optimizer import official_optimizer

# Adam's first steps are lr * sign(gradient): entries whose gradient is rounding noise may go either way.
TINY_GRADIENT = 1e-5


@pytest.fixture(scope="module")
def recording(golden):
    return golden("training.npz")


def clips_of(recording, case):
    visual = normalize_image(np.moveaxis(recording[f"{case}/visual_u8"], -3, -1))
    return Clips(visual, recording[f"{case}/proprio"], recording[f"{case}/act"])


@pytest.fixture(scope="module", params=["concat1", "concat0"])
def case(request, recording, recorded_model):
    """Name, model, parameters and clips of a recorded case."""
    name = request.param
    clips = clips_of(recording, name)
    config, params = recorded_model(
        clips.visual.shape[-2], concat_dim=int(name[-1]), decoder=recording.under("sd/decoder.")
    )
    return name, WorldModel(config), params, clips


@functools.lru_cache
def gradient_function(model):
    def loss(params, clips):
        losses = world_model_losses(model, params, clips)
        return losses.loss, losses

    return quick_jit(jax.value_and_grad(loss, has_aux=True))


def test_losses(recording, case, close):
    name, model, params, clips = case
    (_, losses), _ = gradient_function(model)(params, clips)
    ours = {
        "loss": losses.loss,
        "z_loss": losses.prediction.z,
        "z_visual_loss": losses.prediction.visual,
        "z_proprio_loss": losses.prediction.proprio,
    }
    for suffix, part in (("reconstructed", losses.reconstruction), ("pred", losses.imagination)):
        ours |= {
            f"decoder_recon_loss_{suffix}": part.recon,
            f"decoder_vq_loss_{suffix}": part.vq,
            f"decoder_loss_{suffix}": part.total,
        }
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
    assert all(not np.any(g) for g in jax.tree.leaves(grads["encoder"])), "the encoder is frozen"
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
        (loss, _), grads = gradients(trained, clips)
        trained, state = update(grads, state, trained)
        curve.append(loss)
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
    config, params = recorded_model(clips.visual.shape[-2])
    losses = quick_jit(lambda p: world_model_losses(WorldModel(config), p, clips).loss)(params)
    close(losses, recording["nodec/loss"], rel_l2=1e-5)
