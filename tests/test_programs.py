"""Programs whose parts are tested elsewhere, run once as a user starts them."""

import json
import os
import shutil

import pytest

from tests.programs import program
from wmq_jax.io import locked
from wmq_jax.runtime import provenance
from wmq_jax.runtime.devices import DETERMINISTIC_FLAGS

pytestmark = pytest.mark.slow

# What results are computed on, beside versions.
MACHINE = ("device", "xla_flags", "matmul_precision")
TINY_TRAINING = {
    "model.encoder": dict(width=16, depth=1, heads=2, mlp_dim=32),
    "model.predictor": dict(depth=1, heads=2, dim_head=8, mlp_dim=32),
    "model.decoder": dict(channel=8, n_res_block=1, n_res_channel=4),
    "data": dict(train=40, validation=6),
    "data.walk": dict(steps=10),
    "encoder": dict(steps=4, chunk=2, batch=4, warmup=1, grid=8),
    "predictor": dict(rounds=3, shard=20, batch=8, warmup=1),
    "decoder": dict(steps=4, chunk=2, batch=2, warmup=1),
    "validation": dict(rollouts=4, pictures=1, episodes=2, horizon=2, iterations=2),
    "validation.planner": dict(samples=4, elites=2, steps=2),
}


def test_train_leaves_a_model_with_pictures_and_a_summary_and_is_then_done(tmp_path):
    settings = [f"--config.{group}.{k}={v}" for group, fields in TINY_TRAINING.items() for k, v in fields.items()]
    command = ["--config=configs/train_wall.py:small", *settings, f"--workdir={tmp_path / 'run'}"]
    run = program("train", *command)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "run" / "rollouts.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary["stages"]) == {"data", "encoder", "predictor", "decoder", "validation"}
    assert (tmp_path / "run" / "model" / "model.json").exists()
    for line in (
        "model      a new one",
        "error      patches, last frame copied",
        "of 2 development episodes",
        "the model is ",
    ):
        assert line in run.stdout
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["device"] == {"platform": "cpu", "kind": provenance.processor(), "count": 1}
    assert written["matmul_precision"] == "highest"
    assert all(flag in written["xla_flags"] for flag in DETERMINISTIC_FLAGS), "bits must not depend on threads"
    starts = (tmp_path / "run" / "starts.jsonl").read_text().splitlines()
    assert [{name: json.loads(line)[name] for name in MACHINE} for line in starts] == [
        {name: written[name] for name in MACHINE}
    ]
    otherwise = dict(env={**os.environ, "JAX_DEFAULT_MATMUL_PRECISION": "float32"})
    again = program("train", *command, **otherwise)
    assert again.returncode == 0 and "done" in again.stdout + again.stderr and "note:" not in again.stdout
    assert (tmp_path / "run" / "starts.jsonl").read_text().splitlines() == starts, "it computes nothing"
    (tmp_path / "run" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "run" / "model")
    rest = program("train", *command, **otherwise)
    assert rest.returncode == 0, rest.stderr
    assert "note: an earlier start in this folder had other matmul precision; starts.jsonl tells" in rest.stdout
    with locked(tmp_path / "run"):
        beside = program("train", *command)
    assert beside.returncode == 2 and "is in use by another run" in beside.stderr


def test_bench_measures_the_sections_that_are_asked_for(tmp_path):
    small = ["--config.repeats=1", "--config.planner.steps=1", "--config.planner.samples=8", "--config.cells=2"]
    run = program("bench", "--config.only=idle", *small, f"--out={tmp_path / 'figures.json'}")
    assert run.returncode == 0, run.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures) == {*MACHINE, "machine", "versions", "git_revision", "config", "idle tiles"}
    assert 0 < figures["idle tiles"]["half idle over busy"] < 2


def test_bench_times_the_methods_each_in_a_process_of_its_own(tmp_path):
    tiny = ["--config=configs/bench.py:methods", "--config.size=tiny"]
    run = program("bench", *tiny, f"--out={tmp_path / 'figures.json'}")
    assert run.returncode == 0, run.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    for method in ("rtn", "omse", "smoothquant", "awq", "omniquant"):
        found = figures[f"{method}:w4g128"]
        assert 0 < found["seconds"] < found["compilation seconds"] and 0.1 < found["peak memory GB"] < 8


def test_bench_names_its_sections():
    run = program("bench", "--config.only=nothing")
    assert run.returncode == 2
    assert run.stderr.startswith("error: --config.only=nothing is in none of the titles rollout, history 1, ")
