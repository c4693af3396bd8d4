"""Quantized checkpoints: the sweep's variants bit for bit, small on disk, with figures that can be recounted."""

import copy
import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import quantize
from tests.data.official_files import make_wall
from tests.sweep.conftest import TINY
from wmq_jax import quant, quantized
from wmq_jax import sweep as sweeps
from wmq_jax.checkpoints.native import load_model, params_sha256, save_model
from wmq_jax.data import open_dataset
from wmq_jax.models import WorldModel
from wmq_jax.quant import paths
from wmq_jax.sweep.preparation import planning_params
from wmq_jax.sweep.run import build_engine
from wmq_jax.sweep.statistics_file import load_statistics, save_statistics

pytestmark = [pytest.mark.slow, pytest.mark.quick]

# Every method, both granularities of activations, groups that do not divide a width, modules that differ.
VARIANTS = (
    "awq:w3g5",
    "encoder=omse:w5a8-tensor,predictor=omniquant:w4a8-token",
    "smoothquant:w4g8a8-tensor",
    "predictor=w4",
)
MIXED = VARIANTS[1]


@pytest.fixture(scope="module")
def make_config(base_config):
    """``make_config(variant, **changes)``: a resolved config on the tiny checkpoint."""

    def make(variant, **changes):
        config = quantize.get_config("small").to_dict()
        same = ("checkpoint", "planner", "calibration", "engine")
        config |= copy.deepcopy({name: base_config[name] for name in same})
        return {**config, "variant": variant, "held_out": 3, **changes}

    return make


@pytest.fixture(scope="module")
def done(make_config, tmp_path_factory):
    """variant -> (job, folder, summary); all but the first take the first one's statistics."""
    finished = {}

    def get(variant):
        if variant not in finished:
            given = [finished[VARIANTS[0]][1] / "statistics.npz"] if finished else []
            job = sweeps.prepare_quantization(make_config(variant), given)
            folder = sweeps.open_workdir(job, tmp_path_factory.mktemp("quantized"))
            finished[variant] = job, folder, sweeps.run_quantization(job, folder, log=lambda line: None)
        return finished[variant]

    get(VARIANTS[0])
    return get


@pytest.fixture(scope="module")
def table(prepare):
    """The stacked table of a sweep with these variants."""
    return build_engine(prepare(variants=" ".join(["fp", *VARIANTS]))).table


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_checkpoint_is_the_variant_of_a_sweep_bit_for_bit(done, table, variant):
    job, folder, _ = done(variant)
    model = load_model(folder / "model", quantized=True)
    row = jax.tree.map(lambda leaf: leaf[1 + VARIANTS.index(variant)], table)
    ours, theirs = (paths.named_leaves(tree) for tree in (planning_params(model.params), row["params"]))
    # A sweep with an OmniQuant variant gives every variant a bias, of zeros here.
    for name in theirs.keys() - ours.keys():
        assert name.endswith("to_qkv/bias") and not np.asarray(theirs[name]).any()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    saved, wanted = paths.named_leaves(model.quant), paths.named_leaves(row["quant"])
    on = [name for name, value in wanted.items() if name.endswith("/mode") and value != quant.OFF]
    assert sorted(name for name in saved if name.endswith("/mode")) == sorted(on)
    for name in saved:
        np.testing.assert_array_equal(saved[name], wanted[name], err_msg=name)
    assert model.normalizer.to_dict() == job.sweep.checkpoint.normalizer.to_dict()
    assert model.metadata["variant"] == job.spec.text


def test_a_loaded_checkpoint_runs_with_its_quantizers(done, table):
    _, folder, _ = done(MIXED)
    model = load_model(folder / "model", quantized=True)
    keys = jax.random.split(jax.random.key(0), 3)
    visual = jax.random.uniform(keys[0], (1, 1, 65, 65, 3), minval=-1)
    inputs = visual, jax.random.normal(keys[1], (1, 1, 2)), jax.random.normal(keys[2], (1, 1, 10))
    apply = quantized.quantized_apply(WorldModel(model.config))
    run = jax.jit(lambda variables, *inputs: apply(variables, *inputs, method="rollout").visual)
    got, plain = run(model.variables, *inputs), run({"params": model.params}, *inputs)
    row = jax.tree.map(lambda leaf: leaf[1 + VARIANTS.index(MIXED)], table)
    np.testing.assert_allclose(got, run(row, *inputs), atol=1e-5)
    assert np.abs(np.asarray(got - plain)).max() > 1e-3, "activations are quantized"


@pytest.mark.parametrize("variant", VARIANTS)
def test_bits_on_disk(done, variant):
    """What is stored is what is counted, and that is the sweep's size."""
    job, folder, summary = done(variant)
    params = job.sweep.checkpoint.params
    counted = quantized.size_bytes(job.sweep.checkpoint.config, planning_params(params), job.spec)
    assert summary["bytes"]["planning"]["bytes"] == counted
    description = json.loads((folder / "model" / "model.json").read_text())
    kernels = paths.named_leaves(params)
    for name, kernel in description["packed"].items():
        (entry,) = (e for e in summary["sites"] if f"{e['site']}/kernel" == name)
        rows, groups, _ = quant.group_shape(kernels[name].shape, quant.WeightSpec(None, entry["group_size"]))
        assert kernel["bits"] == entry["bits"]
        assert entry["bytes"] == -(-kernels[name].size * entry["bits"] // 8) + 4 * rows * groups
    # Files take more: Orbax describes every array, once again each time that it flushes, as the machine's load has it.
    stored = ocp.StandardCheckpointer().metadata(folder / "model" / "params").item_metadata
    arrays = jax.tree.leaves(stored, is_leaf=lambda node: hasattr(node, "shape"))
    on_disk = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in arrays)
    static = sum("scale" in (entry["activations"] or {}) for entry in summary["sites"])
    assert on_disk + 8 * static == summary["bytes"]["total"]["bytes"], "model.json has the activation quantizers"
    assert summary["bytes"]["total"]["float_bytes"] == sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def test_figures_of_sites_recounted(done):
    job, folder, summary = done(MIXED)
    before, after = (
        paths.named_leaves(tree) for tree in (job.sweep.checkpoint.params, load_model(folder / "model", True).params)
    )
    sites = {entry["site"]: entry for entry in summary["sites"]}
    assert list(sites) == [site for names in quantized.sites(job.sweep.checkpoint.config).values() for site in names]
    for site in quantized.sites(job.sweep.checkpoint.config)["encoder"]:
        exact, rounded = (np.asarray(tree[f"{site}/kernel"], np.float64) for tree in (before, after))
        sqnr = 10 * np.log10((exact**2).sum() / ((rounded - exact) ** 2).sum())
        assert sites[site]["sqnr_db"] == pytest.approx(sqnr, abs=1e-3)
        assert sites[site]["activations"]["granularity"] == "tensor" and sites[site]["activations"]["scale"] > 0
    assert all(
        sites[site]["activations"] == {"bits": 8, "granularity": "token"}
        for site in quantized.sites(job.sweep.checkpoint.config)["predictor"]
    )


def test_errors_of_blocks_recounted(done):
    """The error of a block alone, input by input, from the loaded checkpoint; no method has seen the inputs."""
    job, folder, summary = done(VARIANTS[0])
    model = load_model(folder / "model", quantized=True)
    statistics = load_statistics([folder / "statistics.npz"]).parts
    for stack in quantized.topology(model.config).stacks:
        (path, block), *_ = stack
        sample = quant.block_statistics(statistics["held_out"])[path]
        own = quant.block_statistics(statistics["calibration"])[path]
        assert not any((one == other).all() for one in own.inputs for other in sample.inputs)
        outputs = [
            np.asarray(block.apply(paths.subtree(params, path), sample.inputs), np.float64)
            for params in (job.sweep.checkpoint.params, model.params)
        ]
        axes = tuple(range(1, outputs[0].ndim))
        errors = ((outputs[1] - outputs[0]) ** 2).sum(axes) / (outputs[0] ** 2).sum(axes)
        (entry,) = (entry for entry in summary["blocks"] if entry["block"] == path)
        assert entry["error"]["mean"] == pytest.approx(np.exp(np.log(errors).mean()), rel=1e-3)
        assert entry["inputs"] == len(errors) == 3
        for kind in ("error", "rtn", "ratio"):
            assert entry[kind]["low"] <= entry[kind]["mean"] <= entry[kind]["high"]
        assert entry["ratio"]["mean"] == pytest.approx(entry["error"]["mean"] / entry["rtn"]["mean"], rel=1e-3)


def test_searches_lower_the_error_of_every_block_of_the_bundled_model(tmp_path):
    """At four bits against plain rounding, on inputs of episodes that they have not seen: the claim of the notes."""
    statistics = []
    for method in ("awq", "omniquant"):
        config = quantize.get_config("small").to_dict() | {"variant": f"{method}:w4", "held_out": 8}
        config["calibration"] |= dict(episodes=2, iterations=2)
        job = sweeps.prepare_quantization(config, statistics)
        folder = sweeps.open_workdir(job, tmp_path / method)
        summary = sweeps.run_quantization(job, folder, log=lambda line: None)
        statistics = statistics or [folder / "statistics.npz"]
        stacks = quantized.topology(job.sweep.checkpoint.config).stacks
        assert [entry["block"] for entry in summary["blocks"]] == [path for stack in stacks for path, _ in stack]
        for entry in summary["blocks"]:
            assert entry["inputs"] == config["held_out"] and entry["ratio"]["high"] < 1, entry


def test_modules_in_full_precision_have_no_figures_of_rounding(done):
    job, _, summary = done("predictor=w4")
    assert {entry["block"].partition("/")[0] for entry in summary["blocks"]} == {"predictor"}
    encoder = [entry for entry in summary["sites"] if entry["site"].startswith("encoder")]
    before = paths.named_leaves(job.sweep.checkpoint.params)
    for entry in (entry for entry in summary["sites"] if entry["site"].startswith("predictor")):
        scales = np.abs(before[f"{entry['site']}/kernel"]).max(0) / 7.5
        assert entry["scale"] == pytest.approx([scales.min(), scales.max()])
    assert all(entry["bits"] is entry["sqnr_db"] is entry["scale"] is None for entry in encoder)
    assert all(entry["ratio"] == {"mean": 1, "low": 1, "high": 1} for entry in summary["blocks"]), "plain rounding"
    text = quantized.format_summary(summary)
    assert "predictor/layers_0/ff/fc2" in text and "planning" in text


def test_a_killed_run_goes_on_and_leaves_the_same(done, make_config, tmp_path, monkeypatch):
    """Killed before the last file: the model is written anew, statistics are taken from the folder."""
    _, first, _ = done(VARIANTS[0])
    job = sweeps.prepare_quantization(make_config(VARIANTS[0]))
    folder = sweeps.open_workdir(job, tmp_path / "again")
    (folder / "statistics.npz").write_bytes((first / "statistics.npz").read_bytes())
    (folder / "model").mkdir()
    (folder / "model" / "model.json").write_text("{")
    log = []
    sweeps.run_quantization(job, folder, log.append)
    assert not any("calibrates" in line for line in log)
    assert (folder / "summary.json").read_bytes() == (first / "summary.json").read_bytes()
    ours, theirs = (load_model(where / "model", quantized=True) for where in (folder, first))
    jax.tree.map(np.testing.assert_array_equal, ours.variables, theirs.variables)
    sweeps.run_quantization(job, folder, log.append)
    assert "all is done" in log[-1]


def test_a_folder_keeps_to_its_config(done, make_config):
    _, folder, _ = done(VARIANTS[0])
    with pytest.raises(
        ValueError, match="holds results of another config: config.variant is 'awq:w3g5' there and 'w4' now"
    ):
        sweeps.open_workdir(sweeps.prepare_quantization(make_config("w4")), folder)


def test_statistics_of_several_runs_merge(done, make_config, tmp_path):
    """Of another seed: other futures of the same episodes, and another draw of what is kept of them."""
    job, folder, _ = done(VARIANTS[0])
    path = folder / "statistics.npz"
    one = load_statistics([path])
    assert one.params_sha256 == params_sha256(job.sweep.checkpoint.params)
    (stream,) = one.streams
    assert stream.seed == 0 and stream.source == "planner door_y=10 name=wall wall_x=32"
    assert [*stream.episodes["calibration"], *stream.episodes["held_out"]] == job.sweep.calibration.seeds.tolist()
    assert len(stream.episodes["held_out"]) == job.held_out
    save_statistics(tmp_path / "again.npz", one)
    assert (tmp_path / "again.npz").read_bytes() == path.read_bytes()

    config = make_config("w4")
    config["calibration"]["seed"] = 1
    other = sweeps.prepare_quantization(config)
    sweeps.run_quantization(other, sweeps.open_workdir(other, tmp_path / "other"), log=lambda line: None)
    merged = load_statistics([path, tmp_path / "other" / "statistics.npz"])
    assert [stream.seed for stream in merged.streams] == [0, 1]
    parts = [one.parts, load_statistics([tmp_path / "other" / "statistics.npz"]).parts, merged.parts]
    a, b, both = (quant.site_statistics(part["calibration"])["encoder/blocks_0/attn/qkv"] for part in parts)
    assert both.count == a.count + b.count and (both.minimum == np.minimum(a.minimum, b.minimum)).all()
    assert not set(a.priority.tolist()) & set(b.priority.tolist()), "places are drawn anew"
    job = sweeps.prepare_quantization(make_config("awq:w4"), [path, tmp_path / "other" / "statistics.npz"])
    assert job.statistics.streams == merged.streams


def test_calibration_on_real_episodes(make_config, tmp_path):
    """The engine is not needed; block errors are of episodes that calibration left."""
    make_wall(tmp_path / "wall_single", side=TINY.image_size, steps=13)
    config = make_config("w8a8-tensor", dataset=str(tmp_path / "wall_single"), calibration_source="dataset")
    training = len(open_dataset(tmp_path / "wall_single").split().train)
    config["calibration"]["episodes"] = training
    with pytest.raises(ValueError, match=f"{training} training episodes, and calibration.episodes takes"):
        sweeps.prepare_quantization(config)
    config["calibration"]["episodes"] = training - 2
    job = sweeps.prepare_quantization(config)
    summary = sweeps.run_quantization(job, sweeps.open_workdir(job, tmp_path / "q"), log=lambda line: None)
    assert summary["blocks"][0]["inputs"] == 2, "one future of each episode that is left"
    assert all(0 < entry["error"]["mean"] < 0.01 for entry in summary["blocks"])


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(variant="fp"), "variant 'fp' leaves nothing to quantize"),
        (dict(variant="w4 w8"), "variant must be one variant, not 'w4 w8'"),
        (dict(variant="nope:w4"), "there is no method 'nope'"),
        (dict(held_out=-1), "held_out must be 0..100000, not -1"),
        (dict(checkpoint="nowhere"), "no model checkpoint at nowhere"),
        (dict(calibration_source="dataset"), "calibration_source dataset needs a data set"),
    ],
)
def test_mistakes_are_named_before_anything_is_computed(make_config, changes, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        sweeps.prepare_quantization({**make_config("w4"), **changes})


def test_statistics_that_do_not_fit_are_named(done, make_config, tmp_path):
    _, folder, _ = done(VARIANTS[0])
    statistics = load_statistics([folder / "statistics.npz"])
    path = tmp_path / "statistics.npz"

    def refused(words, data=None, **changes):
        save_statistics(path, dataclasses.replace(statistics, **changes))
        if data is not None:
            path.write_bytes(data)
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            sweeps.prepare_quantization(make_config("w4"), [path])

    refused("is no statistics file", data=b"nothing")
    refused("have no part 'held_out'", parts={"calibration": statistics.parts["calibration"]})
    refused("are of the model with parameters 0000000.*, but checkpoint .* has", params_sha256="0" * 64)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="there is no statistics file"):
        sweeps.prepare_quantization(make_config("w4"), [path])
    seen = dict(statistics.parts["calibration"])
    narrow = jax.tree.map(lambda leaf: leaf[..., :3] if leaf.ndim else leaf, seen["encoder"])
    refused("have 3 channels, not", parts={**statistics.parts, "calibration": {**seen, "encoder": narrow}})


def test_quantized_checkpoints_are_not_taken_for_others(done, make_config):
    """Their quantizers would be forgotten."""
    _, folder, _ = done(MIXED)
    with pytest.raises(ValueError, match="is quantized; give the one that it was made from"):
        sweeps.prepare_quantization(make_config("w4", checkpoint=str(folder / "model")))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda d: d["packed"].update(strange=d["packed"].popitem()[1]), "packs 'strange', which the configuration"),
        (lambda d: next(iter(d["packed"].values())).update(bits=1), r"its packed '.*' cannot be read \(bits must be"),
        (lambda d: next(iter(d["packed"].values())).update(bits=7), "its parameters do not fit its configuration"),
        (lambda d: next(iter(d["packed"].values())).pop("zero"), "its packed '.*' cannot be read"),
        (lambda d: next(iter(d["quantizers"].values())).pop("scale"), "its quantizer of site '.*' cannot be read"),
        (lambda d: next(iter(d["packed"].values())).update(zero=999), "zero 999 is no code of"),
        (
            lambda d: next(iter(d["quantizers"].values())).update(scale=-1.0),
            "its quantizer of site '.*' has scale -1.0",
        ),
        (lambda d: next(iter(d["quantizers"].values())).update(mode=7), "its quantizer of site '.*' has mode 7"),
        (
            lambda d: next(iter(d["quantizers"].values())).update(qmax=1e9),
            "its quantizer of site '.*' has (scale|zero|qmax)",
        ),
        (lambda d: d.update(packed=[]), "must have the fields"),
    ],
)
def test_damaged_descriptions_are_named(done, tmp_path, change, words):
    _, folder, _ = done(MIXED)
    shutil.copytree(folder / "model", tmp_path / "model")
    description = json.loads((tmp_path / "model" / "model.json").read_text())
    change(description)
    (tmp_path / "model" / "model.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=words):
        load_model(tmp_path / "model", quantized=True)


def test_codes_that_are_not_of_the_parameters_are_not_saved(done, tmp_path):
    job, _, _ = done(VARIANTS[0])
    checkpoint = job.sweep.checkpoint
    codes = quantized.build_variant(checkpoint.config, checkpoint.params, quantized.parse_variant("w4")).codes
    with pytest.raises(ValueError, match="kernel is not what its codes expand to"):
        save_model(tmp_path / "model", checkpoint.config, checkpoint.params, None, {}, codes)
    assert not (tmp_path / "model").exists()
