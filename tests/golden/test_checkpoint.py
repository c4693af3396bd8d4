"""The recorded run folder: read, converted, rolled out, taken back, and its damaged and malicious relatives refused."""

import json
import shutil
import tempfile
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.golden.published_files import write_backbone
from tests.golden.tally import REDUCED, golden_folder
from wmq_jax.checkpoints.convert import convert_run, export_torch
from wmq_jax.checkpoints.native import load_model
from wmq_jax.checkpoints.official import from_torch
from wmq_jax.checkpoints.official_run import load_official, official_normalizer
from wmq_jax.data import open_dataset
from wmq_jax.io import Module, load_torch
from wmq_jax.models import WorldModel, normalize_image

ROLLOUT = dict(atol=5e-3, rel_l2=1e-4)
IMAGE = dict(atol=5e-3, rel_l2=1e-4)


@pytest.fixture(scope="module")
def recording(golden):
    return golden("checkpoint/state_dicts.npz")


@pytest.fixture(scope="module")
def run_dir(golden):
    (settings,) = golden.path("checkpoint").glob("outputs/*/hydra.yaml")
    return settings.parent


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    path = tmp_path_factory.mktemp("backbone") / "dinov2_pretrain.pth"
    write_backbone(path)
    return path


@pytest.fixture(scope="module")
def heads(golden):
    return golden("world_model.npz").scalar("spec/enc_heads")


@pytest.fixture(scope="module")
def model(run_dir, backbone, heads):
    return load_official(run_dir, backbone, heads=heads)


def recorded_names(recording):
    """(module, parameter) of every recorded tensor."""
    keys = [key.removesuffix("/shape") for key in recording if key.endswith("/shape") and not key.startswith("check/")]
    return [tuple(key.split("/", 1)) for key in keys]


def test_every_recorded_tensor_is_read(run_dir, recording, compared):
    (file,) = run_dir.glob("checkpoints/*.pth")
    content = load_torch(file)
    assert list(content) == list(recording["keys"]) and content["epoch"] == recording.scalar("epoch")
    for value, name in zip(content.values(), recording["classes"], strict=True):
        found = value.class_name if hasattr(value, "class_name") else f"{type(value).__module__}.{type(value).__name__}"
        assert found == name
    names = [(module, name) for module, name in recorded_names(recording) if module != "encoder"]
    modules = {key: value for key, value in content.items() if isinstance(value, Module)}
    assert sorted(names) == sorted((key, name) for key, value in modules.items() for name in value.weights)
    for key, name in names:
        samples = recording.sub(f"{key}/{name}")
        np.testing.assert_array_equal(samples.of(modules[key].weights[name]), samples.values)
        compared(samples.values.size)
    # Statistics of the codebook are buffers, not parameters.
    parameters = [
        sum(weight.size for name, weight in module.weights.items() if not name.startswith("quantize_b."))
        for module in modules.values()
    ]
    assert parameters == recording["param_counts"].tolist()


def test_the_settings_are_those_of_the_files(model, recording):
    config = model.config
    assert model.epoch == recording.scalar("epoch")
    assert config.num_hist == recording.sub("predictor/pos_embedding").shape[1] // config.tokens_per_frame
    assert recording["check/act"].shape[-1] == config.action_dim
    assert recording["check/visual_u8"].shape[-1] == config.image_size


def test_the_converted_model_rolls_out_as_recorded(model, recording, close):
    params = from_torch(model.state, model.config)
    world, variables = WorldModel(model.config), {"params": params}
    visual = normalize_image(np.moveaxis(recording["check/visual_u8"], -3, -1))
    run = jax.jit(lambda v, *x: world.apply(v, *x, method="rollout"))
    latent = run(variables, visual, recording["check/proprio"], recording["check/act"])
    close(latent.visual, recording.sub("check/rollout_visual"), what="visual", **ROLLOUT)
    close(latent.proprio, recording["check/rollout_proprio"], what="proprio", **ROLLOUT)
    image, _ = world.apply(variables, latent.visual[:, -1:], method="decode")
    recorded = recording.sub("check/decoded_last")
    image = np.moveaxis(np.asarray(image), -1, -3).reshape(recorded.shape)
    close(image, recorded, what="decoded", **IMAGE)


def test_there_and_back(model, golden, recording, heads, tmp_path, compared):
    normalizer = official_normalizer(model.settings, model.config, open_dataset(golden.path("dataset_wall")))
    convert_run(model, tmp_path / "ours", normalizer)
    modules = export_torch(tmp_path / "ours", tmp_path / "theirs")
    names = recorded_names(recording)
    assert sorted(names) == sorted((key, name) for key, state in modules.items() for name in state)
    for key, name in names:
        samples = recording.sub(f"{key}/{name}")
        assert modules[key][name].dtype == np.float32
        if name != "mask_token":  # of the reduced recordings: zeros
            np.testing.assert_array_equal(samples.of(modules[key][name]), samples.values)
            compared(samples.values.size)
    (file,) = (tmp_path / "theirs").glob("*_pretrain.pth")
    again = load_official(tmp_path / "theirs", file, heads=heads)
    assert again.config == model.config and again.epoch == model.epoch
    convert_run(again, tmp_path / "again", normalizer)
    first, second = load_model(tmp_path / "ours"), load_model(tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    assert json.dumps(first.normalizer.to_dict()) == json.dumps(second.normalizer.to_dict())


NEGATIVE = {
    "malicious_os_system": "asks for 'posix.system', which is refused",
    "malicious_exec": "asks for '__builtin__.exec', which is refused",
    "malicious_dotted_name": "asks for 'models.visual_world_model.torch.os.system', which is refused",
    "malicious_legacy_pickle": "legacy pickle, which is refused; re-save it",
    "truncated": "cut short",
    "bitflip_crc": "Bad CRC-32",
    "missing_predictor": "has no predictor.*it holds epoch",
}


@pytest.mark.parametrize("name", NEGATIVE)
def test_negative_files_are_refused(golden, run_dir, backbone, heads, tmp_path, name):
    marker = tmp_path / "pwned"
    markers = [marker, Path(tempfile.gettempdir()) / "pwned"]
    assert not any(marker.exists() for marker in markers)
    file = golden.path("checkpoint") / "negative" / f"{name}.pth"
    if name == "truncated" and golden_folder() == REDUCED:  # left out for its size
        (model,) = run_dir.glob("checkpoints/*.pth")
        file = tmp_path / "truncated.pth"
        file.write_bytes(model.read_bytes()[:200_000])
    run = shutil.copytree(run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("*.pth"))
    shutil.copyfile(file, run / "checkpoints" / "model_latest.pth")
    with pytest.raises(ValueError, match=NEGATIVE[name]) as error:
        load_official(run, backbone, heads=heads)
    assert "\n" not in str(error.value)
    assert not any(marker.exists() for marker in markers)


def test_a_run_in_a_zip_file(run_dir, backbone, heads, model, tmp_path):
    archive = tmp_path / "outputs.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in run_dir.rglob("*"):
            for name in (run_dir.name, "another"):
                file.write(path, f"outputs/{name}/{path.relative_to(run_dir).as_posix()}")
    found = load_official(archive / run_dir.name, backbone, heads=heads)
    assert found.config == model.config and list(found.state) == list(model.state)
    for wrong in (archive, archive / "wrong", tmp_path / "outputs.zip" / "outputs" / "wrong"):
        with pytest.raises(FileNotFoundError, match=f"another, {run_dir.name}"):
            load_official(wrong, backbone)


def test_every_negative_file_is_tried(golden):
    found = {file.stem for file in (golden.path("checkpoint") / "negative").glob("*.pth")}
    assert found | {"truncated"} == set(NEGATIVE)


def test_everything_recorded_is_compared(recording, check_all_read):
    check_all_read(recording, {})
