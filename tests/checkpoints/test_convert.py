"""Conversion of whole runs: every kind of published file, and one sentence for what does not fit."""

import json
import math
import re
import shutil

import jax
import numpy as np
import pytest
import yaml

from tests.checkpoints import published
from tests.checkpoints.run_files import CONFIG, HEADS, by_module, write_run
from tests.data.official_files import make_maze
from tests.models.tiny import random_model, tiny_config
from tests.programs import program
from wmq_jax.checkpoints.backbone import backbone_config
from wmq_jax.checkpoints.convert import UNUSED, convert_run, export_torch
from wmq_jax.checkpoints.hydra import hydra_settings, model_config, portion
from wmq_jax.checkpoints.native import PORTION, load_model, save_model
from wmq_jax.checkpoints.official import from_torch, is_unused, parameter_shapes, to_torch, weights
from wmq_jax.checkpoints.official_run import load_official, official_normalizer
from wmq_jax.checkpoints.run_folder import BESIDE
from wmq_jax.data import Normalizer, Portion, open_dataset
from wmq_jax.io import save_torch, sha256_of
from wmq_jax.models import ViTConfig, official_config

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(np.asarray, random_model(CONFIG)[1]["params"])


@pytest.fixture
def run(tmp_path, params):
    return write_run(tmp_path / "run", CONFIG, to_torch(params, CONFIG))


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_frozen_encoder_comes_from_the_backbone_file(run, params):
    model = load_official(run, run / "backbone.pth", heads=HEADS)
    assert (model.config, model.epoch) == (CONFIG, 7)
    same(from_torch(model.state, model.config), params)


def test_a_trained_encoder_is_in_the_run_with_its_number_of_heads(tmp_path, params):
    run = write_run(tmp_path / "run", CONFIG, to_torch(params, CONFIG), with_encoder=True)
    model = load_official(run)
    assert model.config == CONFIG
    same(from_torch(model.state, model.config), params)


def test_register_tokens_are_carried(tmp_path):
    encoder = ViTConfig(8, 1, 2, 16, table_grid=3, registers=4, interpolate_offset=0.0, interpolate_antialias=True)
    config = CONFIG.replace(encoder=encoder)
    params = jax.tree.map(np.asarray, random_model(config)[1]["params"])
    run = write_run(tmp_path / "run", config, to_torch(params, config))
    model = load_official(run, run / "backbone.pth", heads=2)
    assert model.config == config
    same(from_torch(model.state, model.config), params)


def test_the_released_studys_names(tmp_path, params):
    """It calls the parts of a predictor's layer attn and ff."""
    state = to_torch(params, CONFIG)
    renamed = {
        name.replace(f"layers.{i}.0.", f"layers.{i}.attn.").replace(f"layers.{i}.1.", f"layers.{i}.ff."): w
        for name, w in state.items()
        for i in [next((i for i in range(9) if f"layers.{i}." in name), 0)]
    }
    assert set(renamed) != set(state)
    run = write_run(tmp_path / "run", CONFIG, renamed)
    same(from_torch(load_official(run, run / "backbone.pth", heads=HEADS).state, CONFIG), params)


def test_missing_and_surplus_weights_are_named(tmp_path, params):
    state = to_torch(params, CONFIG)
    del state["predictor.transformer.norm.bias"]
    state["decoder.extra.weight"] = np.zeros(3, np.float32)
    state["encoder.base_model.blocks.0.norm1.bias"] = np.zeros(5, np.float32)
    run = write_run(tmp_path / "run", CONFIG, state)
    model = load_official(run, run / "backbone.pth", heads=HEADS)
    with pytest.raises(ValueError) as error:
        convert_run(model, tmp_path / "out", None)
    for words in (
        "missing (1): predictor.transformer.norm.bias",
        "surplus (1): decoder.extra.weight",
        "of other shapes (1): encoder.base_model.blocks.0.norm1.bias with (5,) instead of (8,)",
    ):
        assert words in str(error.value)
    assert not (tmp_path / "out").exists()


def test_another_backbone_than_that_of_the_run_is_named(run, tmp_path):
    other = tiny_config(encoder=ViTConfig(width=12, depth=1, heads=2, mlp_dim=16, table_grid=3))
    state = to_torch(random_model(other)[1]["params"], other)
    save_torch(tmp_path / "other.pth", by_module(state)["encoder"])
    with pytest.raises(ValueError, match="predictor is 19 wide, but with a backbone of width 12 it would be 23"):
        load_official(run, tmp_path / "other.pth", heads=2)


def test_settings_of_another_depth_are_named(run):
    file = run / "hydra.yaml"
    file.write_text(file.read_text().replace("depth: 2", "depth: 3"))
    with pytest.raises(ValueError, match="predictor has 3 layers, but it has 2"):
        load_official(run, run / "backbone.pth", heads=HEADS)
    file.write_text(file.read_text().replace("depth: 3", "depth: 1000000000"))
    with pytest.raises(ValueError, match="predictor.depth is 1000000000; numbers up to 8192 are accepted"):
        load_official(run, run / "backbone.pth", heads=HEADS)


def test_epochs_that_are_there_are_named(run):
    latest = run / "checkpoints" / "model_latest.pth"
    for epoch in (9, 10):
        (run / "checkpoints" / f"model_{epoch}.pth").write_bytes(latest.read_bytes())
    latest.unlink()
    load_official(run, run / "backbone.pth", heads=HEADS)
    with pytest.raises(ValueError, match="no checkpoints/model_3.pth; epochs there: 10, 9"):
        load_official(run, run / "backbone.pth", epoch="3")


def test_statistics(run, tmp_path):
    settings = hydra_settings(CONFIG, "dinov2_vits14", "wall")
    assert official_normalizer(settings, CONFIG, None) is None
    plain = official_normalizer(settings | {"normalize_action": False}, CONFIG, None)
    assert plain.action_std.tolist() == [1.0, 1.0] and plain.proprio_mean.tolist() == [0.0] * 3
    pusht = official_config("pusht")
    found = official_normalizer(hydra_settings(pusht, "dinov2_vits14", "pusht"), pusht, None)
    np.testing.assert_array_equal(found.action_std, np.float32([0.2019, 0.2002]))
    with pytest.raises(ValueError, match="of .2, 4. numbers, but the model takes .2, 3."):
        official_normalizer(settings | {"env": {"name": "pusht"}}, CONFIG, None)
    model = load_official(run, run / "backbone.pth", heads=HEADS)
    convert_run(model, tmp_path / "out", None)
    assert load_model(tmp_path / "out").normalizer is None


def test_what_the_run_took_of_its_data_set_is_kept(run, tmp_path):
    file = run / "hydra.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["env"]["dataset"] = {"n_rollout": 3, "split_ratio": 0.8}
    file.write_text(yaml.safe_dump(settings))
    arrays = make_maze(tmp_path / "point_maze")
    model = load_official(run, run / "backbone.pth", heads=HEADS)
    convert_run(model, tmp_path / "ours", None)
    assert load_model(tmp_path / "ours").portion == Portion(3, 0.8)
    found = official_normalizer(model.settings, CONFIG.replace(proprio_dim=4), open_dataset(tmp_path / "point_maze"))
    valid = np.concatenate([rows[:n] for rows, n in zip(arrays["actions"][:3], arrays["seq_lengths"][:3])])
    np.testing.assert_allclose(found.action_mean, valid.mean(0), rtol=1e-4, atol=1e-6)


def test_a_model_trained_here_can_be_taken_to_torch(tmp_path, params):
    """Its settings are made from its configuration, and come back as the same model."""
    ones, taken = np.ones(2), Portion(n_rollout=12000, split_ratio=0.75)
    normalizer = Normalizer(ones, ones, np.ones(3), np.ones(3))
    save_model(tmp_path / "ours", CONFIG, params, normalizer, {"env": "wall", PORTION: taken._asdict()})
    export_torch(tmp_path / "ours", tmp_path / "theirs")
    (backbone,) = (tmp_path / "theirs").glob("*_pretrain.pth")
    assert backbone.name == "dinov2_vit814_pretrain.pth"
    model = load_official(tmp_path / "theirs")
    assert model.config == CONFIG and model.normalizer.to_dict() == normalizer.to_dict()
    assert portion(model.settings) == taken
    same(from_torch(model.state, model.config), params)
    with pytest.raises(ValueError, match="exists and is not empty"):
        export_torch(tmp_path / "ours", tmp_path / "theirs")
    residual = CONFIG.replace(predictor=CONFIG.predictor.replace(residual=True))
    save_model(tmp_path / "residual", residual, params, normalizer, {})
    with pytest.raises(ValueError, match="has residual predictions, which official models have not"):
        export_torch(tmp_path / "residual", tmp_path / "more")
    with pytest.raises(ValueError, match="bundled has residual predictions and standardised latents"):
        export_torch("bundled", tmp_path / "more")


def described(folder):
    """What a checkpoint says of itself, without the files that it came from."""
    description = json.loads((folder / "model.json").read_text())
    for part in (description, description["metadata"]["official"]):
        del part["files"]
    return description


def test_there_and_back_and_there_again_is_the_same_checkpoint(run, tmp_path):
    """Nothing beside the folder is needed: backbone, head count and statistics are in it."""
    ones = np.ones(2)
    normalizer = Normalizer(ones / 3, ones / 7, np.ones(3), np.ones(3))
    model = load_official(run, run / "backbone.pth", heads=HEADS)
    model.state["encoder.base_model.mask_token"] = np.full((1, 8), 0.1, np.float32)
    convert_run(model, tmp_path / "ours", normalizer)
    export_torch(tmp_path / "ours", tmp_path / "theirs")
    shutil.make_archive(tmp_path / "outputs", "zip", tmp_path, "theirs")
    for number, place in enumerate((tmp_path / "theirs", tmp_path / "outputs.zip" / "theirs")):
        again = load_official(place)
        out = tmp_path / f"again{number}"
        convert_run(again, out, official_normalizer(again.settings, again.config, None, again.normalizer))
        assert described(out) == described(tmp_path / "ours")
        same(load_model(out).params, load_model(tmp_path / "ours").params)
        first, second = (dict(np.load(folder / UNUSED)) for folder in (tmp_path / "ours", out))
        same(first, second)


def test_a_trained_encoder_goes_back_among_the_modules(params, tmp_path):
    run = write_run(tmp_path / "run", CONFIG, to_torch(params, CONFIG), with_encoder=True)
    model = load_official(run)
    convert_run(model, tmp_path / "ours", None)
    modules = export_torch(tmp_path / "ours", tmp_path / "theirs")
    assert all(name.startswith("base_model.") for name in modules["encoder"])
    assert not [*(tmp_path / "theirs").glob("*_pretrain.pth")]
    again = load_official(tmp_path / "theirs")
    assert again.config == model.config and again.trained_encoder
    assert list(again.state) == list(model.state)
    same(again.state, model.state)


def test_a_damaged_or_missing_file_beside_the_run_is_named(run, tmp_path):
    convert_run(load_official(run, run / "backbone.pth", heads=HEADS), tmp_path / "ours", None)
    export_torch(tmp_path / "ours", tmp_path / "theirs")
    file = tmp_path / "theirs" / BESIDE
    for text in ("{", "[]", "{}", '{"normalizer": {}, "encoder_heads": 2}', '{"normalizer": null, "encoder_heads": 0}'):
        file.write_text(text)
        with pytest.raises(ValueError, match=f"{BESIDE} is damaged"):
            load_official(tmp_path / "theirs")
    (tmp_path / "theirs" / "dinov2_vits14_pretrain.pth").unlink()
    file.unlink()
    with pytest.raises(
        ValueError, match=r"must be given \(--config.official.backbone, .*theirs has no dinov2_vits14_pretrain.pth"
    ):
        load_official(tmp_path / "theirs")
    settings = tmp_path / "theirs" / "hydra.yaml"
    settings.write_text(settings.read_text().replace("name: dinov2_vits14", "name: ../dinov2"))
    with pytest.raises(ValueError, match="encoder.name must be letters, digits and underscores"):
        load_official(tmp_path / "theirs")


def test_other_dtypes_survive_there_and_back(run, tmp_path):
    model = load_official(run, run / "backbone.pth", heads=HEADS)
    name = "predictor.transformer.norm.weight"
    model.state[name] = model.state[name].astype(np.float16)
    convert_run(model, tmp_path / "ours", None)
    modules = export_torch(tmp_path / "ours", tmp_path / "theirs")
    found = modules["predictor"]["transformer.norm.weight"]
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, model.state[name])


def test_the_published_sizes_convert(tmp_path):
    """The whole list of names and shapes of the Wall run, as files, to a checkpoint and back; every value its own."""
    shapes = published.model("wall")
    draw = np.random.default_rng(0)
    state = {name: draw.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    run = write_run(tmp_path / "run", official_config("wall"), state)
    (run / "hydra.yaml").write_text(yaml.safe_dump(published.settings("wall")))
    model = load_official(run, run / "backbone.pth")
    shutil.rmtree(run)  # 160 MB
    assert model.config == official_config("wall") and model.config.num_hist == 1
    params = from_torch(model.state, model.config)
    sizes = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in params.items()}
    for part, size in sizes.items():
        names = [name for name in shapes if name.startswith(f"{part}.") and name not in published.UNUSED]
        assert size == sum(math.prod(shapes[name]) for name in names)
    assert sizes["encoder"] == 22_056_192, "as DINOv2 counts ViT-S/14, without the mask token"
    convert_run(model, tmp_path / "ours", None)
    del model, params
    back = export_torch(tmp_path / "ours", tmp_path / "theirs")
    for name, values in state.items():
        module, rest = name.split(".", 1)
        np.testing.assert_array_equal(back[module][rest.removeprefix("base_model.")], values, err_msg=name)


@pytest.mark.parametrize(
    "env, backbone",
    [
        ("wall", "dinov2_vits14"),
        ("pusht", "dinov2_vits14_reg"),
        ("point_maze", "dinov2_vitb14"),
        ("wall", "dinov2_vitl14_reg"),
    ],
)
def test_published_names_and_shapes(env, backbone):
    """Of every run and backbone, without their numbers."""
    wanted = published.model(env, backbone)
    empty = {name: np.broadcast_to(np.float32(0), shape) for name, shape in published.backbone(backbone).items()}
    proprio, action, _ = published.RUNS[env]
    encoder = backbone_config(empty, "x_norm_patchtokens")
    assert encoder.heads == published.BACKBONES[backbone.removesuffix("_reg")][2]
    config = model_config(published.settings(env, backbone), encoder, proprio, published.FRAMESKIP * action)
    assert config == official_config(env).replace(encoder=encoder)
    shapes = parameter_shapes(config)
    ours = {w.name: w.layout.theirs(np.broadcast_to(np.float32(0), shapes[w.path])).shape for w in weights(config)}
    assert ours == {name: shape for name, shape in wanted.items() if name not in published.UNUSED}
    assert all(is_unused(config, name) for name in published.UNUSED)


def convert(*arguments):
    return program("convert", *arguments)


@pytest.mark.slow
def test_the_command(run, tmp_path):
    files = f"--run_dir={run}", f"--backbone={run / 'backbone.pth'}", f"--encoder_heads={HEADS}"
    there = convert(*files, f"--out={tmp_path / 'ours'}", f"--sha256={sha256_of(run / 'backbone.pth')}")
    assert there.returncode == 0, there.stderr
    digest = sha256_of(run / "backbone.pth")
    for words in ("mapped     predictor", "statistics none", "model      history 3", digest, "kB of parameters"):
        assert words in there.stdout
    # Whoever parsed its files before checking them would complain of these.
    shutil.copytree(run, tmp_path / "broken")
    for name in ("hydra.yaml", "backbone.pth", "checkpoints/model_latest.pth", "data.zip"):
        (tmp_path / "broken" / name).write_text("[")
    files_of = lambda flag, name: f"--{flag}={tmp_path / 'broken' / name}"
    broken = files_of("run_dir", ""), files_of("backbone", "backbone.pth"), files_of("dataset", "data.zip")
    back = convert("--to=torch", f"--run_dir={tmp_path / 'ours'}", f"--out={tmp_path / 'theirs'}")
    assert back.returncode == 0 and "model_latest.pth" in back.stdout, back.stderr
    assert re.search(r"hydra.yaml \(0\.\d kB\)", back.stdout), back.stdout
    for arguments, words in (
        ([*files, f"--out={tmp_path / 'ours'}"], "it exists and is not empty"),
        ([*broken, f"--out={tmp_path / 'new'}", "--sha256=00"], "no file has the SHA-256 00"),
        ([f"--run_dir={tmp_path / 'pusht'}", f"--out={tmp_path / 'new'}"], " has broken, run, theirs"),
        ([f"--run_dir={run}", f"--out={tmp_path / 'new'}"], "a backbone file must be given"),
        (["--run_dir=", f"--out={tmp_path / 'new'}"], "--run_dir is empty: it must be the folder of a run"),
        (
            [f"--run_dir={tmp_path / 'ours'}", f"--out={tmp_path / 'new'}"],
            "is a checkpoint of ours already; --to=torch",
        ),
        (["--run_dir=bundled", f"--out={tmp_path / 'new'}"], "the model that ships here, no official run"),
        (
            ["--to=torch", f"--run_dir={tmp_path / 'ours'}", f"--out={tmp_path / 'new'}", "--epoch=1"],
            "--epoch means nothing",
        ),
    ):
        failed = convert(*arguments)
        assert failed.returncode == 2 and failed.stderr.count("\n") == 1
        assert words in failed.stderr, failed.stderr
