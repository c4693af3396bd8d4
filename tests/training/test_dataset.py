"""Training on an official data set instead of generated trajectories."""

import numpy as np
import pytest

from experiments import train
from tests.data.official_files import make_wall
from wmq_jax import training
from wmq_jax.data import load_trajectories, open_dataset


@pytest.fixture
def config(tiny_config, tmp_path):
    make_wall(tmp_path / "wall_single", steps=13)
    tiny_config["dataset"] = str(tmp_path / "wall_single")
    tiny_config["env"].update(door_y=10)
    return tiny_config


def test_the_configs_sizes_become_those_of_the_data(config):
    parts = train.use_dataset(config)
    dataset = open_dataset(config["dataset"])
    split = dataset.split()
    # One of the five episodes has its door elsewhere.
    expected = [n for n in split.train if dataset.extras["door_y"][n] == 10]
    assert config["data"]["train"] == len(expected)
    assert config["data"]["walk"]["steps"] == 10
    np.testing.assert_array_equal(parts["train"].states, dataset.states[expected, :11])
    np.testing.assert_array_equal(parts["train"].actions, dataset.actions[expected, :10])


def test_trajectories_are_in_the_workdir_before_training_starts(config, tmp_path, monkeypatch):
    config["predictor"].update(shard=2, batch=2)
    config["validation"].update(rollouts=1)
    started = []
    monkeypatch.setattr(training, "train", lambda settings, folder: started.append((settings, folder)))
    monkeypatch.setattr(train, "_WORKDIR", type("Flag", (), {"value": str(tmp_path / "run")}))
    train.main(config)
    ((settings, folder),) = started
    trajectories, metadata = load_trajectories(folder / "data" / "train.npz")
    assert len(trajectories.states) == settings.data.train and metadata["dataset"] == config["dataset"]
    assert len(load_trajectories(folder / "data" / "validation.npz")[0].states) == settings.data.validation
