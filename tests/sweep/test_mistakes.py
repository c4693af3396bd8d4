"""Every mistake that a user is expected to make, with everything that the program then prints.

All are of one kind: one sentence on standard error, exit 2, and no folder left behind. `test_command.py` starts some in
processes of their own.
"""

import json
import os
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import bench, quantize, train_wall, wall
from experiments import fields
from tests.programs import ROOT, program_here
from wmq_jax import io, quant
from wmq_jax import sweep as sweeps
from wmq_jax.checkpoints import native, packed
from wmq_jax.io.orbax import save_tree

GRAMMAR = (
    "'fp', or [method:]wB[gG][aB[-tensor|-token]] for both modules ('w4', 'awq:w4g32', 'w8a8-token'), or "
    "encoder=<spec>, predictor=<spec> or both with a comma between"
)
NAME = "name must be letters, digits, '.', '_' and '-', the first of them no '.', not"
BITS = "bits must be 2..15, or None, 16 or 32 for no quantization; got"
TRAIN = "configs/train_wall.py:small"
UNKNOWN_PLANNER = (
    "--config.planner.nope: the config has no field 'nope' there; its fields are alpha, base, check_every, elites, "
    "executed, horizons, init_std, iterations, learning_rate, objective, optimizer, samples, seeds, step_noise, steps"
)

# Program, arguments, all of the sentence.
MISTAKES = [
    ("sweep", ["--nope=1"], "Unknown command line flag 'nope'"),
    ("sweep", ["extra"], "unknown argument 'extra'; settings are given as --name=value, see --help"),
    ("sweep", ["--config.planner.nope=1"], UNKNOWN_PLANNER),
    (
        "sweep",
        ["--config.engine=1"],
        "--config.engine is a group of fields; set one of devices, noise_floor_tile, tile, tiles_per_call in it",
    ),
    (
        "sweep",
        ["--config.variants=awq:w4", "--config.methods.awq_scaled=nothing"],
        "awq: scaled='nothing' matches no pair; the first consumers are attn/proj, attn/qkv, mlp/fc1, mlp/fc2",
    ),
    ("sweep", ["--config.planner.steps=many"], "--config.planner.steps must be a whole number, not 'many'"),
    ("sweep", ["--config.planner.steps", "many"], "--config.planner.steps must be a whole number, not 'many'"),
    ("sweep", ["--config.planner.alpha=much"], "--config.planner.alpha must be a number, not 'much'"),
    ("sweep", ["--config.planner.alpha=1e39"], "objective alpha must be 0..1000000, not 1e+39"),
    ("sweep", ["--config.planner.base=1e39"], "objective base must be more than 0 and at most 1000, not 1e+39"),
    ("sweep", ["--config.references=maybe"], "--config.references must be true or false, not 'maybe'"),
    ("sweep", ["--distributed=maybe"], "--distributed must be true or false, not 'maybe'"),
    ("sweep", ["--process=first"], "--process must be a whole number, not 'first'"),
    ("sweep", ["--processes=0"], "processes must be 1 or more, not 0"),
    ("sweep", ["--process=2", "--processes=2"], "process must be 0..1 (of 2), not 2"),
    ("sweep", ["--config"], "--config has no value; give --config=FILE.py or --config=FILE.py:MODE"),
    ("sweep", ["--config="], "--config has no value; give --config=FILE.py or --config=FILE.py:MODE"),
    (
        "sweep",
        ["--config=configs/none.py"],
        "--config=configs/none.py: there is no config file configs/none.py; give FILE.py or FILE.py:MODE",
    ),
    ("sweep", ["--config=configs/wall.py:huge"], "configs/wall.py has the modes study, small, methods, not 'huge'"),
    ("sweep", ["--config.variants=w1"], f"variant 'w1': {BITS} 1"),
    ("sweep", ["--config.variants=w17"], f"variant 'w17': {BITS} 17"),
    ("sweep", ["--config.variants=w4a1"], f"variant 'w4a1': {BITS} 1"),
    ("sweep", ["--config.variants=x4"], f"variant 'x4': expected {GRAMMAR}"),
    (
        "sweep",
        ["--config.variants=w4g0"],
        "variant 'w4g0': group_size must be a positive integer or None, not 0",
    ),
    (
        "sweep",
        ["--config.variants="],
        "variants must be one or more separated by spaces, such as 'w8 w4g32', not ''",
    ),
    ("sweep", ["--workdir="], "--workdir is empty; name a folder, or leave it out for results/wall-small"),
    ("train", ["--workdir="], "--workdir is empty; name a folder, or leave it out for results/train-wall-small-seed0"),
    ("quantize", ["--workdir="], "--workdir is empty; name a folder, or leave it out for results/quantize-small-w4g32"),
    (
        "sweep",
        ["--noconfig.planner.samples"],
        "--noconfig.planner.samples is for fields that are true or false; give --config.planner.samples=VALUE",
    ),
    (
        "sweep",
        ["--noconfig.planner.nope"],
        "--noconfig.planner.nope: the config has no field 'nope' there; its fields are alpha, base, "
        "check_every, elites, executed, horizons, init_std, iterations, learning_rate, objective, optimizer, samples, "
        "seeds, step_noise, steps",
    ),
    ("train", ["--config.init.dropout=0.5"], "init.dropout is for a given model: set init.checkpoint to one"),
    (
        "train",
        ["--config.init.checkpoint=x", "--config.encoder.steps=5"],
        "encoder.steps cannot be set beside init.checkpoint: the encoder of x stays as it is",
    ),
    (
        "train",
        ["--config.dataset=x", "--config.data.walk.steps=5"],
        "data.walk.steps cannot be set beside dataset: x has its own trajectories",
    ),
    ("sweep", ["--config.name=../.."], f"{NAME} '../..'"),
    ("train", ["--config.name=/etc/passwd"], f"{NAME} '/etc/passwd'"),
    ("quantize", ["--config.name="], f"{NAME} ''"),
    (
        "sweep",
        ["--config.checkpoint=nowhere"],
        "no model checkpoint at nowhere: it has no model.json",
    ),
    (
        "train",
        ["--config.init.checkpoint=nowhere"],
        "no model checkpoint at nowhere: it has no model.json",
    ),
    ("quantize", ["--config.variant=w1"], f"variant 'w1': {BITS} 1"),
    ("quantize", ["--statistics=nowhere.npz"], "there is no statistics file nowhere.npz"),
    (
        "quantize",
        [f"--statistics={ROOT / 'README.md'}"],
        f"{ROOT / 'README.md'} is no statistics file (it is no .npz file, which experiments.quantize writes)",
    ),
    (
        "train",
        ["--config.validation.base_seed=0"],
        "validation: base seed 0 would mix evaluation, calibration and development episodes; choose 4 or more",
    ),
    (
        "train",
        ["--config.validation.episodes=9999999", "--config.validation.base_seed=999"],
        "validation: base seed 999 with 9999999 episodes leaves the seeds 0..2147483647",
    ),
    (
        "sweep",
        [f"--config={TRAIN}"],
        f"--config={TRAIN} is no config of this program: it lacks variants, references, pictures, "
        "engine.noise_floor_tile, checkpoint and 36 more",
    ),
    ("quantize", ["--config=configs/wall.py:small"], "{wall} variant, held_out"),
    ("bench", ["--config.kind=nope"], "kind 'nope' is not one of against_qwix, methods, planning, reader"),
    ("quantize", ["--config=configs/quantize.py:huge"], "configs/quantize.py has the modes study, small, not 'huge'"),
    ("bench", ["--config=configs/wall.py:small"], "{wall} kind, only"),
    (
        "report",
        [],
        "--results must be given: Results folder of a sweep (its --workdir).",
    ),
    ("convert", ["--out=x"], "--run_dir must be given: Folder of the run; with --to=torch our checkpoint."),
]


def check(run, sentence, folder=None):
    """One sentence, the whole of it, exit 2, and no folder."""
    assert (run.returncode, run.stderr) == (2, f"error: {sentence}\n")
    assert folder is None or not folder.exists()


@pytest.mark.parametrize("name, arguments, sentence", MISTAKES, ids=[" ".join([n, *a])[:60] for n, a, _ in MISTAKES])
def test_mistakes_are_one_sentence(tmp_path, monkeypatch, name, arguments, sentence):
    monkeypatch.chdir(ROOT)
    place = [] if name in ("bench", "report", "convert") else [f"--workdir={tmp_path / 'w'}"]
    sentence = sentence.replace("{wall}", "--config=configs/wall.py:small is no config of this program: it lacks")
    check(program_here(name, *place, *arguments), sentence, tmp_path / "w")


@pytest.mark.parametrize(
    "program, line, words",
    [
        (
            "sweep",
            "planner.elits, config.count = 2, 7",
            "has fields that this program does not know: count, planner.elits",
        ),
        ("sweep", "planner.samples = '64'", "planner.samples must be a whole number, not '64'"),
        ("sweep", "planner.samples = 8.5", "planner.samples must be a whole number, not 8.5"),
        ("sweep", "references = 1", "references must be true or false, not 1"),
        ("quantize", "dataset = None", "dataset must be text, not None"),
    ],
)
def test_a_config_file_of_ones_own(tmp_path, monkeypatch, program, line, words):
    """Is held to the fields and kinds of ours; a field that nothing reads would be a setting without effect."""
    monkeypatch.chdir(ROOT)
    file = tmp_path / "own.py"
    ours = {"sweep": "wall", "quantize": "quantize"}[program]
    file.write_text(
        f"from configs import {ours}\ndef get_config():\n    config = {ours}.get_config('small').unlock()\n"
        f"    with config.ignore_type():\n        config.{line}\n    return config\n"
    )
    joint = " " if words.startswith("has") else ": "
    check(program_here(program, f"--config={file}", f"--workdir={tmp_path / 'w'}"), f"--config={file}{joint}{words}")


@pytest.fixture
def sweep_of(tmp_path, monkeypatch):
    """Runs a sweep of a checkpoint into a folder."""
    monkeypatch.chdir(ROOT)

    def run(model, folder=tmp_path / "w", *arguments):
        return program_here("sweep", f"--config.checkpoint={model}", f"--workdir={folder}", *arguments)

    return run


def test_a_damaged_checkpoint(checkpoint, tmp_path, sweep_of):
    model = shutil.copytree(checkpoint, tmp_path / "model")
    name = sorted(native._digests(model))[0]
    (model / name).write_bytes(b"")
    check(sweep_of(model), f"model checkpoint {model}: its file {name} is damaged", tmp_path / "w")
    (model / name).unlink()
    check(sweep_of(model), f"model checkpoint {model}: its file {name} is missing", tmp_path / "w")


def test_weights_that_are_nan(checkpoint, tmp_path, sweep_of):
    """As a training run leaves them that did not look; nothing of ours saves such."""
    model = shutil.copytree(checkpoint, tmp_path / "model")
    params = native.load_model(model).params
    params["predictor"]["pos_embedding"] = np.full_like(params["predictor"]["pos_embedding"], np.nan)
    shutil.rmtree(model / native._TREE)
    save_tree(model / native._TREE, packed.to_arrays(quant.pack(params, {})))
    description = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps({**description, "files": native._digests(model)}))
    check(
        sweep_of(model), f"model {model}: parameter predictor/pos_embedding has NaN or infinite values", tmp_path / "w"
    )


def test_a_workdir_that_cannot_be_written(checkpoint, tmp_path, sweep_of, monkeypatch):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file"
    check(sweep_of(checkpoint, folder), f"workdir {folder} cannot be created: Not a directory")
    # Whoever runs tests may be root, who can write everywhere.
    folder, writable = tmp_path / "theirs", os.access
    monkeypatch.setattr(os, "access", lambda path, mode: folder not in path.parents and writable(path, mode))
    check(sweep_of(checkpoint, folder), f"workdir {folder} is not writable")
    assert not (folder / "config.json").exists()


def test_results_of_another_config(checkpoint, tmp_path, sweep_of):
    config = wall.get_config("small").to_dict() | {"checkpoint": str(checkpoint)}
    sweeps.open_folder(sweeps.prepare(sweeps.check_settings(config), config), tmp_path / "w")
    before = (tmp_path / "w" / "config.json").read_bytes()
    check(
        sweep_of(checkpoint, tmp_path / "w", "--config.planner.alpha=0.5"),
        f"workdir {tmp_path / 'w'} holds results of another config: rows.planner.alpha is 1.0 there and 0.5 now; "
        "choose another --workdir",
    )
    assert (tmp_path / "w" / "config.json").read_bytes() == before


@pytest.mark.parametrize("name, lock", [("sweep", "journal/.lock-0"), ("train", ".lock")])
def test_a_folder_in_use_keeps_its_config(tmp_path, monkeypatch, name, lock):
    """A run that comes too late may not say what the results of the other one mean."""
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "w"
    (folder / lock).parent.mkdir(parents=True)
    with io.locked(folder, lock):
        check(program_here(name, f"--workdir={folder}"), f"workdir {folder} is in use by another run")
    assert not (folder / "config.json").exists()


@pytest.mark.parametrize(
    "text, mode, sentence",
    [
        ("def get_config(:\n", "", "line 1 of {file}: invalid syntax"),
        ("from my_simulator import PushBlock\n", "", "No module named 'my_simulator'"),
        ("x = 1\n", "", "{file} has no function get_config"),
        ("def get_config():\n  return {}\n", ":small", "{file} has no modes"),
        ("def get_config(mode):\n  return {}\n", "", "{file} needs a mode: FILE.py:MODE"),
        ("def get_config():\n  return {}\n", "", "get_config of {file} returns no ConfigDict"),
    ],
)
def test_a_file_that_is_no_config_file(tmp_path, text, mode, sentence):
    file = tmp_path / "mine.py"
    file.write_text(text)
    run = program_here("sweep", f"--config={file}{mode}", f"--workdir={tmp_path / 'w'}")
    check(run, f"--config={file}{mode}: {sentence.format(file=file)}", tmp_path / "w")


@pytest.mark.parametrize(
    "needed, config",
    [
        (fields.SWEEP, wall.get_config()),
        (fields.QUANTIZE, quantize.get_config()),
        (fields.TRAIN, train_wall.get_config()),
        *((fields.BENCH, bench.get_config(mode)) for mode in bench.MODES),
    ],
)
def test_configs_have_the_fields_of_their_programs(needed, config):
    def names(group, before=""):
        for name, value in group.items():
            yield before + name
            if isinstance(value, ConfigDict):
                yield from names(value, f"{before}{name}.")

    assert set(needed) <= set(names(config))


def test_a_sweep_reads_no_other_field_than_it_says(config):
    """Without one that is not among them it runs; those that are, `cli.run` asks for."""

    def without(group, path):
        first, _, rest = path.partition(".")
        kept = {name: value for name, value in group.items() if name != first or rest}
        return kept | {first: without(group[first], rest)} if rest else kept

    names = [name for name in _leaves(config) if name not in fields.SWEEP]
    assert names == ["env.door_y", "env.wall_x"]
    for name in names:
        sweeps.check_settings(without(config, name))


def _leaves(group, before=""):
    for name, value in group.items():
        yield from _leaves(value, f"{before}{name}.") if isinstance(value, dict) else [before + name]
