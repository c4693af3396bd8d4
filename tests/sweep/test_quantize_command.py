"""The command that quantizes a checkpoint, as a user meets it."""

import pytest

from tests.programs import program

pytestmark = pytest.mark.slow

SMALL = [
    "--config=configs/quantize.py:small",
    "--config.variant=w4g8a8-token",
    "--config.held_out=2",
    "--config.planner.samples=8",
    "--config.planner.elites=3",
    "--config.planner.steps=2",
    "--config.calibration.episodes=2",
    "--config.calibration.iterations=1",
]


def quantize(*arguments):
    return program("quantize", *arguments)


def test_what_it_prints_and_leaves_and_says_the_second_time(checkpoint, tmp_path):
    arguments = [*SMALL, f"--config.checkpoint={checkpoint}", f"--workdir={tmp_path / 'q'}"]
    # What a start leaves that was stopped before it had anything binds no later one.
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "config.json").write_text('{"config": {"variant": "w3"}}')
    run = quantize(*arguments)
    assert run.returncode == 0, run.stderr
    assert "looks at   2 episodes, and 2 others for the errors of blocks: 4 plans of 8 samples x 2 steps" in run.stdout
    stages = ["compiles the planner", "calibrates on 2", "looks at 2 other", "quantizes: ", "measures the errors"]
    places = [run.stdout.index(stage) for stage in stages]
    assert places == sorted(places)
    for word in ("encoder/blocks_0/attn/qkv", "8 per token", "round-to-nearest", "planning", "model in"):
        assert word in run.stdout
    left = {path.name for path in (tmp_path / "q").iterdir()}
    assert {"config.json", "summary.json", "statistics.npz", "model"} <= left
    again = quantize(*arguments)
    assert again.returncode == 0 and "all is done" in again.stdout, again.stderr
    assert run.stdout.partition("\nsite ")[2] == again.stdout.partition("\nsite ")[2]
