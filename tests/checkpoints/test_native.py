"""Our own checkpoints: they come back bit for bit, and damage is named."""

import json
import shutil

import jax
import numpy as np
import pytest

from wmq_jax.checkpoints import native
from wmq_jax.data import Normalizer
from wmq_jax.models import DecoderConfig, PredictorConfig, ViTConfig, WorldModelConfig

CONFIG = WorldModelConfig(
    encoder=ViTConfig(width=16, depth=1, heads=2, mlp_dim=32, table_grid=2),
    predictor=PredictorConfig(depth=1, heads=2, dim_head=8, mlp_dim=32, residual=True),
    decoder=DecoderConfig(channel=8, n_res_block=1, n_res_channel=4),
    proprio_dim=2,
    action_dim=4,
    image_size=32,
    num_hist=1,
    frameskip=2,
    standardize_latents=True,
)
NORMALIZER = Normalizer(*(np.asarray(x, np.float32) for x in ([0.1, 0.2], [3.1, 1 / 3], [31.0, 30.0], [17.7, 16.1])))


@pytest.fixture(scope="module")
def params():
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), native.abstract_params(CONFIG))


@pytest.fixture(scope="module")
def original(tmp_path_factory, params):
    path = tmp_path_factory.mktemp("native") / "model"
    native.save_model(path, CONFIG, params, NORMALIZER, {"note": "ü", "seed": 3})
    return path


@pytest.fixture
def saved(original, tmp_path):
    """A checkpoint of the test's own."""
    return shutil.copytree(original, tmp_path / "model")


def edit(path, change):
    """Rewrites model.json by `change`, a function of its dictionary."""
    file = path / "model.json"
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def changed(tree, path, leaf):
    """A copy of a nested dict with the entry at `path` replaced, or removed where `leaf` is None."""
    head, *rest = path.split("/")
    copy = dict(tree)
    if rest:
        copy[head] = changed(copy.get(head, {}), "/".join(rest), leaf)
    elif leaf is None:
        del copy[head]
    else:
        copy[head] = leaf
    return copy


def test_round_trip(saved, params):
    loaded = native.load_model(saved)
    assert loaded.config == CONFIG and loaded.metadata == {"note": "ü", "seed": 3}
    assert loaded.normalizer.to_dict() == NORMALIZER.to_dict()
    assert jax.tree.structure(loaded.params) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(params), strict=True):
        assert a.dtype == np.float32 and np.array_equal(a, b)


def test_a_checkpoint_can_be_moved(saved, tmp_path):
    saved.rename(tmp_path / "elsewhere")
    assert native.load_model(tmp_path / "elsewhere").config == CONFIG


def test_a_folder_in_use_is_not_overwritten(saved, params):
    with pytest.raises(ValueError, match="not empty"):
        native.save_model(saved, CONFIG, params, NORMALIZER, {})


@pytest.mark.parametrize("where", ["", "params"])
def test_a_missing_checkpoint_is_named(tmp_path, where):
    (tmp_path / "params").mkdir()
    with pytest.raises(FileNotFoundError, match="model.json"):
        native.load_model(tmp_path / where)


def test_a_flipped_byte_of_any_file_is_found(saved):
    files = [file for file in (saved / "params").rglob("*") if file.is_file() and file.stat().st_size]
    assert files
    for file in files:
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(ValueError, match=f"{file.name} is damaged"):
            native.load_model(saved)
        file.write_bytes(data)
    native.load_model(saved)


def test_a_missing_file_is_named(saved):
    file = next(file for file in (saved / "params").rglob("*") if file.is_file())
    file.unlink()
    with pytest.raises(ValueError, match=f"{file.name} is missing"):
        native.load_model(saved)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda d: d.update(format="other 9"), "format is 'other 9'"),
        (lambda d: d.pop("normalizer"), "must have the fields"),
        (lambda d: d["normalizer"].pop("action_std"), "action_mean, action_std"),
        (lambda d: d["normalizer"].update(action_std=[0.0, 1.0]), "action_std must be positive"),
        (lambda d: d["config"].update(colour=3), "colour"),
        (lambda d: d["config"].update(proprio_dim=5), "proprio_encoder/proj/kernel|do not fit"),
        (lambda d: d["config"]["predictor"].update(depth=2), "layers_1|do not fit"),
    ],
)
def test_a_wrong_description_is_refused(saved, change, words):
    edit(saved, change)
    with pytest.raises(ValueError, match=words):
        native.load_model(saved)


def test_a_torn_description_is_refused(saved):
    file = saved / "model.json"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(ValueError, match="model.json is damaged"):
        native.load_model(saved)


def test_a_deeply_nested_description_is_refused(saved):
    (saved / "model.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match="model.json is damaged"):
        native.load_model(saved)


def test_official_runs_are_sent_to_the_converter(tmp_path):
    """On disk, and in a zip file that the path is or leads into."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "hydra.yaml").write_text("a: 1")
    (tmp_path / "outputs.zip").write_bytes(b"PK")
    for path in (tmp_path / "run", tmp_path / "outputs.zip", tmp_path / "outputs.zip" / "run"):
        with pytest.raises(FileNotFoundError, match=f"python -m experiments.convert --run_dir={path} --backbone="):
            native.load_model(path)
    with pytest.raises(FileNotFoundError, match="it has no model.json$"):
        native.load_model(tmp_path / "nowhere")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_named_by_its_site(tmp_path, params, bad):
    site = "encoder/blocks_0/attn/qkv/kernel"
    kernel = params["encoder"]["blocks_0"]["attn"]["qkv"]["kernel"].copy()
    kernel[3, 4] = bad
    with pytest.raises(ValueError, match=f"{site} has NaN or infinite"):
        native.save_model(tmp_path / "model", CONFIG, changed(params, site, kernel), NORMALIZER, {})
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "path, leaf, words",
    [
        ("predictor/norm/scale", None, "lacks parameter predictor/norm/scale"),
        ("predictor/extra", np.zeros(1, np.float32), "unknown parameter predictor/extra"),
        ("proprio_encoder/proj/bias", np.zeros(3, np.float32), r"proprio_encoder/proj/bias has shape \(3,\)"),
    ],
)
def test_a_tree_that_does_not_fit_is_named(tmp_path, params, path, leaf, words):
    with pytest.raises(ValueError, match=words):
        native.save_model(tmp_path / "model", CONFIG, changed(params, path, leaf), NORMALIZER, {})
