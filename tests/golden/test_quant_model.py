"""Whole quantized networks against quant_model.npz: calibrated as the released planner does it."""

import jax
import numpy as np
import pytest

from tests.golden.quantized_network import OUTPUTS, RELEASED_OBSERVER, check_outputs, check_weight_sites, our_site
from wmq_jax import quant, quantized
from wmq_jax.quant import paths

DEFAULTS = {"w": 8, "a": 8, "wm": "minmax", "am": "minmax", "mode": "layer_wise", "group": -1, "encoder_quant": True}
OBSERVERS = {
    "minmax": RELEASED_OBSERVER,
    "omse": RELEASED_OBSERVER,
    "ema": quant.ema(),
    "percentile": quant.percentile(),
}


@pytest.fixture(scope="module")
def recording(golden):
    return golden("quant_model.npz")


def cases(recording):
    """Recorded case -> its settings."""
    found = {}
    for name in recording.names():
        if f"{name}/config" not in recording:
            continue
        settings = DEFAULTS | recording.json(f"{name}/config")
        assert set(settings) == set(DEFAULTS), f"nobody accounts for the settings of {name}: {settings}"
        found[name] = settings
    assert found
    return found


def quantize(network, settings):
    """The state after the transforms of a recorded case."""
    config = network.config
    modules = quantized.MODULES if settings["encoder_quant"] else ("predictor",)
    kernels = [rule for module in modules for rule in quantized.site_rules(config, module, "kernel")]
    inputs = [rule for module in modules for rule in quantized.site_rules(config, module)]
    spec = quant.WeightSpec(settings["w"], None if settings["group"] < 0 else settings["group"], "flat")
    if settings["mode"] == "token_wise":
        activations = quant.dynamic_activations(settings["a"], include_zero=False, rules=inputs)
    else:
        range = "omse" if settings["am"] == "omse" else "observed"
        activations = quant.static_activations(settings["a"], include_zero=False, range=range, rules=inputs)
    weights = {"minmax": quant.rtn, "omse": quant.omse}[settings["wm"]](
        spec.bits, spec.group_size, spec.layout, rules=kernels
    )
    transform = quant.chain(network.no_quantizers(), weights, activations)
    statistics = network.calibrated(OBSERVERS[settings["am"]])
    return quant.quantize_state(transform, network.params, statistics)


@pytest.mark.slow
def test_released_transforms(recording, network, compared):
    for case, settings in cases(recording).items():
        state = quantize(network, settings)
        check_outputs(recording, case, network.run({"params": state.params, "quant": state.quant}), compared)


def test_variants_of_one_table(recording, network, compared):
    """The table's sound quantizers give the recorded networks too: every recorded range contains 0."""
    specs = {}
    for case, settings in cases(recording).items():
        if settings["group"] < 0 and {settings["wm"], settings["am"]} == {"minmax"}:
            granularity = (
                {"token_wise": "token", "layer_wise": "tensor"}[settings["mode"]] if settings["a"] < 16 else None
            )
            spec = quantized.ModuleSpec(settings["w"], None, settings["a"], granularity)
            encoder = spec if settings["encoder_quant"] else quantized.ModuleSpec()
            specs[case] = quantized.VariantSpec(encoder, spec)
    statistics = network.calibrated(OBSERVERS["minmax"])
    table = quantized.build_variants(network.config, network.params, list(specs.values()), statistics)
    for row, case in enumerate(specs):
        check_outputs(recording, case, network.run(jax.tree.map(lambda leaf: leaf[row], table)), compared)


def test_full_precision(recording, network, close):
    variables = quant.quantize(network.no_quantizers(), network.params)
    outputs = network.run(variables)
    for name in OUTPUTS:
        output = outputs[name]
        close(output, recording[f"fp32/{name}"], atol=5e-4, rel_l2=1e-4 if name.startswith("roll") else 1e-5, what=name)


@pytest.mark.slow
def test_sites(recording, network, compared):
    """Scales and zero points of every recorded site."""
    for case, settings in cases(recording).items():
        state = quantize(network, settings)
        check_weight_sites(recording, case, state.codes, compared)
        quantizers = paths.named_leaves(state.quant, is_leaf=lambda node: isinstance(node, quant.Quantizer))
        for recorded in recording.names(f"{case}/site/"):
            site, is_activation = our_site(recorded)
            if is_activation:
                grid, key = quantizers[f"{site}/input"], f"{case}/site/{recorded}"
                # Activation ranges carry the rounding of the float network in front of them.
                np.testing.assert_allclose(grid.scale, recording.scalar(f"{key}/scale"), rtol=1e-5, err_msg=key)
                assert grid.zero_point == recording.scalar(f"{key}/zero_point"), key
                compared(2)


def test_every_recorded_site_is_one_of_ours(recording, network, compared):
    ours = {site for sites in quantized.sites(network.config).values() for site in sites}
    weights, activations = set(), set()
    for name, kind in zip(recording["site_names"].tolist(), recording["site_kinds"].tolist(), strict=True):
        site, is_activation = our_site(name)
        assert is_activation == (kind == "a"), name
        (activations if is_activation else weights).add(site)
    assert weights == activations == ours
    compared(len(recording["site_names"]))


def test_everything_recorded_is_compared(recording, check_all_read):
    check_all_read(
        recording,
        {
            ".*/sens/.*": "the reference's own sensitivity, no result",
            "qlayernorm_temp_path": "an error of the released code",
        },
    )
