"""Checkpoints as users name them; published runs are converted in memory."""

import jax
import numpy as np
import pytest

from tests.checkpoints.run_files import CONFIG, HEADS, write_run
from tests.data.official_files import make_wall
from tests.models.tiny import random_model
from wmq_jax import training
from wmq_jax.checkpoints.convert import convert_run
from wmq_jax.checkpoints.digests import file_digests
from wmq_jax.checkpoints.native import params_sha256
from wmq_jax.checkpoints.official import to_torch
from wmq_jax.checkpoints.official_run import load_official, official_normalizer
from wmq_jax.checkpoints.opening import OfficialOptions, open_model
from wmq_jax.cli import load_config
from wmq_jax.data import open_dataset
from wmq_jax.io import sha256_of

WALL = CONFIG.replace(proprio_dim=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`run` with its `backbone.pth`, and the data set `wall_single`."""
    folder = tmp_path_factory.mktemp("published")
    params = jax.tree.map(np.asarray, random_model(WALL)[1]["params"])
    run = write_run(folder / "run", WALL, to_torch(params, WALL))
    settings = run / "hydra.yaml"
    settings.write_text(settings.read_text().replace("n_rollout: null", "n_rollout: 3"))
    make_wall(folder / "wall_single", steps=7)
    return folder


@pytest.fixture(scope="module")
def options(folder):
    return dict(backbone=str(folder / "run" / "backbone.pth"), encoder_heads=HEADS)


def test_a_published_run_is_its_conversion(folder, options):
    opened = open_model(str(folder / "run"), folder / "wall_single", "wall", OfficialOptions(**options))
    model = load_official(folder / "run", options["backbone"], heads=HEADS)
    data = open_dataset(folder / "wall_single")
    files = file_digests(folder / "run", options["backbone"])
    convert_run(model, folder / "ours", official_normalizer(model.settings, model.config, data), files)
    converted = open_model(str(folder / "ours"), folder / "wall_single", "wall")
    one, other = opened.checkpoint, converted.checkpoint
    assert params_sha256(one.params) == params_sha256(other.params)
    assert (one.config, one.metadata) == (other.config, other.metadata)
    assert one.normalizer.to_dict() == other.normalizer.to_dict() == data.taken(one.portion).normalizer.to_dict()
    assert len(opened.dataset) == len(converted.dataset) == 3


@pytest.mark.parametrize("asked", [False, True])
def test_checksums_are_recorded(folder, options, asked):
    backbone = options["backbone"]
    with_sum = OfficialOptions(**options, sha256=sha256_of(backbone).upper() if asked else "")
    metadata = open_model(str(folder / "run"), folder / "wall_single", "wall", with_sum).checkpoint.metadata
    assert metadata["official"]["files"][backbone] == sha256_of(backbone)


def test_no_name_and_files_of_weights_are_refused(options):
    with pytest.raises(ValueError, match="^checkpoint is empty: it must be bundled, a checkpoint's folder, or a"):
        open_model("", None, "wall")
    words = "is a file of weights; name the run's folder, which has hydra.yaml and checkpoints/$"
    for given in ({}, options):
        with pytest.raises(ValueError, match=words):
            open_model(options["backbone"], None, "wall", OfficialOptions(**given))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(backbone=""),
            "must be given .--config.official.backbone, --backbone of experiments.convert",
        ),
        (dict(backbone="nowhere.pth"), "nowhere.pth"),
        (dict(epoch="3"), "has no checkpoints/model_3.pth; epochs there: latest"),
        (dict(encoder_heads=3), "heads"),
        (dict(encoder_heads="2"), "official.encoder_heads must be a whole number, not '2'"),
        (dict(sha256=["00"]), "official.sha256 must be text"),
        (dict(encoder_heads=-1), "official.encoder_heads must be 0 .published. or more, not -1"),
        (dict(sha256="00, 11"), "no file has the SHA-256 00"),
    ],
)
def test_settings_that_do_not_fit_are_named(folder, options, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_model(str(folder / "run"), folder / "wall_single", "wall", OfficialOptions(**{**options, **changes}))


def test_an_epoch_may_be_a_number():
    assert OfficialOptions(epoch=3).epoch == "3"


def test_a_trained_encoder_has_its_own_weights_and_heads(tmp_path):
    params = jax.tree.map(np.asarray, random_model(WALL)[1]["params"])
    run = write_run(tmp_path / "run", WALL, to_torch(params, WALL), with_encoder=True)
    make_wall(tmp_path / "wall_single", steps=7)
    opened = open_model(str(run), tmp_path / "wall_single", "wall")
    assert opened.checkpoint.config == WALL
    (tmp_path / "backbone.pth").touch()
    with pytest.raises(ValueError, match="has an encoder of its own: leave the backbone file .* out"):
        open_model(str(run), None, "wall", OfficialOptions(backbone=str(tmp_path / "backbone.pth")))
    with pytest.raises(ValueError, match=f"its encoder has {HEADS} attention heads, not {HEADS * 2}"):
        open_model(str(run), None, "wall", OfficialOptions(encoder_heads=HEADS * 2))
    settings = run / "hydra.yaml"
    settings.write_text(settings.read_text().replace("num_pred: 1", "num_pred: 3"))
    with pytest.raises(ValueError, match="num_pred is 3, but only 1 is supported"):
        open_model(str(run), None, "wall")


def test_a_run_without_its_data_set_has_no_statistics(folder, options):
    with pytest.raises(ValueError, match="are unknown without its data set: set --config.dataset to"):
        open_model(str(folder / "run"), None, "wall", OfficialOptions(**options))


def test_a_run_that_is_not_there_lists_those_that_are(folder, options):
    for given in (options, {}):
        with pytest.raises(FileNotFoundError, match=r"; .* has (ours, )?run$"):
            open_model(str(folder / "other"), None, "wall", OfficialOptions(**given))


def test_settings_of_published_runs_mean_nothing_for_our_checkpoints():
    ours = "is for published runs, but bundled is a checkpoint of ours"
    with pytest.raises(ValueError, match=f"^official.backbone {ours}$"):
        open_model("bundled", None, "wall", OfficialOptions(backbone="b.pth"))
    config = load_config("configs/train_wall.py:small").to_dict()
    config["official"]["sha256"] = "00"
    with pytest.raises(ValueError, match="^official.sha256 is for published runs: set init.checkpoint to one$"):
        training.take_given(config)
    config["init"]["checkpoint"] = "bundled"
    with pytest.raises(ValueError, match=f"^official.sha256 {ours}$"):
        training.take_given(config)


def test_training_goes_on_from_a_published_run(folder, options):
    config = load_config("configs/train_wall.py:finetune").to_dict()
    config |= dict(dataset=str(folder / "wall_single"), official={**config["official"], **options})
    config["init"]["checkpoint"] = str(folder / "run")
    taken, given = training.take_given(config)
    assert "official" not in taken and taken["data"]["train"] + taken["data"]["validation"] == 3
    assert given.params.keys() >= {"encoder", "predictor", "decoder"}
