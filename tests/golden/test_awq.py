"""AWQ against awq.npz: scales, clipping, parameters, block outputs, and whole networks, as released."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden.quantized_network import DAMAGE, check_outputs, check_weight_sites, our_name, our_parameter
from wmq_jax import quant, quantized
from wmq_jax.quant import paths
from wmq_jax.quant.awq import search_clip
from wmq_jax.quant.block_inputs import capture
from wmq_jax.quant.equalization import rescale

pytestmark = pytest.mark.quick

# The search alone, as released: rounding is left to the quantizer of the network.
RELEASED = dict(
    layout="flat",
    scaled=".*fc1",
    clip_queries_keys=True,
    search_grid=quant.released_range_grid,
    rounded=False,
    strided=True,
)


@pytest.fixture(scope="module")
def recording(golden):
    return golden("awq.npz")


def released_statistics(recording):
    """The recorded inputs of the first blocks, as calibration would have sampled them."""
    samples = {"encoder/blocks_0": recording["encoder/inps"], "predictor/layers_0": recording["predictor/inps"]}
    named = {}
    for path, x in samples.items():
        length = jnp.full(len(x), x.shape[1], jnp.int32)
        named[f"{path}/block-input"] = quant.Sequences(jnp.int32(1), jnp.asarray(x), length, jnp.ones(len(x)))
    return paths.nest(named)


def spec_of(setting, scaled=".*fc1"):
    """'b4_g64' as bits and the released search, with or without scales."""
    bits, group = (int(n) for n in re.fullmatch(r"b(\d+)_g(-?\d+)", setting).groups())
    weight = quant.WeightSpec(None, None if group < 0 else group, "flat")
    released = {key: value for key, value in RELEASED.items() if key not in ("layout", "scaled")}
    return bits, quant.AWQSpec(weight, scaled, **released)


@pytest.fixture(scope="module")
def stacks(network):
    """Part -> its blocks."""
    topology = quantized.topology(network.config, released_search=True)
    return {part: topology.restricted(part).stacks[0] for part in quantized.MODULES}


@pytest.fixture(scope="module")
def clipped(recording, network, stacks):
    """(part, setting) -> limits of each block and parameters after clipping, for the recorded scales; computed once.

    An ulp of a scale can change what is clipped: a group that is clipped on both sides has its zero point half way
    between two codes.
    """

    @functools.cache
    def found(part, setting):
        bits, spec = spec_of(setting, scaled="nothing")
        x = jnp.asarray(recording[f"{part}/inps"])
        params, limits = network.params, []
        for index, (path, block) in enumerate(stacks[part]):
            (pair,) = (pair for pair in block.pairs if pair.consumers[0].endswith("fc1"))
            scale = jnp.asarray(recording[f"{part}/{setting}/scale/{index}/value"])
            scaled = rescale(paths.subtree(params, path), pair, scale)
            result = quant.awq_block(scaled, x, jnp.ones(x.shape[:2]), bits, block, spec)
            params, x = paths.nest({path: result.params}, params), result.output
            limits.append(result.limits)
        return limits, params

    return found


def settings(recording):
    """(part, setting) of everything recorded for blocks."""
    return [(p, s) for p in ("encoder", "predictor") for s in recording.names(f"{p}/") if re.match("b\\d", s)]


def test_scales_and_losses(recording, network, stacks, compared):
    for part, setting in settings(recording):
        bits, spec = spec_of(setting)
        x = jnp.asarray(recording[f"{part}/inps"])
        for index, (path, block) in enumerate(stacks[part]):
            result = quant.awq_block(paths.subtree(network.params, path), x, jnp.ones(x.shape[:2]), bits, block, spec)
            x = result.output
            key = f"{part}/{setting}/scale/{index}"
            ((consumer, scale),) = result.scales.items()
            (pair,) = (pair for pair in block.pairs if pair.consumers[0] == consumer)
            assert pair.producer == our_name(recording.scalar(f"{key}/prev"))
            assert pair.consumers == tuple(map(our_name, recording[f"{key}/layers"].tolist()))
            np.testing.assert_allclose(scale, recording[f"{key}/value"], rtol=1e-6, err_msg=key)
            compared(scale.size + 2)
            if f"{key}/search_losses_f64" in recording:
                ((_, losses),) = result.losses.items()
                np.testing.assert_allclose(losses, recording[f"{key}/search_losses_f64"], rtol=1e-5, err_msg=key)
                assert np.argmin(losses) == recording[f"{key}/best_step"]
                compared(losses.size + 1)


def test_clipping(recording, clipped, compared):
    for part, setting in settings(recording):
        for index, limits in enumerate(clipped(part, setting)[0]):
            key = f"{part}/{setting}/clip/{index}"
            for name in recording.names(f"{key}/"):
                wanted = recording[f"{key}/{name}"]
                np.testing.assert_allclose(limits[our_name(name)], wanted, rtol=1e-6, err_msg=f"{key} {name}")
                compared(wanted.size)


def test_the_input_of_the_scaled_layer(recording, network, stacks, close):
    for part, ((path, block), *_) in stacks.items():
        (site,) = (site for site in block.sites if site.endswith("fc1"))
        _, inputs = capture(block, paths.subtree(network.params, path), jnp.asarray(recording[f"{part}/inps"][:1]))
        close(inputs[site], recording[f"{part}/feat_fc1_in"], atol=1e-5, what=f"{part} {site}")


def test_clipping_of_one_layer(recording, compared):
    for setting in recording.names("clip_layer/"):
        if setting == "x":
            continue
        x = jnp.asarray(recording["clip_layer/x"])
        bits, spec = spec_of(setting)
        kernel = jnp.asarray(recording[f"clip_layer/{setting}/w"].T)
        limit = search_clip(kernel, x[None], jnp.ones((1, len(x))), bits, spec)
        np.testing.assert_allclose(limit, recording[f"clip_layer/{setting}/max_val"], rtol=1e-6, err_msg=setting)
        compared(limit.size)


def test_parameters(recording, clipped, close):
    for part, setting in settings(recording):
        leaves = paths.named_leaves(clipped(part, setting)[1])
        key = f"{part}/{setting}/param"
        for name in recording.tensors(f"{key}/"):
            ours = np.asarray(leaves[our_parameter(name)])
            close(
                ours.T if ours.ndim == 2 else ours,
                recording.sub(f"{key}/{name}"),
                rel_l2=1e-5,
                what=f"{setting} {name}",
            )


def test_block_outputs(recording, network, stacks, clipped, close):
    for part, setting in settings(recording):
        params, (bits, spec) = clipped(part, setting)[1], spec_of(setting)
        kernels = quantized.site_rules(network.config, part, "kernel")
        transform = quant.rtn(bits, spec.weight.group_size, "flat", rules=kernels)
        rounded = transform.apply(quant.State(params, {}, None)).params
        for kind, chosen in {"float": params, f"w{bits}": rounded}.items():
            x = jnp.asarray(recording[f"{part}/inps"])
            for index, (path, block) in enumerate(stacks[part]):
                x = run_block(block, paths.subtree(chosen, path), x)
                what = f"{part}/{setting}/block_out_{kind}/{index}"
                if f"{what}/idx" in recording:
                    close(x, recording.sub(what), rel_l2=1e-5 if kind == "float" else 1e-2, what=what)


def test_error_beside_rounding(recording, network, stacks, clipped, compared):
    """What AWQ and rounding alone cost the output of a part's last block, with activations in floating point."""
    for part, setting in settings(recording):
        bits, spec = spec_of(setting)
        kernels = quantized.site_rules(network.config, part, "kernel")
        transform = quant.rtn(bits, spec.weight.group_size, "flat", rules=kernels)
        rounded = lambda params: quant.quantize(transform, params)["params"]
        chosen = (network.params, rounded(clipped(part, setting)[1]), rounded(network.params))
        exact, *outputs = (run_blocks(stacks[part], params, recording[f"{part}/inps"]) for params in chosen)
        errors = [np.linalg.norm(output - exact) / np.linalg.norm(exact) for output in outputs]
        recorded = recording[f"{part}/{setting}/rel_err_awq_vs_rtn"]
        np.testing.assert_allclose(errors, recorded, rtol=DAMAGE, err_msg=f"{part} {setting}")
        compared(recorded.size)


def run_blocks(stack, params, x):
    """The output of a stack's last block."""
    for path, block in stack:
        x = run_block(block, paths.subtree(params, path), jnp.asarray(x))
    return np.asarray(x)


@functools.partial(jax.jit, static_argnums=0)
def run_block(block, params, x):
    return block.apply(params, x)


def test_whole_network(recording, network, clipped, compared):
    """The sound order: searched on the float network, quantized afterwards."""
    params = {**network.params, **{part: clipped(part, "b4_g-1")[1][part] for part in quantized.MODULES}}
    transform = quant.chain(network.no_quantizers(), quant.rtn(4, rules=network.rules("kernel")))
    state = quant.quantize_state(transform, params)
    check_weight_sites(recording, "corrected_order_w4a16", state.codes, compared)
    outputs = network.run({"params": state.params, "quant": state.quant})
    check_outputs(recording, "corrected_order_w4a16", outputs, compared)


def test_whole_network_in_the_released_order(recording, network, compared):
    """The transform from end to end, searching in a network that is quantized already."""
    topology = quantized.topology(network.config, released_search=True)
    searched = quant.awq(4, **{**RELEASED, "rounded": True}, stale_grids=True)
    transform = quant.chain(network.no_quantizers(), searched)
    state = quant.quantize_state(transform, network.params, released_statistics(recording), topology)
    check_weight_sites(recording, "released_order_w4a16", state.codes, compared)
    kernels = paths.named_leaves(network.params)
    for name, kernel in state.codes.items():
        unscaled = np.abs(kernels[name]).max(0) / 7.5
        np.testing.assert_allclose(np.ravel(kernel.grid.scale), unscaled, rtol=1e-6, err_msg=f"stale grid of {name}")
    outputs = network.run({"params": state.params, "quant": state.quant})
    check_outputs(recording, "released_order_w4a16", outputs, compared)


def test_the_transform_searches_block_after_block(recording, network, compared):
    """The transform's own result is that of the recorded scales but for single levels."""
    topology = quantized.topology(network.config, released_search=True)
    state = quant.State(network.params, {}, released_statistics(recording))
    leaves = paths.named_leaves(quant.awq(4, **RELEASED).apply(state, topology).params)
    for part in quantized.MODULES:
        key = f"{part}/b4_g-1/param"
        for name in recording.tensors(f"{key}/"):
            wanted, ours = recording.sub(f"{key}/{name}"), np.asarray(leaves[our_parameter(name)])
            difference = np.linalg.norm(wanted.of(ours.T if ours.ndim == 2 else ours) - wanted.values)
            assert difference <= 0.02 * np.linalg.norm(wanted.values), name
            compared(wanted.values.size)


def test_everything_recorded_is_compared(recording, check_all_read):
    check_all_read(recording, {".*/sens/.*": "the reference's own sensitivity, no result"})
