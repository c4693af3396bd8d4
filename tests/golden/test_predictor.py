"""The frame-causal predictor against predictor.npz: full windows, growing windows and the last frame alone."""

import functools

import jax
import numpy as np
import pytest

from tests.golden.recorded_models import predictor_config
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
    found += [(model, {"params": params["predictor"]}, patches, f"{case}/{window}")
              for window in recording.names(f"{case}/")]
  return found


@functools.partial(jax.jit, static_argnums=0)
def run(model, variables, x):
  """All successors, the outputs of every submodule, and the last frame's successor by the pruned way."""
  y, state = model.apply(variables, x, capture_intermediates=True)
  return y, state["intermediates"], model.apply(variables, x, method="last_frame")


def test_windows(recording, windows, close):
  for model, variables, patches, key in windows:
    y, stages, last = run(model, variables, recording[f"{key}/x"])
    close(stages["layers_0"]["attn"]["__call__"][0][0], recording.sub(f"{key}/attn0"), what=f"{key} attn0", **BLOCK)
    close(stages["layers_0"]["__call__"][0][0], recording.sub(f"{key}/block0"), what=f"{key} block0", **BLOCK)
    close(y, recording.sub(f"{key}/y"), what=key, **OUTPUT)
    if f"{key}/y/idx" not in recording:
      close(last, recording[f"{key}/y"][:, -patches:], what=f"{key} last frame", **OUTPUT)


def test_frames_appended_one_by_one(recording, windows, close):
  for model, variables, patches, key in windows:
    x, cache, outputs = recording[f"{key}/x"], None, []
    for start in range(0, x.shape[1], patches):
      y, cache = model.apply(variables, x[:, start:start + patches], cache, method="extend")
      outputs.append(y)
    close(np.concatenate(outputs, axis=1), recording.sub(f"{key}/y"), what=key, **OUTPUT)


def test_two_extra_tokens_per_frame(recording, recorded_model, golden, close):
  patches = min(int(n[1:]) for n in recording.names() if n[0] == "n" and n[1:].isdigit())
  config, params = recorded_model(16 * int(patches**0.5), concat_dim=0)
  model = Predictor(config.predictor, config.predictor_dim, config.tokens_per_frame, config.num_hist)
  y, _, _ = run(model, {"params": params["predictor"]}, recording["c0/x"])
  close(y, recording.sub("c0/y"), **OUTPUT)


def test_one_head_without_output_projection(recording, close):
  state = recording.under("onehead/sd/")
  width = state["pos_embedding"].shape[-1]
  layers = sorted({int(name.split(".")[2]) for name in state if name.startswith("transformer.layers.")})
  config = PredictorConfig(depth=len(layers), heads=1, dim_head=width,
                           mlp_dim=state["transformer.layers.0.1.net.1.weight"].shape[0])
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
        "ff": {"norm": norm(f"{at}.1.net.0"), "fc1": dense(f"{at}.1.net.1"), "fc2": dense(f"{at}.1.net.4")}}
  # The recording does not say into how many frames its tokens fall; one way must match, and only one.
  tokens = recording["onehead/x"].shape[1]
  outputs = []
  for frames in (n for n in range(1, tokens + 1) if tokens % n == 0):
    model = Predictor(config, width, tokens // frames, frames)
    outputs.append(np.asarray(model.apply({"params": params}, recording["onehead/x"])))
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
