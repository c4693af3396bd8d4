"""Encoding, token layout, prediction and rollouts against wm_ops.npz; `imagine` against the same rollouts."""

import functools

import numpy as np
import pytest

from tests.quick_jit import quick_jit
from wmq_jax.models import Latent, WorldModel, imagine, normalize_image

LATENT = dict(atol=5e-4, rel_l2=1e-5)
ROLLOUT = dict(atol=5e-3, rel_l2=1e-4)
EXACT = dict(atol=1e-5)


@pytest.fixture(scope="module")
def recording(golden):
    return golden("wm_ops.npz")


def images(recording, key):
    return normalize_image(np.moveaxis(recording[key], -3, -1))


@functools.lru_cache
def jitted(model, method):
    return quick_jit(functools.partial(model.apply, method=method))


@pytest.fixture(scope="module", params=["concat1", "concat0"])
def case(request, recording, recorded_model):
    """Name, model and variables of a recorded case."""
    name = request.param
    side = recording[f"{name}/visual_u8"].shape[-1]
    config, params = recorded_model(side, concat_dim=int(name[-1]))
    return name, WorldModel(config), {"params": params}


def test_encode(recording, case, close):
    name, model, variables = case
    visual, proprio, action = (
        images(recording, f"{name}/visual_u8"),
        recording[f"{name}/proprio"],
        recording[f"{name}/act"],
    )
    latent = jitted(model, "encode_obs")(variables, visual, proprio)
    close(latent.visual, recording.sub(f"{name}/encode_obs_visual"), what="visual", **LATENT)
    close(latent.proprio, recording[f"{name}/encode_proprio"], what="proprio", **EXACT)
    embedded = model.apply(variables, action, method="encode_act")
    close(embedded, recording[f"{name}/encode_act"], what="action", **EXACT)
    close(jitted(model, "encode")(variables, visual, proprio, action), recording[f"{name}/z"], what="z", **LATENT)


def test_layout(recording, case, close):
    name, model, variables = case
    z = recording[f"{name}/z"]
    latent, action = model.apply(variables, z, method="separate")
    close(latent.visual, recording.sub(f"{name}/sep_visual"), what="visual", **EXACT)
    close(latent.proprio, recording[f"{name}/sep_proprio"], what="proprio", **EXACT)
    close(action, recording[f"{name}/sep_act"], what="action", **EXACT)
    replaced = model.apply(variables, z, recording[f"{name}/act2"], method="replace_actions")
    close(replaced, recording.sub(f"{name}/replaced"), what="replaced", **EXACT)
    assembled = model.apply(variables, latent, recording[f"{name}/act"], method="assemble")
    close(assembled, z, what="assembled again", **EXACT)


def test_predict(recording, case, close):
    name, model, variables = case
    z = recording[f"{name}/z"]
    window = jitted(model, "predict")(variables, z)
    close(window, recording.sub(f"{name}/predict"), what="window", **LATENT)
    pruned = window.at[:, -1].set(jitted(model, "predict_last")(variables, z))
    close(pruned, recording.sub(f"{name}/predict"), what="last frame", **LATENT)


def rollout_cases(recording, name):
    return [
        (case, int(case.removeprefix("rollout_n")))
        for case in recording.names(f"{name}/")
        if case.startswith("rollout_n")
    ]


def test_rollout(recording, case, close):
    name, model, variables = case
    visual, proprio = images(recording, f"{name}/visual_u8"), recording[f"{name}/proprio"]
    for rollout, observed in rollout_cases(recording, name):
        inputs = visual[:, :observed], proprio[:, :observed], recording[f"{name}/act5"]
        key = f"{name}/{rollout}"
        z = jitted(model, "rollout_tokens")(variables, *inputs)
        latent = model.apply(variables, z, method="separate")[0]
        close(latent.visual, recording.sub(f"{key}/visual"), what=f"{key} visual", **ROLLOUT)
        close(latent.proprio, recording[f"{key}/proprio"], what=f"{key} proprio", **ROLLOUT)
        if any(k.startswith(f"{key}/z") for k in recording):
            close(z, recording.sub(f"{key}/z"), what=f"{key} z", **ROLLOUT)


def test_imagine_gives_the_recorded_rollouts_from_one_frame(recording, case, close):
    name, model, variables = case
    rollouts = [rollout for rollout, observed in rollout_cases(recording, name) if observed == 1]
    assert rollouts
    visual, proprio = images(recording, f"{name}/visual_u8")[:, :1], recording[f"{name}/proprio"][:, :1]
    latents = jitted(model, "encode_obs")(variables, visual, proprio)
    run = quick_jit(lambda latent, actions: imagine(model.apply, model.config, variables, latent, actions, keep="all"))
    for rollout in rollouts:
        imagined = [
            run(Latent(latents.visual[i, 0], latents.proprio[i, 0]), actions[None])
            for i, actions in enumerate(recording[f"{name}/act5"])
        ]
        for part, frames in zip(Latent._fields, zip(*imagined)):
            close(np.concatenate(frames), recording.sub(f"{name}/{rollout}/{part}"), what=part, **ROLLOUT)


def test_repeated_embeddings(recording, recorded_model, close):
    for case in (name for name in recording.names() if name.startswith("repeat_")):
        actions, proprios = (int(part[1:]) for part in case.removeprefix("repeat_").split("_"))
        visual = images(recording, str(recording[f"{case}/visual_from"]))
        config, params = recorded_model(visual.shape[-2])
        # The recorded predictor does not fit the wider tokens; nothing here calls it.
        model = WorldModel(config.replace(num_action_repeat=actions, num_proprio_repeat=proprios))
        variables = {"params": params}
        z = jitted(model, "encode")(variables, visual, recording[f"{case}/proprio"], recording[f"{case}/act"])
        close(z, recording.sub(f"{case}/z"), what="z", **LATENT)
        latent, action = model.apply(variables, z, method="separate")
        close(latent.proprio, recording[f"{case}/sep_proprio"], what="proprio", **EXACT)
        close(action, recording[f"{case}/sep_act"], what="action", **EXACT)
        replaced = model.apply(variables, z, recording[f"{case}/act2"], method="replace_actions")
        close(replaced[..., config.encoder.width :], recording[f"{case}/replaced_tail"], what="replaced", **EXACT)


def test_large_images(recording, recorded_model, close):
    for case in (name for name in recording.names() if name.startswith("img")):
        config, params = recorded_model(int(case.removeprefix("img")))
        inputs = images(recording, f"{case}/visual_u8"), recording[f"{case}/proprio"], recording[f"{case}/act"]
        latent = jitted(WorldModel(config), "rollout")({"params": params}, *inputs)
        close(latent.visual, recording.sub(f"{case}/rollout_visual"), what="visual", **ROLLOUT)
        close(latent.proprio, recording.sub(f"{case}/rollout_proprio"), what="proprio", **ROLLOUT)
