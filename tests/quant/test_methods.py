"""Methods that look at blocks, on a small transformer stated in a few lines: scales, searches, training, statistics."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.quick_jit import quick_jit
from wmq_jax import quant
from wmq_jax.quant import linen, paths
from wmq_jax.quant.awq import search_clip
from wmq_jax.quant.omniquant import OmniQuantSpec, block_loss, initial

pytestmark = pytest.mark.quick

WIDTH, HIDDEN = 12, 20


class Block(nn.Module):
    """Pre-norm attention of one head, and an MLP whose ReLU lets scales through."""

    @nn.compact
    def __call__(self, x):
        q, k, v = jnp.split(nn.Dense(3 * WIDTH, name="qkv")(nn.LayerNorm(name="norm1")(x)), 3, -1)
        x = x + nn.Dense(WIDTH, name="proj")(jax.nn.softmax(q @ k.swapaxes(-1, -2) / WIDTH**0.5) @ v)
        hidden = nn.relu(nn.Dense(HIDDEN, name="fc1")(nn.LayerNorm(name="norm2")(x)))
        return x + nn.Dense(WIDTH, name="fc2")(hidden)


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range(2):
            x = Block(name=f"block_{i}")(x)
        return x


BLOCK = quant.Block(
    linen.ModuleApply(Block()),
    ("qkv", "proj", "fc1", "fc2"),
    (
        quant.Pair("norm1", ("qkv",)),
        quant.Pair("qkv", ("proj",), quant.LINEAR, first=2 * WIDTH),
        quant.Pair("norm2", ("fc1",)),
        quant.Pair("fc1", ("fc2",), quant.LINEAR),
    ),
    queries_keys=(("qkv", 2 * WIDTH),),
)
TOPOLOGY = quant.Topology(((("block_0", BLOCK), ("block_1", BLOCK)),))
ADAM = optax.adamw(5e-3, weight_decay=0)


def inputs(seed, outlier=8.0):
    x = jax.random.normal(jax.random.key(seed), (16, 5, WIDTH))
    return x.at[..., 3].multiply(outlier)


@pytest.fixture(scope="module")
def setting():
    """(params, statistics): weights with outliers, everything a method may ask for."""
    model, x = Model(), inputs(0)
    params = jax.jit(model.init)(jax.random.key(1), x)["params"]
    params = jax.tree.map(lambda leaf: leaf.at[2].multiply(5.0) if leaf.ndim == 2 else leaf + 0.1, params)
    observe = linen.observe(model, None, quant.channel_ranges(tokens=32), TOPOLOGY.first_blocks(), quant.sequences(16))
    return params, quant.calibrate(observe, {"params": params}, [(x,), (inputs(2),)])


@pytest.fixture(scope="module")
def forward():
    return jax.jit(lambda params, x: Model().apply({"params": params}, x))


@pytest.mark.parametrize("first", [quant.rtn, quant.awq, quant.omniquant])
def test_a_kernel_is_rounded_once(first, setting):
    """Its errors would add up, and be compared with weights that are rounded already. Found before any search."""
    params, statistics = setting
    state = quant.State(params, {}, statistics)
    with pytest.raises(ValueError, match="weight 'block_0/fc1/kernel' is rounded already by a transform before this"):
        quant.chain(quant.chain(first(4)), quant.omse(3)).check(state, TOPOLOGY)
    quant.chain(first(None), quant.omse(3)).check(state, TOPOLOGY)
    quant.chain(first(4), quant.omse(None)).check(state, TOPOLOGY)
    quant.chain(quant.awq(4, rounded=False), quant.omse(3)).check(state, TOPOLOGY)
    state = quant.quantize_state(quant.chain(quant.smoothquant(), quant.omse(3)), params, statistics, TOPOLOGY)
    jax.tree.map(np.testing.assert_array_equal, quant.expand(quant.pack(state.params, state.codes)), state.params)


def test_a_scale_beside_a_kernel_is_kept_with_its_integers(setting):
    """What no producer can take; the kernel then is comparable with the one before, clipping and all."""
    params, statistics = setting
    block = dataclasses.replace(BLOCK, pairs=(quant.Pair(None, ("fc2",)),))
    topology = quant.Topology(((("block_0", block), ("block_1", block)),))
    state = quant.quantize_state(quant.awq(4, 5), params, statistics, topology)
    jax.tree.map(np.testing.assert_array_equal, quant.expand(quant.pack(state.params, state.codes)), state.params)
    for path in ("block_0", "block_1"):
        exact = np.asarray(params[path]["fc2"]["kernel"], np.float64)
        noise = np.asarray(state.params[path]["fc2"]["kernel"], np.float64) - exact
        codes = state.codes[f"{path}/fc2/kernel"]
        assert codes.divisor is not None
        assert codes.sqnr == pytest.approx(10 * np.log10((exact**2).sum() / (noise**2).sum()), abs=1e-3)


@pytest.mark.parametrize("linear", [False, True])
def test_smoothing_keeps_the_function_and_moves_the_statistics(setting, forward, linear):
    params, statistics = setting
    state = quant.smoothquant(0.7, linear=linear).apply(quant.State(params, {}, statistics), TOPOLOGY)
    np.testing.assert_allclose(forward(state.params, inputs(3)), forward(params, inputs(3)), rtol=1e-4, atol=1e-4)
    before = paths.named_leaves(params)
    changed = {name for name, leaf in paths.named_leaves(state.params).items() if (leaf != before[name]).any()}
    assert ("block_0/proj/kernel" in changed) == linear and "block_1/norm2/scale" in changed
    # What calibration sees of the smoothed model is what the statistics were turned into.
    observe = linen.observe(Model(), None, quant.channel_ranges(tokens=32))
    again = quant.calibrate(observe, {"params": state.params}, [(inputs(0),), (inputs(2),)])
    followed = quant.site_statistics(state.statistics)
    for site, seen in quant.site_statistics(again).items():
        np.testing.assert_allclose(followed[site].range(), seen.range(), rtol=1e-3, atol=1e-4, err_msg=site)


@pytest.mark.parametrize("kind", [quant.NORM, quant.LINEAR])
def test_rescaling_with_any_scale_and_shift_keeps_the_function(setting, kind):
    params = setting[0]["block_0"]
    apply, x = jax.jit(BLOCK.apply), inputs(4)
    for pair in BLOCK.pairs:
        if pair.kind != kind:
            continue
        rows = params[pair.consumers[0]]["kernel"].shape[0]
        scale = jax.random.uniform(jax.random.key(5), (rows,), minval=0.3, maxval=4.0)
        # Only a producer that nothing follows, not even ReLU, can take a shift.
        shift = jax.random.normal(jax.random.key(6), (rows,)) if kind == quant.NORM else None
        moved = quant.rescale(params, pair, scale, shift)
        np.testing.assert_allclose(apply(moved, x), apply(params, x), rtol=1e-4, atol=1e-4)


def test_searches_beat_rounding(setting, forward):
    params, statistics = setting
    x = inputs(7)
    exact = forward(params, x)
    searched = quant.quantize(quant.awq(3), params, statistics, TOPOLOGY)["params"]
    rounded = quant.quantize(quant.rtn(3), params)["params"]
    error = lambda params: float(((forward(params, x) - exact) ** 2).mean())
    assert error(searched) < 0.9 * error(rounded)


def test_awq_takes_the_scale_with_the_smallest_error(setting):
    params, statistics = setting
    sample = quant.block_statistics(statistics)["block_0"]
    x, mask = sample.inputs, sample.mask()
    found = quant.awq_block(params["block_0"], x, mask, 3, BLOCK, quant.AWQSpec(quant.WeightSpec(None)))
    magnitude = jnp.abs(nn.LayerNorm().apply({"params": params["block_0"]["norm1"]}, x)).mean((0, 1))
    losses = found.losses["qkv"]
    scale = magnitude ** (int(losses.argmin()) / len(losses))
    np.testing.assert_allclose(found.scales["qkv"], scale / jnp.sqrt(scale.max() * scale.min()), rtol=1e-3)
    assert losses.min() < 0.95 * losses[0]
    assert (found.limits["qkv"][: 2 * WIDTH] == jnp.inf).all(), "queries and keys are spared"
    assert (found.limits["qkv"][2 * WIDTH :] < jnp.inf).all()


def test_awq_clips_for_tokens_of_every_position():
    """Of 512 sequences of one length, one token in so many would be the first of each."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(512, 8, WIDTH)).astype(np.float32)
    x[:, 0] = 0.0  # of which no search learns anything
    kernel, mask = jnp.asarray(rng.normal(size=(WIDTH, 6)), jnp.float32), jnp.ones((512, 8)).at[:, 5:].set(0.0)
    limits = {
        strided: search_clip(kernel, x, mask, 3, quant.AWQSpec(quant.WeightSpec(None), strided=strided))
        for strided in (True, False)
    }
    whole = jnp.abs(kernel).max(0)[:, None]
    np.testing.assert_array_equal(limits[True], whole)
    assert (limits[False] < whole).any()


@pytest.mark.parametrize("make", [quant.awq, quant.omniquant])
def test_searches_compute_in_the_precision_of_the_parameters(setting, make):
    """Where double precision is allowed, constants of a search must not widen it."""
    expected = make(4).apply(quant.State(setting[0], {}, setting[1]), TOPOLOGY)
    with jax.enable_x64(True):
        wide = make(4).apply(quant.State(setting[0], {}, setting[1]), TOPOLOGY)
    assert {leaf.dtype for leaf in jax.tree.leaves(wide.params)} == {np.dtype("float32")}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), wide.params, expected.params)


def test_awq_shows_a_block_what_the_float_blocks_before_it_give(setting):
    params, statistics = setting
    both = quant.awq(3).apply(quant.State(params, {}, statistics), TOPOLOGY).params
    sample = quant.block_statistics(statistics)["block_0"]
    after = sample._replace(inputs=jax.jit(BLOCK.apply)(params["block_0"], sample.inputs))
    second = quant.Topology(((("block_1", BLOCK),),))
    statistics = paths.nest({"block_1/block-input": after}, statistics)
    alone = quant.awq(3).apply(quant.State(params, {}, statistics), second).params
    jax.tree.map(np.testing.assert_array_equal, alone["block_1"], both["block_1"])


TRAINING = OmniQuantSpec(quant.WeightSpec(None), epochs=4, batch=4, optimizer=ADAM, keep_best=True)


def trained(setting, path, x, target):
    """(what training starts from, what OmniQuant makes of a block at 3 bits)."""
    params, statistics = setting
    seen = quant.site_statistics(statistics)
    maxima = {consumer: seen[f"{path}/{consumer}"].absmax() for consumer in ("qkv", "fc1")}
    learned = initial(params[path], maxima, 0.5, BLOCK, TRAINING)
    mask = quant.block_statistics(statistics)["block_0"].mask()
    return learned, quant.omniquant_block(params[path], learned, x, target, mask, 3, quant.NO_BITS, BLOCK, TRAINING)


def test_omniquant_shows_a_block_what_the_quantized_and_the_float_blocks_before_it_give(setting):
    params, statistics = setting
    both = quant.omniquant(3, epochs=4, optimizer=ADAM).apply(quant.State(params, {}, statistics), TOPOLOGY).params
    x = quant.block_statistics(statistics)["block_0"].inputs
    _, first = trained(setting, "block_0", x, x)
    np.testing.assert_allclose(first.target, jax.jit(BLOCK.apply)(params["block_0"], x), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(first.output, jax.jit(BLOCK.apply)(first.params, x), rtol=1e-4, atol=1e-4)
    _, second = trained(setting, "block_1", first.output, first.target)
    jax.tree.map(np.testing.assert_array_equal, both, {"block_0": first.params, "block_1": second.params})


def test_training_lowers_the_loss_of_the_block(setting):
    params, statistics = setting
    sample = quant.block_statistics(statistics)["block_0"]
    learned, found = trained(setting, "block_0", sample.inputs, sample.inputs)
    losses = np.asarray(found.losses).reshape(4, 4).mean(1)
    assert losses[-1] < 0.98 * losses[0]
    # Rounding is straight-through: gradients reach every scale, shift and clipping factor.
    gradient = jax.jit(jax.grad(block_loss), static_argnums=(7, 8))(
        learned, params["block_0"], sample.inputs, found.target, sample.mask(), 3, 8, BLOCK, TRAINING
    )
    for name, leaf in paths.named_leaves(gradient).items():
        assert jnp.isfinite(leaf).all() and (leaf != 0).any(), name


@pytest.mark.parametrize("rate", [1e4, float("nan")])
def test_training_that_fails_changes_nothing(setting, rate):
    """Steps far too long, or none that is a number: the block is rounded as it is, unless the end is asked for."""
    params, statistics = setting
    sample = quant.block_statistics(statistics)["block_0"]
    x, mask = sample.inputs, sample.mask()
    learned = initial(params["block_0"], {"qkv": jnp.ones(WIDTH), "fc1": jnp.ones(WIDTH)}, 0.5, BLOCK, TRAINING)
    spec = dataclasses.replace(TRAINING, optimizer=optax.sgd(rate))
    block = lambda learned, spec: quant.omniquant_block(
        params["block_0"], learned, x, x, mask, 3, quant.NO_BITS, BLOCK, spec
    )
    kept, end = (block(learned, dataclasses.replace(spec, keep_best=best)) for best in (True, False))
    error = lambda found: float(jnp.square(found.output - found.target).mean())
    plain = dataclasses.replace(TRAINING, epochs=0)
    same = jax.tree_util.tree_map_with_path(lambda path, x: jnp.full_like(x, path[-1].key == "scale"), learned)
    rounded = quant.omniquant_block(params["block_0"], same, x, x, mask, 3, quant.NO_BITS, BLOCK, plain)
    assert error(kept) <= error(rounded) * 1.001
    assert not error(end) <= error(kept)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_training_is_never_worse_than_plain_rounding(setting, bits):
    """Of normal weights too, to which the finer grid of round-to-nearest is kinder than that of learned clipping."""
    params, statistics = setting
    draw = np.random.default_rng(0).normal
    part = jax.tree.map(lambda leaf: leaf if leaf.ndim == 1 else draw(0, 0.3, leaf.shape).astype(np.float32),
                        params["block_0"])  # fmt: skip
    sample = quant.block_statistics(statistics)["block_0"]
    learned = initial(part, {"qkv": jnp.ones(WIDTH), "fc1": jnp.ones(WIDTH)}, 0.5, BLOCK, TRAINING)
    found = quant.omniquant_block(
        part, learned, sample.inputs, sample.inputs, sample.mask(), bits, quant.NO_BITS, BLOCK, TRAINING
    )
    rounded = BLOCK.apply(quant.quantize(quant.rtn(bits), part)["params"], sample.inputs)
    error = lambda output: float(jnp.square(output - found.target).mean())
    assert error(found.output) <= error(rounded) * 1.001


def test_rounding_passes_the_gradient_of_the_float_block(setting):
    """Straight-through: at 12 bits the gradient to the weights is nearly that without rounding."""
    params, statistics = setting
    sample = quant.block_statistics(statistics)["block_0"]
    x, mask, part = sample.inputs, sample.mask(), params["block_0"]
    learned = initial(part, {"qkv": jnp.ones(WIDTH), "fc1": jnp.ones(WIDTH)}, 0.5, BLOCK, TRAINING)
    loss = lambda part: block_loss(learned, part, x, jnp.zeros_like(x), mask, 12, 12, BLOCK, TRAINING)
    rounded, exact = (
        quick_jit(jax.grad(loss))(part),
        quick_jit(jax.grad(lambda p: (BLOCK.apply(p, x) ** 2).mean()))(part),
    )
    for site in BLOCK.sites:
        got, expected = rounded[site]["kernel"], exact[site]["kernel"]
        assert jnp.linalg.norm(got - expected) < 0.2 * jnp.linalg.norm(expected), site


@pytest.mark.parametrize("method", ["smoothquant", "awq", "omniquant"])
def test_an_order_that_would_undo_what_came_before_is_refused(setting, method):
    """Rounded kernels and static ranges are those of the scales that they were made for."""
    params, statistics = setting
    moving = {"smoothquant": quant.smoothquant(), "awq": quant.awq(4), "omniquant": quant.omniquant(4)}[method]
    run = lambda *chain: quant.chain(*chain).check(quant.State(params, {}, statistics), TOPOLOGY)
    for earlier, words in (
        (quant.rtn(4, rules=[".*fc1/kernel"]), "comes after a transform that rounded 'block_0/fc1/kernel'"),
        (
            quant.static_activations(8, rules=[".*qkv"]),
            "comes after static_activations, whose .* 'block_0/qkv'",
        ),
    ):
        with pytest.raises(ValueError, match=f"^{method} {words}.*: put it first in the chain$"):
            run(earlier, moving)
        with pytest.raises(ValueError, match=f"^{method} {words}.*: put it first in the chain"):
            jax.jit(lambda: run(earlier, moving))()
    run(quant.dynamic_activations(8), moving)
    run(quant.static_activations(None), moving)
    run(quant.static_activations(8, rules=[".*qkv"]), quant.dynamic_activations(8), moving)
    run(moving, quant.static_activations(8))


def test_an_order_that_touches_nothing_of_what_came_before_is_fine(setting):
    params, statistics = setting
    rounded = [f"{path}/fc2/kernel" for path in ("block_0", "block_1")]
    transform = quant.chain(quant.rtn(8, rules=rounded), quant.smoothquant())
    state = quant.quantize_state(transform, params, statistics, TOPOLOGY)
    assert sorted(state.codes) == rounded, "smoothing changes LayerNorm, qkv and fc1"
    state = quant.State(params, {}, statistics)
    quant.chain(quant.static_activations(8, rules=[".*fc2"]), quant.omniquant(4)).check(state, TOPOLOGY)


def test_a_transform_without_marks_is_noticed_when_it_is_applied(setting):
    """As one that a user wrote."""
    params, statistics = setting
    plain = lambda transform: quant.Transform(transform.check, transform.apply)
    for chained, words in (
        ((plain(quant.rtn(4)), quant.omse(3)), "is rounded already by a transform before this one"),
        ((plain(quant.rtn(4)), quant.smoothquant()), "smoothquant comes after a transform that rounded"),
        ((plain(quant.static_activations(8)), quant.smoothquant()), "smoothquant comes after static_activations"),
    ):
        with pytest.raises(ValueError, match=words):
            quant.quantize(quant.chain(*chained), params, statistics, TOPOLOGY)


@pytest.mark.parametrize(
    "method", [quant.smoothquant, *(functools.partial(m, 4) for m in (quant.awq, quant.omniquant))]
)
def test_a_model_may_be_a_block_itself(setting, method):
    params, x = setting[0]["block_0"], inputs(0)
    observe = linen.observe(Block(), None, quant.channel_ranges(), [""], quant.sequences(16))
    statistics = quant.calibrate(observe, {"params": params}, [(x,)])
    state = quant.quantize_state(method(), params, statistics, quant.Topology(((("", BLOCK),),)))
    assert jax.tree.structure(state.params) == jax.tree.structure(params)
    assert (state.params["fc1"]["kernel"] != params["fc1"]["kernel"]).any()
    rounded = [] if method is quant.smoothquant else [f"{site}/kernel" for site in sorted(BLOCK.sites)]
    assert sorted(state.codes) == rounded


def test_nothing_is_compiled_twice_for_blocks_of_one_shape(setting):
    params, statistics = setting
    quant.awq_block.clear_cache()
    for bits in (3, 7):
        quant.awq(bits).apply(quant.State(params, {}, statistics), TOPOLOGY)
    assert quant.awq_block._cache_size() == 1


def test_statistics_save_load_and_merge(setting, tmp_path):
    params, statistics = setting
    np.savez(tmp_path / "statistics.npz", **quant.statistics_to_arrays(statistics))
    with np.load(tmp_path / "statistics.npz", allow_pickle=False) as arrays:
        loaded = quant.statistics_from_arrays(arrays)
    jax.tree.map(np.testing.assert_array_equal, loaded, statistics)
    assert jax.tree.structure(loaded) == jax.tree.structure(statistics)
    observe = lambda seed: linen.observe(
        Model(), None, quant.channel_ranges(32, seed=seed), TOPOLOGY.first_blocks(), quant.sequences(16, seed=seed)
    )
    parts = [quant.calibrate(observe(seed), {"params": params}, [(x,)]) for seed, x in ((0, inputs(0)), (1, inputs(2)))]
    merged = quant.site_statistics(quant.merge_statistics(*parts))
    for site, seen in quant.site_statistics(statistics).items():
        assert merged[site].count == seen.count
        np.testing.assert_array_equal(merged[site].minimum, seen.minimum)
        np.testing.assert_array_equal(merged[site].maximum, seen.maximum)
    (sequences,) = quant.block_statistics(quant.merge_statistics(*parts)).values()
    offered = np.concatenate([inputs(0), inputs(2)])
    kept = [int(np.flatnonzero((offered == one).all((1, 2)))[0]) for one in np.asarray(sequences.inputs)]
    assert len(set(kept)) == 16 and min(kept) < 16 <= max(kept), "a sample of both streams without repetition"
    with pytest.raises(ValueError, match="is no statistic; the kinds are"):
        quant.statistics_from_arrays({"site/input:Strange/count": np.int32(1)})


def test_shorter_sequences_are_filled_up_and_masked():
    observer = quant.sequences(6)
    seen = observer.empty(jnp.ones((2, 3, 4)))
    for length in (3, 5):
        seen = observer.update(seen, jnp.full((2, length, 4), float(length)))
    assert seen.inputs.shape == (6, 5, 4)
    mask = np.asarray(seen.mask())
    assert sorted(mask.sum(1)) == [0, 0, 3, 3, 5, 5]
    np.testing.assert_array_equal(np.asarray(seen.inputs).sum((1, 2)), 4 * mask.sum(1) ** 2)


def test_what_a_method_lacks_is_named(setting):
    params, statistics = setting
    ranges = quant.calibrate(linen.observe(Model()), {"params": params}, [(inputs(0),)])
    spoiled = jax.tree.map(lambda leaf: leaf, params)
    spoiled["block_1"]["fc2"]["kernel"] = spoiled["block_1"]["fc2"]["kernel"].at[0, 0].set(jnp.nan)
    for make in (quant.smoothquant, lambda: quant.awq(4), lambda: quant.omniquant(4)):
        with pytest.raises(ValueError, match="needs a topology"):
            quant.quantize(make(), params, statistics)
        with pytest.raises(ValueError, match="weight 'block_1/fc2/kernel' has 1 NaN"):
            quant.quantize(make(), spoiled, statistics, TOPOLOGY)
    with pytest.raises(ValueError, match="needs statistics of the channels of site 'block_0/qkv'"):
        quant.quantize(quant.smoothquant(), params, ranges, TOPOLOGY)
    with pytest.raises(ValueError, match="needs sampled inputs of block 'block_0'"):
        quant.quantize(quant.awq(4), params, ranges, TOPOLOGY)
    with pytest.raises(ValueError, match="the topology names 'block_2/qkv/kernel', which the parameters lack"):
        quant.quantize(quant.awq(4), params, statistics, quant.Topology(((("block_2", BLOCK),),)))
    with pytest.raises(ValueError, match="alpha must be in 0..1, not 2"):
        quant.smoothquant(2)
    with pytest.raises(ValueError, match="epochs of 0, or more with an optimizer"):
        quant.omniquant(4, epochs=3)
    with pytest.raises(ValueError, match="awq: stale_grids needs rounded=True"):
        quant.awq(4, rounded=False, stale_grids=True)
    with pytest.raises(ValueError, match="the statistic of site 'block_0/fc1' has no tokens"):
        quant.quantize(quant.static_activations(4, range="omse"), params, ranges)


def test_a_scaled_pattern_that_matches_nothing_is_named(setting):
    params, statistics = setting
    with pytest.raises(ValueError, match="awq: scaled='fcc1' matches no pair; the first consumers are fc1, fc2, proj"):
        quant.quantize(quant.awq(4, scaled="fcc1"), params, statistics, TOPOLOGY)
