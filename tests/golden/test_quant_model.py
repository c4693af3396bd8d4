"""Whole quantized networks against quant_model.npz: calibrated as the released planner does it."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests.golden.quantized_network import OUTPUTS, RELEASED_OBSERVER, check_outputs, our_site
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


@functools.partial(jax.jit, static_argnums=(2, 3))
def weight_grids(kernel, bits, spec, grid_fn):
    """The grids of all groups of a kernel."""
    return grid_fn(quant.to_groups(kernel, spec), bits)


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
    """Variables of a recorded case, and the spec of its weights."""
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
    return quant.quantize(transform, network.params, statistics), spec


@pytest.mark.slow
def test_released_transforms(recording, network, compared):
    for case, settings in cases(recording).items():
        variables, _ = quantize(network, settings)
        check_outputs(recording, case, network.run(variables), compared)


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
        variables, spec = quantize(network, settings)
        kernels = paths.named_leaves(network.params)
        quantizers = paths.named_leaves(variables["quant"], is_leaf=lambda node: isinstance(node, quant.Quantizer))
        for recorded in {key.split("/")[0] for key in recording.under(f"{case}/site/")}:
            site, is_activation = our_site(recorded)
            if is_activation:
                grid = quantizers[f"{site}/input"]
            else:
                grid_fn = {"minmax": quant.absmax_grid, "omse": quant.omse_grid}[settings["wm"]]
                grid = weight_grids(kernels[f"{site}/kernel"], spec.bits, dataclasses.replace(spec, bits=None), grid_fn)
            key = f"{case}/site/{recorded}"
            scale = recording[f"{key}/scale"].ravel()
            # Activation ranges carry the rounding of the float network in front of them.
            tolerance = 1e-5 if is_activation else 1e-6
            np.testing.assert_allclose(np.ravel(grid.scale), scale, rtol=tolerance, err_msg=key)
            if f"{key}/zero_point" in recording:
                np.testing.assert_array_equal(np.ravel(grid.zero_point), recording[f"{key}/zero_point"].ravel(), key)
            compared(scale.size)


def test_every_recorded_site_is_one_of_ours(recording, network, compared):
    ours = {site for sites in quantized.sites(network.config).values() for site in sites}
    weights, activations = set(), set()
    for name, kind in zip(recording["site_names"].tolist(), recording["site_kinds"].tolist(), strict=True):
        site, is_activation = our_site(name)
        assert is_activation == (kind == "a"), name
        (activations if is_activation else weights).add(site)
    assert weights == activations == ours
    compared(len(recording["site_names"]))
