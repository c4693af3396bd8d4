"""OmniQuant against omniquant.npz: its released initialisation, whole networks after it, and the repaired training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
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
from tests.golden.tally import REDUCED, golden_folder
from tests.quick_jit import compilation
from wmq_jax import quant, quantized
from wmq_jax.quant import paths
from wmq_jax.quant.equalization import foldable, smoothing_scale
from wmq_jax.quant.omniquant import block_loss, initial

pytestmark = pytest.mark.quick

ADAM = functools.partial(optax.adamw, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0)
OPTIMIZER = optax.multi_transform(
    {"transform": ADAM(5e-3), "clipping": ADAM(1e-2)}, {"transform": "transform", "clipping": "clipping"}
)
# Recorded name of what is learned -> where it is here.
SITES = {"qkv": "attn/to_qkv", "out": "attn/to_out", "fc1": "ff/fc1", "fc2": "ff/fc2"}
LEARNED = {
    **{
        f"{short}_{name}": ("transform", site, name)
        for short, site in (("a", SITES["qkv"]), ("f", SITES["fc1"]))
        for name in ("scale", "shift")
    },
    **{f"{short}_{name[:2]}": ("clipping", site, name) for short, site in SITES.items() for name in ("upper", "lower")},
}
CASES = {"w4a16": (4, 16), "w4a8token": (4, 8), "w3a16": (3, 16)}
EPOCHS, BATCH = 5, 4
CLEAR = 1e-2  # share of the largest first gradient, below which Adam's first step is a sign of next to nothing
# Relative bound on losses, absolute one on what was learned where the first gradient has that share of the largest,
# relative ones on a first gradient and its norm. Where activations are rounded too, single values behind a block that
# was trained change codes.
TIGHT = dict(loss=1e-3, learnt=1e-3, share=CLEAR, gradient=1e-3, norm=1e-4)
LOOSE = dict(loss=1e-2, learnt=1e-2, share=1e-1, gradient=1e-2, norm=1e-2)
OUTPUT = 1e-2  # on the relative L2 norm of a quantized block's output


@pytest.fixture(scope="module", autouse=True)
def optimised():
    """A step of training that is rounded otherwise flips codes, and the next steps follow: compile as users do."""
    with compilation(quick=False):
        yield


@pytest.fixture(scope="module")
def recording(golden):
    return golden("omniquant.npz")


@pytest.fixture(scope="module")
def biased(network):
    """Configuration and parameters with the bias of zeros that the released code adds to the predictor's to_qkv."""
    return quantized.with_qkv_bias(network.config, network.params)


def bounds(case, index):
    return LOOSE if index > 0 and CASES[case][1] < 16 else TIGHT


def lookup(learned, name):
    kind, site, field = LEARNED[name]
    return np.asarray(learned[kind][site][field])


@pytest.fixture(scope="module")
def trained(recording, biased):
    """Case -> for each block: inputs, what was learned, losses, outputs; trained on the recorded inputs."""
    config, params = biased
    (stack,) = quantized.topology(config).restricted("predictor").stacks
    maxima = {our_name(name): value for name, value in recording.under("act_scales/").items()}
    spec = quant.OmniQuantSpec(
        quant.WeightSpec(None), EPOCHS, BATCH, OPTIMIZER, quant.RELEASED_SCALE_LIMITS, include_zero=False
    )

    @functools.cache
    def run(case):
        bits, act_bits = CASES[case]
        x = target = jnp.asarray(recording["predictor/inps"])
        mask, results = jnp.ones(x.shape[:2]), []
        for path, block in stack:
            part = paths.subtree(params, path)
            seen = {pair.consumers[0]: maxima[f"{path}/{pair.consumers[0]}"] for pair in foldable(block)}
            learned = initial(part, seen, 0.5, block, spec)
            arguments = (part, learned, x, target, mask, bits, act_bits, block)
            result = quant.omniquant_block(*arguments, spec)
            results.append((arguments, result))
            x, target = result.output, result.target
        return spec, results

    return run


def recorded_or_skipped(recording, key):
    """Skips what the reduced copy leaves out; the full recordings must have it."""
    if key not in recording:
        assert golden_folder() == REDUCED, f"{key} is missing"
        pytest.skip(f"{key} is left out of the reduced recordings")


@pytest.mark.parametrize("case", CASES)
def test_training(recording, trained, case, compared):
    recorded_or_skipped(recording, f"repaired_{case}/0/losses")
    _, results = trained(case)
    for index, (_, result) in enumerate(results):
        key = f"repaired_{case}/{index}"
        np.testing.assert_allclose(
            result.losses, recording[f"{key}/losses"], rtol=bounds(case, index)["loss"], err_msg=key
        )
        assert result.losses[-1] < result.losses[1] and result.losses[-2] < result.losses[0], "training lowers the loss"
        compared(result.losses.size)


@pytest.mark.parametrize("case", CASES)
def test_what_training_ends_with(recording, trained, case, close, compared):
    """Factors whose first gradient is clear (Adam moves the others by the sign of next to nothing), and outputs."""
    recorded_or_skipped(recording, f"repaired_{case}/0/final/a_scale")
    _, results = trained(case)
    for index, (_, result) in enumerate(results):
        key = f"repaired_{case}/{index}"
        close(result.output, recording.sub(f"{key}/block_out"), rel_l2=OUTPUT, what=f"{key}/block_out")
        for name in LEARNED if f"{key}/final/a_scale" in recording else ():
            wanted, first = (recording[f"{key}/{part}/{name}"].ravel() for part in ("final", "grad0"))
            bound = bounds(case, index)
            clear = np.abs(first) > bound["share"] * np.abs(first).max()
            ours = lookup(result.learned, name).ravel()
            np.testing.assert_allclose(
                ours[clear], wanted[clear], rtol=0, atol=bound["learnt"], err_msg=f"{key} {name}"
            )
            compared(clear.sum())


@pytest.mark.parametrize("case", CASES)
def test_first_step(recording, trained, case, compared):
    recorded_or_skipped(recording, f"repaired_{case}/0/grad0/a_scale")
    spec, results = trained(case)
    one = dataclasses.replace(spec, epochs=1)
    for index, ((part, learned, x, target_input, mask, bits, act_bits, block), _) in enumerate(results):
        target, key = block.apply(part, target_input), f"repaired_{case}/{index}"
        batch = (part, x[:BATCH], target[:BATCH], mask[:BATCH], bits, act_bits)
        gradient = gradient_of_loss(learned, *batch, block, spec)
        step = (part, learned, x[:BATCH], target_input[:BATCH], mask[:BATCH], bits, act_bits, block)
        after = quant.omniquant_block(*step, one).learned
        for name in LEARNED:
            found = lookup(gradient, name).ravel(), lookup(after, name)
            check_first_step(recording, key, name, *found, bounds(case, index), compared)


gradient_of_loss = jax.jit(jax.grad(block_loss), static_argnums=(7, 8))


def check_first_step(recording, key, name, gradient, after, bound, compared):
    """Compares a first gradient and, where it is clear, what the step made of it."""
    recorded = recording[f"{key}/grad0/{name}"].ravel()
    size = np.linalg.norm(recorded)
    assert np.linalg.norm(gradient - recorded) <= bound["gradient"] * size, (key, name)
    assert abs(np.linalg.norm(gradient) - size) <= bound["norm"] * size, (key, name)
    compared(recorded.size + 1)
    if f"{key}/after1/{name}" in recording:
        clear = np.abs(recorded) > CLEAR * np.abs(recorded).max()
        wanted = recording[f"{key}/after1/{name}"].ravel()
        np.testing.assert_allclose(after.ravel()[clear], wanted[clear], atol=1e-4, err_msg=f"{key} {name}")
        compared(clear.sum())


def cases_without_training(recording):
    """Recorded case -> whether released names leave the predictor alone, and whether tokens are quantized."""
    names = [name for name in recording.names() if name.startswith("epochs0_")]
    assert names
    return {name: ("released" in name, name.endswith("token_wise")) for name in names}


def recorded_scales(recording, case):
    """Name of a consumer's kernel -> the recorded initial scale of its LayerNorm."""
    consumers = {"attn_qkv": "attn/qkv", "mlp_fc1": "mlp/fc1", "attn_to_qkv": "attn/to_qkv", "ff_net1": "ff/fc1"}
    scales = {}
    for name, value in recording.under(f"{case}/let/").items():
        path, pair = our_name(name).rsplit("/", 1)
        if pair.endswith("_smooth_scale"):
            scales[f"{path}/{consumers[pair.removesuffix('_smooth_scale').split('__')[1]]}/kernel"] = value
        else:
            assert not value.any(), "shifts begin at 0"
    return scales


def test_released_initialisation(recording, network, biased, close):
    """Scales of the recorded maxima; the bias of zeros; where released names do not match, the predictor stays."""
    config, params = biased
    seen = {our_name(name): value for name, value in recording.under("act_scales/").items()}
    for case, (released, tokens) in cases_without_training(recording).items():
        if tokens:
            continue
        scales = recorded_scales(recording, case)
        for path, block in quantized.topology(config).blocks():
            part = paths.subtree(params, path)
            for pair in foldable(block):
                site = f"{path}/{pair.consumers[0]}"
                ours = smoothing_scale(part, pair, jnp.asarray(seen[site]), 0.5)
                if released and path.startswith("predictor"):
                    ours = jnp.ones_like(ours)
                close(ours, scales[f"{site}/kernel"], rel_l2=1e-6, what=site)
        leaves = paths.named_leaves(rescaled(config, params, scales))
        for name in recording.tensors(f"{case}/param/"):
            ours = np.asarray(leaves[our_parameter(name)])
            close(ours.T if ours.ndim == 2 else ours, recording.sub(f"{case}/param/{name}"), rel_l2=1e-6, what=name)
        for name, recorded in recording.under(f"{case}/added_buffer/").items():
            close(leaves[our_parameter(name)], recorded, atol=0, what=name)


@pytest.mark.slow
def test_networks_without_training(recording, network, biased, compared):
    """W4A8 after the released initialisation, by plain min-max on the recorded scales; see test_smoothquant.py."""
    config, params = biased
    run = network.runner(config)
    for case, (_, tokens) in cases_without_training(recording).items():
        scales = recorded_scales(recording, case.replace("token_wise", "layer_wise"))
        moved = rescaled(config, params, scales)
        check_float_function(recording, case, run, network, params, moved, compared)
        statistics = network.calibrate(moved, RELEASED_OBSERVER)
        activations = quant.dynamic_activations if tokens else quant.static_activations
        transform = quant.chain(
            network.no_quantizers(),
            quant.rtn(4, rules=network.rules("kernel")),
            activations(8, include_zero=False, rules=network.rules()),
        )
        state = quant.quantize_state(transform, moved, statistics)
        check_weight_sites(recording, case, state.codes, compared)
        quantizers = recorded_quantizers(recording, case, state.quant, compared)
        check_outputs(recording, case, run({"params": state.params, "quant": quantizers}), compared)


def check_float_function(recording, case, run, network, params, moved, compared):
    """Scales that move into the weights leave the float function what it was, as nearly as in the recording."""
    if f"{case}/preserve_maxdiff" in recording:
        before, after = (run(quant.quantize(network.no_quantizers(), tree)) for tree in (params, moved))
        for name, recorded in zip(OUTPUTS, recording[f"{case}/preserve_maxdiff"], strict=True):
            difference = np.abs(after[name] - before[name]).max()
            assert difference <= max(10 * recorded, 1e-4), (case, name, difference)
            compared(1)


def test_everything_recorded_is_compared(recording, check_all_read):
    check_all_read(
        recording,
        {
            ".*/sens/.*": "the reference's own sensitivity, no result",
            ".*/config": "the name of the case says it",
            "encoder/inps": "no training of the encoder is recorded",
            ".*/summary_log|train_errors_json": "messages of the released code",
        },
    )
