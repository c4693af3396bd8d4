"""The image path and the DINOv2 encoder against encoder.npz."""

import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden.recorded_models import encoder_config
from tests.quick_jit import quick_jit
from wmq_jax.models import WorldModel, normalize_image
from wmq_jax.models.dinov2 import VisionTransformer
from wmq_jax.models.image import interpolate_positions, resize


@pytest.fixture(scope="module")
def recording(golden):
    return golden("encoder.npz")


@pytest.fixture(scope="module")
def sides(recording):
    return [int(name.removeprefix("img")) for name in recording.names() if name.startswith("img")]


@pytest.fixture(scope="module")
def backbone(golden, recorded_model, sides):
    """The recorded encoder: module and variables."""
    _, params = recorded_model(min(sides))
    return VisionTransformer(encoder_config(golden("world_model.npz"))), {"params": params["encoder"]}


def channel_last(images: np.ndarray) -> np.ndarray:
    return np.moveaxis(images, -3, -1)


def test_resize_of_0_to_255_images(recording, close):
    for case in recording.names("resize/"):
        size = int(case.split("to")[1])
        images = channel_last(recording[f"resize/{case}/in_u8"]).astype(np.float32)
        out = np.moveaxis(resize(jnp.asarray(images), size), -1, -3)
        close(out, recording.sub(f"resize/{case}/out"), atol=1e-3, what=case)


def test_position_table(golden, recording, close):
    table = golden("world_model.npz")["sd/encoder.base_model.pos_embed"]
    side = math.isqrt(table.shape[1] - 1)
    for case in recording.names("pos_interp/"):
        grid = int(case.removeprefix("g"))
        resample = quick_jit(functools.partial(interpolate_positions, grid=grid, offset=0.1, antialias=False))
        patches = resample(table[0, 1:].reshape(side, side, -1)).reshape(1, grid**2, -1)
        close(
            np.concatenate([table[:, :1], patches], axis=1), recording.sub(f"pos_interp/{case}"), atol=1e-5, what=case
        )


def test_every_stage(recording, sides, backbone, close):
    model, variables = backbone
    for side in sides:
        key = f"img{side}"
        images = normalize_image(channel_last(recording[f"{key}/image_u8"]))
        encoder_side = recording.scalar(f"{key}/encoder_image_size")
        assert side // 16 * 14 == encoder_side
        images = resize(images, encoder_side)
        close(np.moveaxis(images, -1, -3), recording.sub(f"{key}/resized"), atol=5e-6, what=f"{key} resized")

        features, state = quick_jit(functools.partial(model.apply, capture_intermediates=True))(variables, images)
        stages = {name: value["__call__"][0] for name, value in state["intermediates"].items() if name != "__call__"}
        batch, grid, _, width = stages["patch_embed"].shape
        last_block = stages[f"blocks_{model.config.depth - 1}"]
        positions, tokens = quick_jit(
            lambda images: (
                model.apply(variables, grid, method="positions"),
                model.apply(variables, images, method="tokens"),
            )
        )(images)
        for name, value, atol in (
            ("patch_embed", stages["patch_embed"].reshape(batch, grid**2, width), 1e-5),
            ("pos_embed_interp", positions, 1e-5),
            ("tokens_in", tokens, 1e-5),
            ("block0", stages["blocks_0"], 1e-5),
            ("x_prenorm", last_block, 5e-5),
            ("x_norm_patchtokens", features, 5e-4),
            ("x_norm_clstoken", stages["norm"][:, 0], 5e-4),
        ):
            close(value, recording.sub(f"{key}/{name}"), atol=atol, what=f"{key} {name}")


def test_class_token_feature_has_a_patch_axis(recording, sides, recorded_model, close):
    for side in sides:
        if f"img{side}/cls_encoder_out" not in recording:
            continue
        config, params = recorded_model(side)
        config = config.replace(encoder=config.encoder.replace(feature="x_norm_clstoken"))
        images = normalize_image(channel_last(recording[f"img{side}/image_u8"]))[:, None]
        proprio = np.zeros((len(images), 1, config.proprio_dim), np.float32)
        encode = quick_jit(functools.partial(WorldModel(config).apply, method="encode_obs"))
        latent = encode({"params": params}, images, proprio)
        close(latent.visual[:, 0], recording.sub(f"img{side}/cls_encoder_out"), atol=5e-4)
