"""The recorded run and data set through conversion, sweep and quantization, as the README shows them."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.golden.published_files import BACKBONE, DATASET, RUNS, write_published
from wmq_jax import sweep as sweeps
from wmq_jax.checkpoints.convert import convert_run
from wmq_jax.checkpoints.native import load_model
from wmq_jax.checkpoints.official_run import load_official, official_normalizer
from wmq_jax.checkpoints.opening import OfficialOptions
from wmq_jax.cli import load_config
from wmq_jax.data import open_dataset
from wmq_jax.io import sha256_of
from wmq_jax.sweep.calibration import drawn_episodes
from wmq_jax.sweep.preparation import IDENTITY

pytestmark = [pytest.mark.slow, pytest.mark.quick, pytest.mark.usefixtures("compilation_cache")]

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with the published files under their names."""
    folder = tmp_path_factory.mktemp("published")
    write_published(folder)
    return folder


@pytest.fixture(scope="module")
def heads(golden):
    """Attention heads of the recorded backbone, whose width is not a published one."""
    return golden("world_model.npz").scalar("spec/enc_heads")


@pytest.fixture(scope="module", autouse=True)
def converted(files, heads):
    """`models/wall`, which the README's conversion makes."""
    model = load_official(files / RUNS / "wall_single", files / BACKBONE, heads=heads)
    normalizer = official_normalizer(model.settings, model.config, open_dataset(files / DATASET))
    convert_run(model, files / "models" / "wall", normalizer)


def sweep_config(files, heads, monkeypatch, **changes):
    """The config of the README's sweep of these files, with fields `group__field=value` changed."""
    monkeypatch.chdir(files)  # the paths in the README are relative
    where = "configs/wall_official.py"
    (line,) = re.findall(rf"^python -m experiments\.sweep --config={re.escape(where)} .*$", README, re.M)
    assert "--config.dataset=wall_single.zip" in line
    words = dict(re.findall(r"--config\.([\w.]+)=(\S+)", line))
    words |= {path.replace("__", "."): value for path, value in changes.items()} | {"official.encoder_heads": heads}
    config = load_config(f"{ROOT}/{where}").to_dict()
    for path, value in words.items():
        *groups, field = path.split(".")
        holder = config
        for group in groups:
            holder = holder[group]
        assert field in holder, path
        holder[field] = value
    return config


@pytest.fixture
def calibration(files):
    """One real episode to calibrate on and one beside it; the reduced recordings have the frames of two."""
    dataset = open_dataset(files / "wall_single.zip")
    there = {n for n in range(len(dataset)) if dataset.place.has(f"obses/episode_{n:03d}.pth")}
    seed = next(
        s for s in itertools.count() if there.issuperset(drawn_episodes(dataset, {"seed": s, "episodes": 2}).tolist())
    )
    return dict(episodes=1, iterations=1, samples=2, seed=seed, horizon=2)


TINY = dict(samples=3, elites=2, steps=1, iterations=1, horizons="2")


def test_sweep(files, heads, calibration, monkeypatch, tmp_path):
    """The files as they are, calibrated on real episodes, between states of a validation trajectory on its wall."""
    dataset = open_dataset(files / "wall_single.zip")
    (valid,) = dataset.split().valid
    config = sweep_config(
        files,
        heads,
        monkeypatch,
        variants="w8a8-tensor",
        calibration=calibration,
        calibration_source="dataset",
        env__door_y=int(dataset.extras["door_y"][valid]),
        episodes=dict(count=2, base_seed=99, goal_source="dset", goal_horizon=2),
        references=False,
        pictures=0,
        **{f"planner__{name}": value for name, value in TINY.items()},
    )
    assert config["checkpoint"] == "outputs.zip/wall_single"
    sweep = sweeps.prepare(sweeps.check_settings(config), config)
    folder = sweeps.open_folder(sweep, tmp_path / "results")
    with folder.locked():
        assert sweeps.run_sweep(sweep, folder)
    rows = [json.loads(line) for line in (folder.path / "rows.jsonl").read_text().splitlines()]
    assert [(row["variant"], row["episode"]) for row in rows] == list(
        itertools.product(["FP32", "W8A8 per-tensor"], range(2))
    )
    assert all(np.isfinite(row["initial_cost"]) for row in rows)
    costs = [row["initial_cost"] for row in rows]
    # The same plans are judged, by a model in eight bits.
    assert costs[2:] != costs[:2] and costs[2:] == pytest.approx(costs[:2], rel=0.3)
    assert set(sweep.evaluation.segments[:, 0]) == {valid}


def test_a_run_and_its_conversion_are_one_model(files, heads, monkeypatch):
    """What decides rows is the same, also where checksums are asked for."""
    names = ("outputs.zip", "dinov2_vits14_pretrain.pth", "wall_single.zip")
    sums = ",".join(sha256_of(files / name) for name in names)
    config = sweep_config(
        files,
        heads,
        monkeypatch,
        official__sha256=sums,
        variants="w8",
    )
    direct = sweeps.prepare(sweeps.check_settings(config), config)
    config |= dict(checkpoint="models/wall", official=vars(OfficialOptions()))
    converted = sweeps.prepare(sweeps.check_settings(config), config)
    assert {name: direct.config[name] for name in IDENTITY} == {name: converted.config[name] for name in IDENTITY}
    files_of = [sweep.checkpoint.metadata["official"].pop("files") for sweep in (direct, converted)]
    assert [set(found) for found in files_of] == [set(names), set()]
    assert direct.checkpoint.metadata == converted.checkpoint.metadata
    alone = {**config, "dataset": ""}  # the model has the statistics; nothing else is taken from the data set
    alone = sweeps.prepare(sweeps.check_settings(alone), alone)
    assert {name: alone.config[name] for name in IDENTITY} == {name: direct.config[name] for name in IDENTITY}


def test_quantize(files, calibration, monkeypatch, tmp_path):
    config = load_config(f"{ROOT}/configs/quantize.py").to_dict()
    config |= dict(checkpoint="models/wall", dataset="wall_single.zip", calibration_source="dataset")
    config |= dict(calibration=calibration, variant="w8a8-tensor", held_out=1)
    config["planner"] |= TINY
    monkeypatch.chdir(files)
    job = sweeps.prepare_quantization(config)
    workdir = sweeps.open_workdir(job, tmp_path / "quantized")
    summary = sweeps.run_quantization(job, workdir, log=lambda line: None)
    assert all(0 < block["error"]["mean"] < 0.1 for block in summary["blocks"])
    model = load_model(workdir / "model", quantized=True)
    assert model.normalizer.to_dict() == open_dataset("wall_single.zip").normalizer.to_dict()
    assert model.metadata["official"]["settings"]["saved_folder"]
