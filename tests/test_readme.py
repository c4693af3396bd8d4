"""What the README shows must run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import quantize, train_wall, wall
from tests.golden.published_files import write_published
from wmq_jax.checkpoints.native import bundled_model_path, load_model, save_model
from wmq_jax.cli import load_config
from wmq_jax.io import sha256_of
from wmq_jax.quantized import build_variant, parse_variant
from wmq_jax.sweep.quantization import default_workdir

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.S)
SELF_CONTAINED = [code for code in SNIPPETS if "# about" in code]


@pytest.mark.parametrize("code", SELF_CONTAINED, ids=range(len(SELF_CONTAINED)))
def test_the_snippets_run(code, capsys):
    """Each by itself; it prints its error, "about" as it says."""
    exec(compile(code, "README.md", "exec"), {})
    (about,) = map(float, re.findall(r"# about ([\d.]+)", code))
    assert about / 2 < float(capsys.readouterr().out) < about * 2


def test_a_quantized_model_is_loaded_as_shown(tmp_path, monkeypatch):
    """From the folder that the command above it writes."""
    (line,) = re.findall(r"^python -m experiments\.quantize --config=(\S+) --config\.variant=(\S+)$", TEXT, re.M)
    spec, config = parse_variant(line[1]), load_config(f"{ROOT}/{line[0]}")
    source = load_model(bundled_model_path())
    variant = build_variant(source.config, source.params, parse_variant("w4g32a8-token"))
    folder = tmp_path / default_workdir(config.name, spec) / "model"
    save_model(folder, source.config, variant.params, source.normalizer, {}, variant.codes, variant.quant)
    monkeypatch.chdir(tmp_path)
    names = {}
    (code,) = (code for code in SNIPPETS if "load_model" in code)
    exec(compile(code, "README.md", "exec"), names)
    assert names["latents"].visual.shape[1] == 1 + 5 and np.isfinite(names["latents"].visual).all()
    jax.tree.map(np.testing.assert_array_equal, names["model"].params, jax.tree.map(np.asarray, variant.params))


def test_ci_runs_the_readmes_test_line():
    lines = re.findall(r"^pip install .*&& python -m pytest$", TEXT, re.M)
    assert len(lines) == 1
    assert "grep -m1 '^pip install .*&& python -m pytest$' README.md" in (ROOT / ".ci" / "run").read_text()


def has_field(config, name):
    for field in name.split("."):
        if field not in config:
            return False
        config = config[field]
    return True


def test_settings_that_it_names_exist():
    configs = [module.get_config("small") for module in (wall, train_wall, quantize)]
    names = set(re.findall(r"--config\.([\w.]+)=", TEXT)) - {"path"}
    assert names
    assert [name for name in names if not any(has_field(config, name) for config in configs)] == []


def test_variants_that_it_names_exist():
    words = [word for text in re.findall(r"--config\.variants='([^']*)'", TEXT) for word in text.split()]
    assert words and all(parse_variant(word) for word in words)


def test_files_that_it_links_exist():
    for target in re.findall(r"\]\(([\w./]+)\)", TEXT):
        assert (ROOT / target).exists(), target


@pytest.mark.slow
def test_the_commands_for_published_files_run(tmp_path):
    """Word by word, on the recorded run under the published names; its small backbone needs its head count beside."""
    heads = write_published(tmp_path)
    # What a GPU computes in hours is made small; the lines stay as they are.
    sizes = (
        "--config.planner.samples=4 --config.planner.elites=2 --config.planner.steps=1 --config.planner.iterations=1"
    )
    sizes += " --config.planner.horizons=2 --config.calibration.horizon=2"
    extras = {
        "sweep --config=configs/wall_official.py": f"{sizes} --config.episodes.count=1 --config.variants=w4 "
        "--config.references=false --config.pictures=1",
        "quantize --config=configs/quantize.py": f"{sizes} --config.calibration.episodes=1 --config.held_out=0",
        "convert --run_dir=outputs.zip": "",
        "convert --to=torch": "",
        "train --config=configs/train_wall.py:finetune": "--config.predictor.rounds=1 --config.predictor.shard=1 "
        "--config.predictor.batch=1 --config.decoder.steps=1 --config.decoder.chunk=1 --config.decoder.batch=1 "
        "--config.validation.rollouts=1 --config.validation.pictures=0 --config.validation.episodes=0",
    }
    lines = [line for line in TEXT.splitlines() if re.search(r"^python -m .*(outputs\.zip|models/wall)", line)]
    assert len(lines) == len(extras)
    for start, extra in extras.items():
        (line,) = (line for line in lines if f"experiments.{start}" in line)
        heads_flag = {"--config.official.backbone": "--config.official.encoder_heads", "--backbone": "--encoder_heads"}
        extra += "".join(f" {flag}={heads}" for given, flag in heads_flag.items() if f" {given}=" in line)
        command = [sys.executable, *line.replace("=configs/", f"={ROOT}/configs/").split()[1:], *extra.split()]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}: {done.stderr}"
    assert (tmp_path / "outputs" / "wall" / "hydra.yaml").is_file()
    results = tmp_path / "results"
    assert (results / "wall-official-protocol" / "report.html").is_file()
    files = json.loads((results / "wall-official-protocol" / "config.json").read_text())["files"]
    names = ("outputs.zip", "dinov2_vits14_pretrain.pth")
    assert {path: files[path] for path in names} == {path: sha256_of(tmp_path / path) for path in names}
    assert (results / "wall-official-protocol" / "rows.jsonl").read_text().count("\n") == 2
    quantized = load_model(results / "quantize-study-w8a8-tensor" / "model", quantized=True)
    assert quantized.metadata["variant"] == "w8a8-tensor" and quantized.metadata["official"]["files"]
    before = load_model(tmp_path / "models" / "wall")
    after = load_model(results / "train-wall-finetune-seed0" / "model")
    gap = lambda a, b: max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), a, b)))
    moved = {name: gap(part, after.params[name]) for name, part in before.params.items()}
    assert moved["encoder"] == 0 and 0 < moved["predictor"] < 0.1 and 0 < moved["decoder"] < 0.1
    assert after.metadata["dataset"] == before.metadata["dataset"] and after.config == before.config
