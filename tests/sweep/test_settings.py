"""Bad settings are one sentence, before anything is compiled."""

import dataclasses
import re
import types

import pytest

from wmq_jax import sweep as sweeps
from wmq_jax.cli import load_config
from wmq_jax.envs import make_env
from wmq_jax.envs.manifest import OFFSETS
from wmq_jax.quantized import MethodSettings
from wmq_jax.runtime import devices
from wmq_jax.sweep import check_settings, make_manifest

BAD = [
    ("planner.samples", 1, "planner samples must be 2..1000000, not 1"),
    ("planner.elites", 1, "planner elites must be 2..12 (the samples), not 1"),
    ("planner.elites", 13, "planner elites must be 2..12 (the samples), not 13"),
    ("planner.steps", 0, "planner steps must be 1..10000, not 0"),
    ("planner.steps", 2**40, "planner steps must be 1..10000, not 1099511627776"),
    ("planner.init_std", 0.0, "planner init_std must be more than 0 and at most 1000, not 0.0"),
    ("planner.init_std", 1e30, "planner init_std must be more than 0 and at most 1000, not 1e+30"),
    ("planner.learning_rate", -1.0, "planner learning_rate must be more than 0 and at most 1000000, not -1.0"),
    ("planner.learning_rate", 0.0, "planner learning_rate must be more than 0 and at most 1000000, not 0.0"),
    ("planner.step_noise", -1.0, "planner step_noise must be 0..1000, not -1.0"),
    ("planner.iterations", 0, "planner iterations must be 1..1000, not 0"),
    ("planner.iterations", 2**31, "planner iterations must be 1..1000, not 2147483648"),
    ("planner.executed", 9, "planner.executed must be 0 (all) to the shortest horizon, 2, not 9"),
    ("planner.check_every", -1, "planner check_every must be 0..10000, not -1"),
    ("planner.check_every", 9, "planner.check_every must be 0 (never) to planner.steps, 3, not 9"),
    ("planner.check_every", 2**31, "planner check_every must be 0..10000, not 2147483648"),
    ("planner.horizons", "0", "planner.horizons must be 1..100, not 0"),
    ("planner.horizons", "2 99999999999", "planner.horizons must be 1..100, not 99999999999"),
    ("planner.horizons", "3 x", "planner.horizons must be whole numbers separated by spaces, not '3 x'"),
    ("planner.horizons", "3 3", "planner.horizons names a number twice: '3 3'"),
    ("planner.seeds", "", "planner.seeds must be whole numbers separated by spaces, not ''"),
    ("planner.optimizer", "sgd", "planner.optimizer 'sgd' is not one of cem, gd"),
    ("planner.objective", "first", "objective mode 'first' is not one of last, all"),
    ("methods.smoothquant_alpha", 2.0, "methods.smoothquant_alpha must be a number of 0 to 1, not 2.0"),
    ("planner.alpha", -1.0, "objective alpha must be 0..1000000, not -1.0"),
    ("planner.base", 0.0, "objective base must be more than 0 and at most 1000, not 0.0"),
    ("episodes.count", 0, "episodes.count must be 1..100000, not 0"),
    ("calibration.episodes", 0, "calibration.episodes must be 1..100000, not 0"),
    ("calibration.horizon", 2**31, "calibration.horizon must be 1..100, not 2147483648"),
    ("calibration.iterations", 2**40, "calibration.iterations must be 1..1000, not 1099511627776"),
    ("calibration.samples", 2**31, "calibration.samples must be 1..10000, not 2147483648"),
    ("engine.tile", -1, "engine.tile must be 0..1000000, not -1"),
    ("engine.tiles_per_call", 0, "engine.tiles_per_call must be 1..65536, not 0"),
    ("engine.tiles_per_call", 2**31, "engine.tiles_per_call must be 1..65536, not 2147483648"),
    ("engine.devices", 100000, "engine.devices must be 0..65536, not 100000"),
    ("pictures", -1, "pictures must be 0..1000, not -1"),
    ("variants", "w4 w4", "variants names W4 twice"),
    ("variants", " ", "variants must be one or more separated by spaces, such as 'w8 w4g32', not ''"),
    *(
        ("name", name, f"name must be letters, digits, '.', '_' and '-', the first of them no '.', not '{name}'")
        for name in ("", "/etc/passwd", "../..", ".git", "a b")
    ),
    ("planner.seeds", "2147483648", "planner.seeds must be 0..2147483647, not 2147483648"),
    ("calibration.seed", 2**31, "calibration.seed must be 0..2147483647, not 2147483648"),
    ("planner.alpha", float("inf"), "planner.alpha must be a finite number, not inf"),
    ("planner.step_noise", float("nan"), "planner.step_noise must be a finite number, not nan"),
]


def change(config, path, value):
    *groups, field = path.split(".")
    for group in groups:
        config = config[group]
    assert field in config
    config[field] = value


@pytest.mark.parametrize("path, value, sentence", BAD, ids=[f"{p}={v}" for p, v, _ in BAD])
def test_bad_values(config, path, value, sentence):
    change(config, path, value)
    with pytest.raises(ValueError) as caught:
        check_settings(config)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("spec", ["w1", "w16a1", "w4g0", "w", "x4", "encoder=", "decoder=w4", "awful:w4", "w4a8-row"])
def test_bad_variants_are_quoted(config, spec):
    change(config, "variants", f"w8 {spec}")
    with pytest.raises(ValueError, match=f"^variant '{spec}': "):
        check_settings(config)


def test_gradient_descent_does_not_ask_the_simulator(config):
    config["planner"] |= dict(optimizer="gd", check_every=1)
    with pytest.raises(ValueError, match="planner.check_every is a setting of cem; gd does not ask the simulator"):
        check_settings(config)


def test_a_noise_floor_needs_another_tile(prepare):
    with pytest.raises(ValueError, match="engine.noise_floor_tile must differ from the tile, which is 1"):
        prepare(engine__noise_floor_tile=1)
    with pytest.raises(ValueError, match="lower --config.engine.tile"):
        prepare(engine__noise_floor_tile=10**6)


@pytest.mark.parametrize(
    "process, processes, sentence",
    [
        (2, 2, "process must be 0..1 (of 2), not 2"),
        (-1, 2, "process must be 0..1 (of 2), not -1"),
        (0, 0, "processes must be 1 or more, not 0"),
    ],
)
def test_a_process_is_one_of_its_processes(prepare, process, processes, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        prepare(process=process, processes=processes)


def test_full_precision_comes_first(config):
    change(config, "variants", "w4 fp w8")
    assert [spec.name for spec in check_settings(config).variants] == ["FP32", "W4", "W8"]
    change(config, "variants", "w4")
    assert [spec.name for spec in check_settings(config).variants] == ["FP32", "W4"]


@pytest.mark.parametrize(
    "field, value, sentence",
    [
        ("devices", 5, "engine.devices must be 0..2 (what this process has), not 5"),
        (
            "tile",
            10**6,
            "lower --config.engine.tile, --config.engine.tiles_per_call, samples, steps or horizons",
        ),
    ],
)
def test_what_the_machine_does_not_have(config, field, value, sentence):
    config["engine"][field] = value
    with pytest.raises(ValueError) as caught:
        sweeps.prepare(check_settings(config), config)
    assert sentence in str(caught.value)


def test_manifests_are_disjoint_and_official():
    env = make_env("wall")
    manifests = {purpose: make_manifest(env, purpose, 200, 99) for purpose in OFFSETS}
    seeds = [set(m.seeds.tolist()) for m in manifests.values()]
    assert len(set.union(*seeds)) == sum(map(len, seeds)) == 600
    assert manifests["evaluation"].seeds[:3].tolist() == [1, 100, 199]
    assert manifests["calibration"].seeds[:3].tolist() == [2, 101, 200]
    init, goal = env.goal_states(100)
    assert (manifests["evaluation"].init[1] == init).all() and (manifests["evaluation"].goal[1] == goal).all()
    longer = make_manifest(env, "evaluation", 300, 99)
    assert (longer.init[:200] == manifests["evaluation"].init).all(), "more episodes must not change the first ones"


def test_devices_are_at_most_the_cores(monkeypatch):
    """More would be threads that XLA cannot start; how many there are, the mesh tells afterwards."""
    monkeypatch.setattr(devices, "available_cores", lambda: 2)
    set_to = {}
    monkeypatch.setattr(devices.jax.config, "update", set_to.__setitem__)
    for asked, given in ((0, 2), (1, 1), (2, 2), (100000, 2)):
        devices.configure(asked)
        assert set_to == {"jax_num_cpu_devices": given}


@pytest.mark.parametrize(("there", "expected"), [(None, ["highest"]), ("default", []), ("bfloat16", [])])
def test_matrix_products_are_of_full_float32_unless_it_is_set(monkeypatch, there, expected):
    set_to = []
    update = lambda name, value: set_to.append(value) if name == "jax_default_matmul_precision" else None
    config = types.SimpleNamespace(jax_default_matmul_precision=there, update=update)
    monkeypatch.setattr(devices, "jax", types.SimpleNamespace(config=config))
    devices.configure()
    assert set_to == expected


@pytest.mark.parametrize("seed", [-5, 0, 1, 3])
def test_families_of_seeds_that_would_mix(seed):
    with pytest.raises(
        ValueError, match="would mix evaluation, calibration and development episodes; choose 4 or more"
    ):
        make_manifest(make_env("wall"), "evaluation", 10, seed)


def test_seeds_out_of_range():
    # Of these, 64-bit integers wrap around to 1.
    for seed in (2**31 - 2, 2**62, 2**70):
        with pytest.raises(ValueError, match="leaves the seeds 0..2147483647"):
            make_manifest(make_env("wall"), "evaluation", 5, seed)


def test_the_comparison_of_methods_covers_the_study():
    """Every method at its bits, with and without groups, at both granularities of activations, and modules apart."""
    settings = check_settings(load_config("configs/wall.py:methods").to_dict())
    variants = settings.variants
    assert len({variant.text for variant in variants}) == len(variants) == 91
    whole = [variant.predictor for variant in variants if variant.encoder == variant.predictor]
    for method in ("rtn", "omse", "smoothquant", "awq", "omniquant"):
        of = [spec for spec in whole if spec.method == method]
        assert {(spec.weight_bits, spec.group_size) for spec in of} >= {
            (b, g) for b in (3, 4, 6, 8) for g in (None, 32)
        }
        assert {spec.act_granularity for spec in of} == {None, "tensor", "token"}
        assert any(v.encoder.method == method and v.predictor.method is None for v in variants)
        assert any(v.predictor.method == method and v.encoder.method is None for v in variants)


def test_configs_state_the_defaults_of_the_methods():
    config = load_config("configs/wall.py:small").to_dict()
    assert config["methods"] == dataclasses.asdict(MethodSettings())
