"""Whole quantized networks against quant_model.npz: calibrated as the released planner does it, weights quantized once."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.quick_jit import quick_jit
from wmq_jax import quant, quantized
from wmq_jax.models import WorldModel, normalize_image
from wmq_jax.quant import linen, paths

# The released OMSE looks at the values of the last call alone, all of them (there is room enough).
LAST_CALL = quant.channel_ranges(tokens=1000, last_call=True)
OBSERVERS = {
    "minmax": LAST_CALL,
    "omse": LAST_CALL,
    "ema": quant.ema(),
    "percentile": quant.percentile(),
}
DEFAULTS = {"w": 8, "a": 8, "wm": "minmax", "am": "minmax", "mode": "layer_wise", "group": -1, "encoder_quant": True}
OUTPUTS = ("pred_T3", "pred_T1", "enc", "roll_visual", "roll_proprio")
# Rounding flips make the error of a quantized network heavy tailed: bounds on the relative L2 norm and the median.
REL_L2 = {name: 5e-2 if name.startswith("roll") else 1e-2 for name in OUTPUTS}
MEDIAN = 5e-3
INPUT_OF = {
    "qact1": ("attn/qkv", "attn/to_qkv", "mlp/fc1", "ff/fc1"),
    "qact2": ("attn/proj", "attn/to_out", "mlp/fc2", "ff/fc2"),
}


@pytest.fixture(scope="module")
def recording(golden):
    return golden("quant_model.npz")


@pytest.fixture(scope="module")
def inputs(golden):
    return golden("quant_inputs.npz")


def images(u8):
    """Recorded channel-first images as the model takes them."""
    return normalize_image(jnp.asarray(np.moveaxis(u8, -3, -1)))


@pytest.fixture(scope="module")
def network(inputs, recorded_model):
    """(model, params, config) of the recorded weights."""
    config, params = recorded_model(inputs["eval/visual_u8"].shape[-1])
    return WorldModel(config), params, config


@pytest.fixture(scope="module")
def statistics(network, inputs):
    """Observer -> statistics of the released calibration: in the last rollout only the first call of each site counts.

    The first call of a rollout encodes the observed frames and predicts once from them, which is a rollout
    with the actions of the observed frames alone.
    """
    model, params, _ = network
    visual, proprio, actions = (inputs[f"calib/{name}"] for name in ("visual_u8", "proprio", "act"))
    rollouts = [(images(visual[i]), proprio[i], actions[i]) for i in range(len(visual))]
    *ordinary, (last_visual, last_proprio, last_actions) = rollouts
    batches = [*ordinary, (last_visual, last_proprio, last_actions[:, : last_visual.shape[1]])]

    @functools.cache
    def calibrated(observer):
        return quant.calibrate(linen.observe(model, "rollout", observer), {"params": params}, batches)

    return lambda name: calibrated(OBSERVERS[name])


@pytest.fixture(scope="module")
def run(network, inputs):
    """Variables -> the recorded outputs, compiled once for all cases."""
    model, _, config = network
    apply = linen.quantized_apply(model)
    visual, proprio, actions = (inputs[f"eval/{name}"] for name in ("visual_u8", "proprio", "act"))
    z = inputs["eval/z"].reshape(inputs["eval/z"].shape[0], -1, config.tokens_per_frame, config.predictor_dim)

    @quick_jit
    def outputs(variables):
        rollout = apply(variables, images(visual), proprio, actions, method="rollout")
        predict = lambda z: apply(variables, z, method="predict").reshape(z.shape[0], -1, z.shape[-1])
        return {
            "pred_T3": predict(z),
            "pred_T1": predict(z[:, :1]),
            "enc": apply(variables, images(visual), proprio, method="encode_obs").visual[:, 0],
            "roll_visual": rollout.visual[:, -1],
            "roll_proprio": rollout.proprio,
        }

    return outputs


def our_site(name):
    """A recorded site as (our site, whether it is an activation)."""
    name = re.sub(r"encoder\.base_model\.blocks\.(\d+)", r"encoder/blocks_\1", name)
    name = re.sub(r"predictor\.transformer\.layers\.(\d+)", r"predictor/layers_\1", name)
    name = name.replace("to_out.0", "to_out").replace("net.1", "fc1").replace("net.4", "fc2").replace(".", "/")
    block, _, last = name.rpartition("/")
    if last not in INPUT_OF:
        return name, False
    part = block.rpartition("/")[2]
    candidates = [site for site in INPUT_OF[last] if site.startswith(f"{part}/")]
    if part == "attn":
        candidates = [site for site in candidates if site.startswith("attn/to_") == name.startswith("predictor")]
    return f"{block.removesuffix(part)}{candidates[0]}", True


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


def quantize(network, statistics, settings):
    """Variables of a recorded case, and the spec of its weights."""
    _, params, config = network
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
    transform = quant.chain(no_quantizers(config), weights, activations)
    return quant.quantize(transform, params, statistics(settings["am"])), spec


def no_quantizers(config):
    """A quantizer that is off at every site, so that all cases share one compiled program."""
    return quant.dynamic_activations(None, sites=[site for sites in quantized.sites(config).values() for site in sites])


def check_outputs(recording, case, outputs):
    """Compares with the recorded outputs; the number of values compared."""
    values = 0
    for index, name in enumerate(OUTPUTS):
        wanted, output = recording.sub(f"{case}/{name}"), np.asarray(outputs[name])
        difference = np.abs(wanted.of(output).astype(np.float64) - wanted.values)
        relative = np.linalg.norm(difference) / np.linalg.norm(wanted.values)
        assert relative <= REL_L2[name] and np.median(difference) <= MEDIAN, (case, name, relative)
        values += difference.size
        if f"{case}/rel_err_vs_fp32" in recording:  # the damage done by quantization is the recorded one, too
            exact = recording[f"fp32/{name}"]
            damage = np.linalg.norm(output - exact) / np.linalg.norm(exact)
            recorded_damage = recording[f"{case}/rel_err_vs_fp32"][index]
            np.testing.assert_allclose(damage, recorded_damage, rtol=0.05, err_msg=f"{case} {name}")
            values += 1
    return values


def test_released_transforms(recording, network, statistics, run, compared):
    for case, settings in cases(recording).items():
        variables, _ = quantize(network, statistics, settings)
        compared(check_outputs(recording, case, run(variables)))


def test_variants_of_one_table(recording, network, statistics, run, compared):
    """The table's sound quantizers give the recorded networks too: every recorded range contains 0."""
    _, params, config = network
    specs = {}
    for case, settings in cases(recording).items():
        if settings["group"] < 0 and {settings["wm"], settings["am"]} == {"minmax"}:
            granularity = (
                {"token_wise": "token", "layer_wise": "tensor"}[settings["mode"]] if settings["a"] < 16 else None
            )
            spec = quantized.ModuleSpec(settings["w"], None, settings["a"], granularity)
            encoder = spec if settings["encoder_quant"] else quantized.ModuleSpec()
            specs[case] = quantized.VariantSpec(encoder, spec)
    table = quantized.build_variants(config, params, list(specs.values()), statistics("minmax"))
    for row, case in enumerate(specs):
        compared(check_outputs(recording, case, run(jax.tree.map(lambda leaf: leaf[row], table))))


def test_full_precision(recording, network, run, close):
    _, params, config = network
    variables = quant.quantize(no_quantizers(config), params)
    for name, output in run(variables).items():
        close(output, recording[f"fp32/{name}"], atol=5e-4, rel_l2=1e-4 if name.startswith("roll") else 1e-5, what=name)


def test_sites(recording, network, statistics, compared):
    """Scales and zero points of every recorded site."""
    for case, settings in cases(recording).items():
        variables, spec = quantize(network, statistics, settings)
        kernels = paths.named_leaves(network[1])
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
    ours = {site for sites in quantized.sites(network[2]).values() for site in sites}
    weights, activations = set(), set()
    for name, kind in zip(recording["site_names"].tolist(), recording["site_kinds"].tolist(), strict=True):
        site, is_activation = our_site(name)
        assert is_activation == (kind == "a"), name
        (activations if is_activation else weights).add(site)
    assert weights == activations == ours
    compared(len(recording["site_names"]))
