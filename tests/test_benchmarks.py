"""What the benchmarks of experiments/bench.py refuse, and what the comparison with Qwix states of it."""

import sys

import jax
import numpy as np
import pytest

from configs import bench
from experiments.benchmarks import against_qwix, methods, planning, reader
from experiments.benchmarks.common import in_a_process, peak_bytes
from tests.models.tiny import random_model
from wmq_jax.models import PredictorConfig, ViTConfig, WorldModelConfig

pytestmark = pytest.mark.quick

METHODS = dict(size="tiny", methods="rtn", bits="w4")


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"size": "huge"}, "--config.size must be one of official, tiny, not 'huge'"),
        ({"methods": "rtn magic"}, "variant 'magic:w4': there is no method 'magic'"),
        ({"bits": "w1"}, "variant 'rtn:w1': bits must be"),
    ],
)
def test_what_cannot_be_timed_is_named(setting, message):
    with pytest.raises(ValueError, match=message):
        methods.sections({**METHODS, **setting})


def test_random_statistics_are_those_that_the_methods_need():
    config = methods.model_config("tiny")
    params = methods.random_params(config)
    statistics = methods.random_statistics(config, params, tokens=4, sequences=3)
    sample = methods.quant.block_statistics(statistics)["predictor/layers_0"]
    assert sample.inputs.shape == (3, config.tokens_per_frame, config.predictor_dim) and sample.mask().all()
    methods.quant.check_statistics(methods.quant.site_statistics(statistics))


def test_the_reader_is_measured_on_all_that_a_checkpoint_has():
    """Every tensor is loaded, in a process whose memory is its own."""
    with pytest.raises(ValueError, match="--config.size must be one of official, tiny, not 'huge'"):
        reader.sections({"size": "huge", "repeats": 1})
    (measure,) = reader.sections({"size": "tiny", "repeats": 1}).values()
    found = measure()
    assert found["tensors"] > 50 and found["seconds"] < 60
    assert found["peak memory, MB"] >= found["memory before, MB"] > found["file MB"]


@pytest.mark.parametrize("mode, size", [("small", "bundled"), ("gpu", "bundled"), ("official", "official")])
def test_what_planning_is_measured_on_is_a_field(mode, size):
    assert bench.get_config(mode).size == size
    with pytest.raises(ValueError, match="--config.size must be one of bundled, official, tiny, not 'huge'"):
        planning.sections(bench.get_config(mode).to_dict() | {"size": "huge"})


@pytest.mark.slow
def test_every_section_of_planning_gives_figures():
    """Also where devices do not divide the episodes: a quarter of five is one, and there are two devices.

    The wider model is left out: its section is the growth of the first one.
    """
    small = dict(size="tiny", repeats=1, loop_variants=2, variants=(1,), cells=5, tiles=(1,), wide=0)
    small |= dict(rollout=dict(samples=4, horizon=2), planner=dict(samples=4, elites=2, steps=1), matmul=64)
    assert jax.local_device_count() == 2
    parts = planning.sections(bench.get_config("small").to_dict() | small)
    assert len(parts) == 7
    for title, measure in parts.items():
        figures = measure()
        assert figures and all(np.isfinite(value) and value >= 0 for value in figures.values()), (title, figures)


def test_a_fresh_process_has_not_the_memory_of_this_one():
    ballast = b"x" * (300 << 20)
    assert in_a_process(peak_bytes) < len(ballast) < peak_bytes()


def test_without_qwix_one_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(ValueError, match="the comparison needs Qwix: pip install"):
        against_qwix.sections({"inputs": 2})


@pytest.fixture(scope="module")
def comparison():
    pytest.importorskip("qwix")
    config = WorldModelConfig(
        encoder=ViTConfig(width=8, depth=1, heads=2, mlp_dim=16, table_grid=2),
        predictor=PredictorConfig(depth=1, heads=2, dim_head=4, mlp_dim=16),
        decoder=None,
        proprio_dim=2,
        action_dim=4,
        image_size=32,
        proprio_emb_dim=4,
        action_emb_dim=4,
    )
    model, variables = random_model(config)
    keys = jax.random.split(jax.random.key(0), 3)
    image = jax.random.uniform(keys[0], (3, 1, 32, 32, 3), minval=-1)
    batch = (image, jax.random.normal(keys[1], (3, 1, 2)), jax.random.normal(keys[2], (3, 2, 4)))
    return against_qwix.Comparison(model, variables["params"], batch, batch)


def test_qwix_has_our_scale_and_its_smoothquant_leaves_activations_alone(comparison):
    found = against_qwix.conventions(comparison)
    for bits in (4, 8):
        assert found[f"int{bits}: largest scale over absmax / (2^(b-1) - 0.5)"] == pytest.approx(1, abs=1e-6)
        assert found[f"int{bits}: smallest"] == pytest.approx(1, abs=1e-6)
        assert found[f"int{bits}: weights in another code than ours, all others"] == 0
    rounding = {method: found[f"{method}: roundings in a call at w8a8-token"] for method in against_qwix.METHODS}
    assert rounding["smoothquant"] == 0 < rounding["rtn"]


@pytest.mark.parametrize("method", against_qwix.METHODS)
def test_both_sides_quantize_the_same_layers(comparison, method):
    """At 8 bits either is near the float model, and neither is it."""
    setting = against_qwix.Setting(8)
    run, variables = against_qwix.qwix_model(comparison, method, setting)
    theirs = comparison.error(against_qwix.imagined(run, variables, comparison.held_out))
    assert 0 < theirs < 0.05 and 0 < comparison.error(against_qwix.ours(comparison, method, setting)) < 0.05
