"""The frame-causal predictor against predictor.npz: full windows, growing windows and the last frame alone."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden.recorded_models import predictor_config
from tests.quick_jit import quick_jit
from wmq_jax.models import PredictorConfig
from wmq_jax.models.predictor import Predictor, frame_causal_mask

OUTPUT = dict(atol=5e-4, rel_l2=1e-5)
BLOCK = dict(atol=1e-5)


@pytest.fixture(scope="module")
def recording(golden):
    return golden("predictor.npz")


@pytest.fixture(scope="module")
def windows(recording, golden, recorded_model):
    """(module, variables, tokens per frame, key) of every recorded window of the shared weights."""
    found = []
    for case in recording.names():
        if not case[1:].isdigit() or case[0] != "n":
            continue
        patches = int(case[1:])
        config, params = recorded_model(16 * int(patches**0.5))
        model = Predictor(predictor_config(golden("world_model.npz")), config.predictor_dim, patches, config.num_hist)
        found += [
            (model, {"params": params["predictor"]}, patches, f"{case}/{window}")
            for window in recording.names(f"{case}/")
        ]
    return found


class Outputs(NamedTuple):
    """What the predictor makes of a window: all successors, the last one alone, frames appended one by one."""

    all: np.ndarray
    last: np.ndarray
    appended: np.ndarray
    stages: dict


def run(model, variables, x):
    @quick_jit
    def program(variables, x):
        y, state = model.apply(variables, x, capture_intermediates=True)
        cache, appended = None, []
        for frame in jnp.split(x, x.shape[1] // model.tokens_per_frame, axis=1):
            out, cache = model.apply(variables, frame, cache, method="extend")
            appended.append(out)
        last = model.apply(variables, x, method="last_frame")
        return Outputs(y, last, jnp.concatenate(appended, axis=1), state["intermediates"])

    return program(variables, x)


def test_windows(recording, windows, close):
    for model, variables, patches, key in windows:
        out = run(model, variables, recording[f"{key}/x"])
        layer = out.stages["layers_0"]
        close(layer["attn"]["__call__"][0][0], recording.sub(f"{key}/attn0"), what=f"{key} attn0", **BLOCK)
        close(layer["__call__"][0][0], recording.sub(f"{key}/block0"), what=f"{key} block0", **BLOCK)
        close(out.all, recording.sub(f"{key}/y"), what=key, **OUTPUT)
        close(out.appended, recording.sub(f"{key}/y"), what=f"{key} appended", **OUTPUT)
        pruned = out.all.at[:, -patches:].set(out.last)
        close(pruned, recording.sub(f"{key}/y"), what=f"{key} last frame", **OUTPUT)


def test_two_extra_tokens_per_frame(recording, recorded_model, golden, close):
    patches = min(int(n[1:]) for n in recording.names() if n[0] == "n" and n[1:].isdigit())
    config, params = recorded_model(16 * int(patches**0.5), concat_dim=0)
    model = Predictor(config.predictor, config.predictor_dim, config.tokens_per_frame, config.num_hist)
    out = run(model, {"params": params["predictor"]}, recording["c0/x"])
    close(out.all, recording.sub("c0/y"), what="window", **OUTPUT)
    close(out.appended, recording.sub("c0/y"), what="appended", **OUTPUT)


def test_one_head_without_output_projection(recording, close):
    state = recording.under("onehead/sd/")
    width = state["pos_embedding"].shape[-1]
    layers = sorted({int(name.split(".")[2]) for name in state if name.startswith("transformer.layers.")})
    config = PredictorConfig(
        depth=len(layers), heads=1, dim_head=width, mlp_dim=state["transformer.layers.0.1.net.1.weight"].shape[0]
    )
    assert not any("to_out" in name for name in state)

    def norm(name):
        return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}

    def dense(name):
        kernel = {"kernel": state[f"{name}.weight"].T}
        return kernel | ({"bias": state[f"{name}.bias"]} if f"{name}.bias" in state else {})

    params = {"pos_embedding": state["pos_embedding"], "norm": norm("transformer.norm")}
    for i in layers:
        at = f"transformer.layers.{i}"
        params[f"layers_{i}"] = {
            "attn": {"norm": norm(f"{at}.0.norm"), "to_qkv": dense(f"{at}.0.to_qkv")},
            "ff": {"norm": norm(f"{at}.1.net.0"), "fc1": dense(f"{at}.1.net.1"), "fc2": dense(f"{at}.1.net.4")},
        }
    # The recording does not say into how many frames its tokens fall; one way must match, and only one.
    tokens = recording["onehead/x"].shape[1]
    outputs = []
    for frames in (n for n in range(1, tokens + 1) if tokens % n == 0):
        model = Predictor(config, width, tokens // frames, frames)
        outputs.append(quick_jit(model.apply)({"params": params}, recording["onehead/x"]))
    errors = [np.abs(y - recording["onehead/y"]).max() for y in outputs]
    best = int(np.argmin(errors))
    assert min(error for i, error in enumerate(errors) if i != best) > 1e-2
    close(outputs[best], recording.sub("onehead/y"), **OUTPUT)


def test_mask(recording, compared):
    for case in recording.names("mask/"):
        patches, frames = (int(part[2:]) for part in case.split("_"))
        recorded = recording[f"mask/{case}"]
        mask = frame_causal_mask(patches * frames, patches * frames, patches)
        np.testing.assert_array_equal(mask, recorded.astype(bool))
        compared(recorded.size)
        last = frame_causal_mask(patches, patches * frames, patches)
        np.testing.assert_array_equal(last, recorded[-patches:].astype(bool))
