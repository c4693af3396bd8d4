"""SmoothQuant against smoothquant.npz: statistics, scales, parameters, and the networks quantized afterwards."""

import re

import numpy as np
import pytest

from tests.golden.quantized_network import (
    OUTPUTS,
    RELEASED_OBSERVER,
    check_outputs,
    check_weight_sites,
    our_name,
    our_parameter,
    recorded_quantizers,
    rescaled,
)
from wmq_jax import quant, quantized
from wmq_jax.quant import paths

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def recording(golden):
    return golden("smoothquant.npz")


@pytest.fixture(scope="module")
def statistics(network):
    """What the released script collects: the ordinary rollouts."""
    observe = quantized.observe(network.config, tokens=0, sequences=0)
    return quant.calibrate(observe, {"params": network.params}, network.rollouts()[:-1])


@pytest.fixture(scope="module")
def smoothed(network, statistics):
    """alpha -> state after smoothing."""
    topology = quantized.topology(network.config)

    def smooth(alpha):
        transform = quant.smoothquant(alpha)
        state = quant.State(network.params, {}, statistics)
        transform.check(state, topology)
        return transform.apply(state, topology)

    return {alpha: smooth(alpha) for alpha in (0.5, 0.75)}


def alphas(recording):
    """Recorded strengths: the key and the number."""
    found = {name: float(name.removeprefix("alpha")) for name in recording.names() if name.startswith("alpha")}
    assert found
    return found


def test_channel_maxima(recording, statistics, close):
    seen = quant.site_statistics(statistics)
    for name, recorded in recording.under("act_scales/").items():
        close(seen[our_name(name)].absmax(), recorded, atol=1e-5, rel_l2=1e-6, what=name)


def test_parameters_and_scales(recording, network, smoothed, close):
    before = paths.named_leaves(network.params)
    for key, alpha in alphas(recording).items():
        after = paths.named_leaves(smoothed[alpha].params)
        names = recording.tensors(f"{key}/param/")
        changed = {name for name in after if not np.array_equal(after[name], before[name])}
        assert {our_parameter(name) for name in names} <= changed
        for name in names:
            ours = np.asarray(after[our_parameter(name)])
            ours = ours.T if ours.ndim == 2 else ours
            close(ours, recording.sub(f"{key}/param/{name}"), rel_l2=1e-6, what=name)
        for name, recorded in recording.under(f"{key}/scale/").items():
            kernel = our_parameter(name)
            scale = np.linalg.norm(after[kernel], axis=1) / np.linalg.norm(before[kernel], axis=1)
            close(scale, recorded, rel_l2=3e-6, what=name)


def test_the_float_function_stays(recording, network, smoothed, compared):
    float_outputs = network.run(quant.quantize(network.no_quantizers(), network.params))
    for key, alpha in alphas(recording).items():
        outputs = network.run(quant.quantize(network.no_quantizers(), smoothed[alpha].params))
        for name, recorded in zip(OUTPUTS, recording[f"{key}/preserve_maxdiff"], strict=True):
            difference = np.abs(outputs[name] - float_outputs[name]).max()
            assert difference <= max(10 * recorded, 1e-4), (key, name, difference)
            compared(1)


def test_quantized_networks(recording, network, smoothed, compared):
    """Scales of every site from our own smoothing and calibration; outputs for the recorded scales.

    An ulp of a scale decides about a whole step: the largest weight of every row lies on a rounding boundary.
    """
    for key, alpha in alphas(recording).items():
        statistics = network.calibrate(smoothed[alpha].params, RELEASED_OBSERVER)
        scales = {our_parameter(name): scale for name, scale in recording.under(f"{key}/scale/").items()}
        params = rescaled(network.config, network.params, scales)
        for case in recording.names(f"{key}/"):
            if not re.fullmatch(r"w\d+a\d+(_token)?", case):
                continue
            bits, act_bits = (int(n) for n in re.findall(r"\d+", case))
            activations = quant.dynamic_activations if case.endswith("_token") else quant.static_activations
            transform = quant.chain(
                network.no_quantizers(),
                quant.rtn(bits, rules=network.rules("kernel")),
                activations(act_bits, include_zero=False, rules=network.rules()),
            )
            state = quant.quantize_state(transform, params, statistics)
            check_weight_sites(recording, f"{key}/{case}", state.codes, compared)
            quantizers = recorded_quantizers(recording, f"{key}/{case}", state.quant, compared)
            outputs = network.run({"params": state.params, "quant": quantizers})
            check_outputs(recording, f"{key}/{case}", outputs, compared)


def test_everything_recorded_is_compared(recording, check_all_read):
    check_all_read(
        recording,
        {
            ".*/sens/.*": "the reference's own sensitivity, no result",
            "fp32/.*": "as in quant_model.npz, which is compared",
            ".*/config": "the name of the case says it",
            ".*/log": "what the released program printed",
        },
    )
