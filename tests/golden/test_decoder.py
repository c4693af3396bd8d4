"""The VQ-VAE decoder, its codebook and the transposed-convolution decoder against decoder.npz."""

import jax
import numpy as np
import pytest

from tests.golden.recorded_models import vqvae_config
from wmq_jax.checkpoints.official import from_torch
from wmq_jax.models import DecoderConfig
from wmq_jax.models.decoder import Codebook, make_decoder, nearest_codes, update_codebook

IMAGE = dict(atol=1e-5)


@pytest.fixture(scope="module")
def recording(golden):
    return golden("decoder.npz")


@pytest.fixture(scope="module")
def build(golden, recorded_model):
    """`build(config, state)`: a decoder and its parameters, by way of a whole model's name map."""
    world = golden("world_model.npz")
    config, _ = recorded_model(64)
    rest = {
        name.replace(f"predictor{config.num_patches}.", "predictor."): w
        for name, w in world.under("sd/").items()
        if not name.startswith("predictor") or name.startswith(f"predictor{config.num_patches}.")
    }

    def make(decoder: DecoderConfig, state):
        changes = dict(decoder=decoder)
        if decoder.kind == "transposed_conv":
            # It decodes one latent per frame; so many such frames have a position table of the recorded size.
            changes |= dict(
                encoder=config.encoder.replace(feature="x_norm_clstoken"), num_hist=config.num_hist * config.num_patches
            )
        whole = from_torch(rest | {f"decoder.{name}": w for name, w in state.items()}, config.replace(**changes))
        return make_decoder(decoder, config.encoder.width), whole["decoder"]

    return make


@pytest.fixture(scope="module")
def vqvae(recording, build):
    """Decoder and parameters of a recorded VQ-VAE case."""

    def make(case):
        state = recording.under(f"{case}/sd/")
        return build(vqvae_config(state, quantize=case.endswith("quantize1")), state)

    return make


def channel_first(images):
    return np.moveaxis(images, -1, -3)


def frames(x):
    """(b, t, P, D) -> (b * t, P, D)."""
    return x.reshape(-1, *x.shape[2:])


def test_vqvae(recording, vqvae, close):
    for case in (name for name in recording.names() if name.startswith("vqvae_quantize")):
        model, params = vqvae(case)
        run = jax.jit(lambda params, x, model=model: model.apply({"params": params}, x))
        images, diff = run(params, frames(recording[f"{case}/x"]))
        close(channel_first(images), recording.sub(f"{case}/y"), what=case, **IMAGE)
        close(diff, recording[f"{case}/diff"].reshape(()), rel_l2=1e-5, what=f"{case} diff")


def test_stages(recording, vqvae, close, compared):
    """The first up-sampling stack, and the codes that were chosen."""
    model, params = vqvae("vqvae_quantize0")
    x = frames(recording["vqvae_quantize0/x"])
    side = int(x.shape[1] ** 0.5)
    up = model.bind({"params": params}).upsample(x.reshape(-1, side, side, x.shape[-1]))
    close(channel_first(up), recording.sub("vqvae_quantize0/upsample"), what="upsample", **IMAGE)

    _, params = vqvae("vqvae_quantize1")
    indices = nearest_codes(Codebook(**params["codebook"]), frames(recording["vqvae_quantize1/x"]))
    recorded = recording["vqvae_quantize1/indices"]
    np.testing.assert_array_equal(np.asarray(indices).reshape(recorded.shape), recorded)
    compared(recorded.size)


def test_a_larger_grid_with_the_same_weights(recording, vqvae, close):
    model, params = vqvae("vqvae_quantize0")
    for case in (name for name in recording.names() if name.startswith("vqvae") and "_" not in name):
        images, _ = jax.jit(model.apply)({"params": params}, frames(recording[f"{case}/x"]))
        close(channel_first(images), recording.sub(f"{case}/y"), what=case, **IMAGE)


def test_codebook_update(recording, vqvae, close):
    model, params = vqvae("vqvae_quantize1")
    x = frames(recording["vq_train/x"])
    updated = jax.jit(update_codebook)(Codebook(**params["codebook"]), x)
    for part in Codebook._fields:
        recorded = recording[f"vq_train/after_{part}"]
        # Codes that were never chosen are divided by a tiny number: compare relative to each entry's size.
        scale = np.maximum(np.abs(recorded), 1.0)
        close(np.asarray(getattr(updated, part)) / scale, recorded / scale, atol=1e-5, what=part)
    _, diff = model.apply({"params": params}, x)
    close(diff, recording["vq_train/diff"].reshape(()), rel_l2=1e-5, what="diff")


def test_no_gradient_reaches_the_codebook(recording, vqvae):
    """The codes are trained by moving averages; the latent's gradient passes straight through."""
    model, params = vqvae("vqvae_quantize1")
    x = frames(recording["vqvae_quantize1/x"])

    def loss(params, x):
        images, _ = model.apply({"params": params}, x)
        return (images**2).sum()

    wrt_params, wrt_x = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)
    assert not any(np.any(g) for g in jax.tree.leaves(wrt_params["codebook"]))
    assert np.linalg.norm(wrt_x) > 0


def test_transposed_convolutions(recording, build, close):
    state = recording.under("tconv/sd/")
    size = int(recording["tconv/y/shape"][-1])
    config = DecoderConfig(kind="transposed_conv", depth=state["network.0.weight"].shape[0] // 32, output_size=size)
    model, params = build(config, state)
    images, diff = jax.jit(model.apply)({"params": params}, frames(recording["tconv/x"]))
    close(channel_first(images), recording.sub("tconv/y"), what="images", **IMAGE)
    close(diff[None], recording["tconv/diff"], atol=0, what="diff")
