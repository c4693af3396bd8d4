"""Training on an official data set and from a checkpoint, instead of generated trajectories and random weights."""

import jax
import numpy as np
import pytest

from tests.data.official_files import make_maze, make_wall, write
from wmq_jax import training
from wmq_jax.checkpoints.native import PORTION, abstract_params, load_model, save_model
from wmq_jax.data import Normalizer, Portion, load_trajectories, open_dataset
from wmq_jax.models import WorldModelConfig
from wmq_jax.training.loop import StageResult, run_stage

pytestmark = pytest.mark.quick

STATISTICS = Normalizer(np.zeros(2), 2 * np.ones(2), 30 * np.ones(2), 10 * np.ones(2))


@pytest.fixture
def with_data(tiny_config, tmp_path):
    """The tiny config with a data set of two layouts."""
    make_wall(tmp_path / "wall_single", steps=13)
    tiny_config["dataset"] = str(tmp_path / "wall_single")
    return tiny_config


def save_checkpoint(folder, sizes, normalizer=None, env="wall"):
    """A converted model of random weights: official, so neither residual nor standardised."""
    sizes["standardize_latents"] = sizes["predictor"]["residual"] = False
    config, random = WorldModelConfig.from_dict(sizes), np.random.default_rng(3)
    draw = lambda leaf: 0.1 * random.normal(size=leaf.shape).astype(np.float32)
    params = jax.tree.map(draw, abstract_params(config))
    save_model(folder, config, params, normalizer, {"env": env})
    return params


@pytest.fixture
def converted(with_data, tmp_path, monkeypatch):
    """The config that starts from a converted model without statistics, and the model's parameters."""
    # Rollouts of the result are those of any run (`test_run.py`), and take most of the time.
    monkeypatch.setattr("wmq_jax.training.run._validate", lambda *_: {})
    params = save_checkpoint(tmp_path / "converted", with_data["model"])
    with_data["model"] = {"sizes": "of the config, which the checkpoint's replace"}
    with_data["init"]["checkpoint"] = str(tmp_path / "converted")
    with_data["predictor"].update(batch=2, rounds=2)
    with_data["validation"].update(episodes=0, pictures=0)
    return with_data, params


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def test_a_data_set_gives_its_official_parts_with_the_layout_of_each(with_data):
    config, given = training.take_given(with_data)
    dataset = open_dataset(with_data["dataset"])
    split = dataset.split()
    assert (config["data"]["train"], config["data"]["validation"]) == (4, 1) and config["data"]["walk"]["steps"] == 12
    assert (config["predictor"]["shard"], config["validation"]["rollouts"]) == (4, 1)
    states, actions = given.trajectories["train"]
    np.testing.assert_array_equal(states[..., :2], dataset.states[split.train])
    np.testing.assert_array_equal(actions, dataset.actions[split.train, :12])
    assert sorted(states[:, 0, 2]) == [10, 10, 10, 20] and (states[..., 3] == 32).all()
    assert with_data["data"]["train"] == 40, "the config that was given is left alone"


def test_statistics_are_those_of_all_episodes_as_officially(with_data):
    _, given = training.take_given(with_data)
    assert given.normalizer.to_dict() == open_dataset(with_data["dataset"]).normalizer.to_dict()


def test_a_checkpoint_brings_its_sizes_and_its_statistics(converted, tmp_path):
    config, _ = converted
    with_own = {**config, "init": {**config["init"], "checkpoint": str(tmp_path / "own")}}
    save_checkpoint(tmp_path / "own", load_model(tmp_path / "converted").config.to_dict(), STATISTICS)
    taken, given = training.take_given(with_own)
    assert given.normalizer.to_dict() == STATISTICS.to_dict()
    assert WorldModelConfig.from_dict(taken["model"]) == load_model(tmp_path / "own").config
    assert training.check_settings(taken).encoder is None
    with_own["init"]["dropout"] = 0.25
    assert training.take_given(with_own)[0]["model"]["predictor"]["dropout"] == 0.25
    _, given = training.take_given(config)
    assert given.normalizer.to_dict() == open_dataset(config["dataset"]).normalizer.to_dict()


def test_the_split_is_that_of_the_checkpoints_run(converted, tmp_path):
    """And what is trained from it has it in turn, so that later validation episodes stay unseen."""
    config, params = converted
    portion = Portion(n_rollout=4, split_ratio=0.5)
    model = load_model(tmp_path / "converted")
    save_model(tmp_path / "with portion", model.config, params, None, {PORTION: portion._asdict()})
    config["init"]["checkpoint"] = str(tmp_path / "with portion")
    taken, given = training.take_given(config)
    dataset = open_dataset(config["dataset"]).taken(portion)
    assert (taken["data"]["train"], taken["data"]["validation"]) == (2, 2) and given.portion == portion
    np.testing.assert_array_equal(given.trajectories["train"].actions, dataset.actions[dataset.split().train, :12])
    assert given.normalizer.to_dict() == dataset.normalizer.to_dict()
    assert taken["given"]["dataset"]["n_rollout"] == 4
    save_model(tmp_path / "own", model.config, params, STATISTICS, {PORTION: portion._asdict()})
    generated = {**config, "dataset": "", "init": {**config["init"], "checkpoint": str(tmp_path / "own")}}
    assert training.take_given(generated)[1].portion == portion


def run(config, folder, log=lambda line: None):
    config, given = training.take_given(config)
    settings = training.check_settings(config)
    folder = training.open_workdir(folder, config, {})
    training.train(settings, folder, log, given)
    return load_model(folder / "model")


def skip_stages(monkeypatch, *names):
    """Stages of these names end where they start; returns the list that those skipped will be in."""
    skipped = []

    def run_or_skip(stage, workdir, log):
        if stage.name not in names:
            return run_stage(stage, workdir, log)
        skipped.append(stage.name)
        return StageResult(stage.init(), {}, 0.0)

    monkeypatch.setattr("wmq_jax.training.run.run_stage", run_or_skip)
    return skipped


@pytest.mark.parametrize("anew", [(), ("predictor", "decoder")], ids=["fine-tuned", "trained anew"])
def test_training_starts_from_the_checkpoint(converted, tmp_path, monkeypatch, anew):
    """Where no stage takes a step, what comes out is where training starts."""
    config, params = converted
    config["init"] |= dict.fromkeys(anew, False)
    stages = skip_stages(monkeypatch, "predictor", "decoder")
    found = run(config, tmp_path / "run").params
    assert stages == ["predictor", "decoder"]
    assert same(found["encoder"], params["encoder"])
    for part in ("predictor", "proprio_encoder", "action_encoder", "decoder"):
        assert same(found[part], params[part]) == (not anew), part
    assert len(load_trajectories(tmp_path / "run" / "data" / "train.npz")[0].states) == 4
    assert load_model(tmp_path / "run" / "model").metadata[PORTION] == Portion()._asdict()


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.slow
def test_killed_and_resumed_is_uninterrupted(converted, tmp_path, monkeypatch):
    config, params = converted
    skip_stages(monkeypatch, "decoder")  # which takes half of the time
    whole = run(config, tmp_path / "whole")
    assert same(whole.params["encoder"], params["encoder"])
    assert not same(whole.params["predictor"], params["predictor"])

    def killer(line):
        if line.startswith("predictor: 1/2 chunks"):
            raise Killed

    with pytest.raises(Killed):
        run(config, tmp_path / "killed", killer)
    again = run(config, tmp_path / "killed")
    assert same(again.params, whole.params) and again.normalizer.to_dict() == whole.normalizer.to_dict()


def test_another_checkpoint_in_the_same_place_is_not_resumed_with(converted, tmp_path):
    config, _ = converted
    training.open_workdir(tmp_path / "run", training.take_given(config)[0], {})
    save_model(
        tmp_path / "other",
        load_model(tmp_path / "converted").config,
        jax.tree.map(lambda x: x + 1, load_model(tmp_path / "converted").params),
        None,
        {"env": "wall"},
    )
    (tmp_path / "converted").rename(tmp_path / "old")
    (tmp_path / "other").rename(tmp_path / "converted")
    with pytest.raises(ValueError, match="config.given.params_sha256 is .* there and .* now"):
        training.open_workdir(tmp_path / "run", training.take_given(config)[0], {})


def test_another_content_of_the_data_set_is_not_resumed_with(converted, tmp_path):
    config, _ = converted
    training.open_workdir(tmp_path / "run", training.take_given(config)[0], {})
    actions = open_dataset(config["dataset"]).actions
    write(tmp_path / "wall_single" / "actions.pth", actions[::-1].copy())  # of the same statistics
    with pytest.raises(ValueError, match="config.given.dataset.actions is .* there and .* now"):
        training.open_workdir(tmp_path / "run", training.take_given(config)[0], {})


def test_what_does_not_fit_is_named(converted, tmp_path):
    config, _ = converted
    with pytest.raises(ValueError, match="^model.num_hist cannot be set beside init.checkpoint"):
        training.take_given(config, ["seed", "model.num_hist"])
    without_data = {**config, "dataset": ""}
    with pytest.raises(ValueError, match="are unknown without its data set: set --config.dataset to"):
        training.take_given(without_data)
    for name, words in (("nowhere", "no model checkpoint at nowhere"), (str(tmp_path / "maze"), "is a model of pusht")):
        if name != "nowhere":
            save_checkpoint(tmp_path / "maze", load_model(tmp_path / "converted").config.to_dict(), env="pusht")
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            training.take_given({**config, "init": {**config["init"], "checkpoint": name}})
    make_maze(tmp_path / "point_maze")
    with pytest.raises(ValueError, match="of layout point_maze; training on the wall takes wall_single"):
        training.take_given({**config, "dataset": str(tmp_path / "point_maze")})
