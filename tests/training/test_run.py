"""A whole run: killed and resumed it is the uninterrupted one bit for bit, and its model can be loaded."""

import json

import jax
import numpy as np
import pytest

from wmq_jax import training
from wmq_jax.checkpoints import native

pytestmark = pytest.mark.quick

PROVENANCE = {"versions": {}, "git_revision": None}


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def start(config, workdir, log):
    folder = training.open_workdir(workdir, config, PROVENANCE)
    return training.train(training.check_settings(config), folder, log)


def without_times(summary):
    return {
        **summary,
        "stages": {
            name: {k: v for k, v in stage.items() if k != "minutes"} for name, stage in summary["stages"].items()
        },
    }


@pytest.mark.slow
def test_resumed_is_uninterrupted(tiny_config, tmp_path):
    expected = start(tiny_config, tmp_path / "whole", lambda line: None)
    seen = set()

    def killer(line):
        """Kills once in the middle of a stage and once between two."""
        mark = line.split(" ")[0] if line.startswith(("predictor: 2/3 chunks", "validation:")) else ""
        if mark and mark not in seen:
            seen.add(mark)
            raise Killed

    for _ in range(3):
        try:
            found = start(tiny_config, tmp_path / "killed", killer)
            break
        except Killed:
            continue
    assert len(seen) == 2
    assert without_times(found) == without_times(expected)
    whole, killed = (native.load_model(tmp_path / name / "model") for name in ("whole", "killed"))
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(killed.params), strict=True):
        assert np.array_equal(a, b)
    assert whole.normalizer.to_dict() == killed.normalizer.to_dict()
    assert (tmp_path / "whole" / "rollouts.png").read_bytes() == (tmp_path / "killed" / "rollouts.png").read_bytes()

    lines = []
    again = start(tiny_config, tmp_path / "whole", lines.append)
    assert again == json.loads((tmp_path / "whole" / "summary.json").read_text()) and "all is done" in lines[0]

    # What the summary promises is there.
    assert set(expected["stages"]) == {"data", "encoder", "predictor", "decoder", "validation"}
    frames = tiny_config["data"]["walk"]["steps"] // tiny_config["model"]["frameskip"]
    assert all(len(errors) == frames for errors in expected["validation"].values())
    assert len(expected["development"]["success"]) == tiny_config["validation"]["iterations"]


def test_another_config_is_refused_and_the_field_named(tiny_config, tmp_path):
    training.open_workdir(tmp_path, tiny_config, PROVENANCE)
    training.open_workdir(tmp_path, tiny_config, PROVENANCE)
    tiny_config["predictor"]["learning_rate"] = 0.5
    with pytest.raises(ValueError, match="config.predictor.learning_rate is 0.015 there and 0.5 now"):
        training.open_workdir(tmp_path, tiny_config, PROVENANCE)


def test_a_damaged_workdir_is_named(tiny_config, tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is damaged"):
        training.open_workdir(tmp_path, tiny_config, PROVENANCE)


def test_what_an_earlier_start_left_is_checked(tiny_config, tmp_path):
    training.open_workdir(tmp_path, tiny_config, PROVENANCE)
    training.check_folder(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.npz").write_text("no array")
    with pytest.raises(ValueError, match="train.npz is damaged"):
        training.check_folder(tmp_path)
    (tmp_path / "data" / "train.npz").unlink()
    (tmp_path / "predictor").mkdir()
    (tmp_path / "predictor" / "progress.json").write_text("{}")
    with pytest.raises(ValueError, match="progress.json is damaged"):
        training.check_folder(tmp_path)
    (tmp_path / "predictor" / "progress.json").unlink()
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match="no model checkpoint at .*; delete .*summary.json"):
        training.check_folder(tmp_path)


def test_a_workdir_that_is_a_file_is_an_error(tiny_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="^workdir .*/file cannot be created: File exists$"):
        training.open_workdir(tmp_path / "file", tiny_config, PROVENANCE)
