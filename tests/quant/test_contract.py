"""What every quantization method keeps, whatever its granularity and bits: one table, the same tests for all.

A row of the table is a transform of a small model, whose only block has every kind of pair. Bits, parameters and
statistics are arguments of one compiled function a row.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.quick_jit import quick_jit
from wmq_jax import quant
from wmq_jax.quant import WeightSpec, linen, paths
from wmq_jax.quant.omniquant import OmniQuantSpec, initial
from wmq_jax.quant.per_kernel import per_kernel

pytestmark = pytest.mark.quick

WIDTH, HIDDEN = 7, 12
SITES = ("fc1", "fc2", "fc3")


class Block(nn.Module):
    """LayerNorm -> fc1 -> ReLU -> fc2 -> GELU -> fc3 beside a residual connection; a token never sees another one."""

    hidden: int = HIDDEN

    @nn.compact
    def __call__(self, x):
        hidden = nn.relu(nn.Dense(self.hidden, name="fc1")(nn.LayerNorm(name="norm")(x)))
        return x + nn.Dense(x.shape[-1], name="fc3")(nn.gelu(nn.Dense(self.hidden, name="fc2")(hidden)))


class Model(nn.Module):
    hidden: int = HIDDEN

    @nn.compact
    def __call__(self, x):
        return Block(self.hidden, name="block")(x)


def topology(hidden=HIDDEN):
    pairs = quant.Pair("norm", ("fc1",)), quant.Pair("fc1", ("fc2",), quant.LINEAR), quant.Pair(None, ("fc3",))
    return quant.Topology(((("block", quant.Block(linen.ModuleApply(Block(hidden)), SITES, pairs)),),))


TOPOLOGY = topology()
(_, BLOCK), *_ = TOPOLOGY.blocks()
ADAM = optax.adam(5e-3)


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
      make: ``bits -> transform``.
      groups: what shares a grid, for methods that round weights; None for those that quantize activations alone.
      statistics: it needs calibration.
      exact: every number follows from one group or token alone, so that it is the same however it is computed. What a
        sum over many decides may differ in its last digits, and rounding can make a step of that.
      finest: bits beyond which its error need not fall: learned clipping starts at 98 % of the range. 0: never;
        a range that leaves out what was seen keeps that error, and so do grids that are not those of the weights.
      rescales: without bits it still moves scales, which keeps the function and not the parameters.
      observer: what calibration keeps of sites.
    """

    make: Callable[..., quant.Transform]
    groups: WeightSpec | None
    statistics: bool = False
    exact: bool = True
    finest: int = 12
    rescales: bool = False
    observer: quant.Observer = quant.channel_ranges(tokens=16)

    def __call__(self, bits, params, statistics) -> quant.State:
        """What the transform makes of the model."""
        return quant.quantize_state(self.make(bits), params, statistics, TOPOLOGY)


WHOLE = WeightSpec(None)
METHODS = {
    "rtn": Method(lambda bits: quant.rtn(bits), WHOLE),
    "rtn in groups": Method(lambda bits: quant.rtn(bits, 5), WeightSpec(None, 5)),
    "rtn in flat groups": Method(lambda bits: quant.rtn(bits, 6, "flat"), WeightSpec(None, 6, "flat")),
    "omse": Method(lambda bits: quant.omse(bits), WHOLE),
    "omse in groups": Method(lambda bits: quant.omse(bits, 5), WeightSpec(None, 5)),
    "omse in flat groups": Method(lambda bits: quant.omse(bits, 6, "flat"), WeightSpec(None, 6, "flat")),
    "asymmetric groups": Method(lambda bits: per_kernel(WeightSpec(bits, 6), quant.range_grid), WeightSpec(None, 6)),
    "smoothquant": Method(
        lambda bits: quant.chain(quant.smoothquant(0.5, linear=True), quant.rtn(bits), quant.static_activations(bits)),
        WHOLE,
        statistics=True,
        exact=False,
        rescales=True,
    ),
    "smoothquant in groups": Method(
        lambda bits: quant.chain(quant.smoothquant(0.5), quant.rtn(bits, 5)),
        WeightSpec(None, 5),
        statistics=True,
        exact=False,
        rescales=True,
    ),
    "awq": Method(lambda bits: quant.awq(bits), WHOLE, statistics=True, exact=False),
    "awq in groups": Method(
        lambda bits: quant.awq(bits, 5, grid_fn=quant.range_grid), WeightSpec(None, 5), statistics=True, exact=False
    ),
    "awq as released": Method(
        lambda bits: quant.awq(
            bits,
            6,
            "flat",
            ".*fc1",
            clip_queries_keys=True,
            search_grid=quant.released_range_grid,
            stale_grids=True,
            strided=True,
        ),
        WeightSpec(None, 6, "flat"),
        statistics=True,
        exact=False,
        finest=0,
    ),
    "omniquant": Method(
        lambda bits: quant.omniquant(bits, act_bits=bits, epochs=2, batch=6, optimizer=ADAM),
        WHOLE,
        statistics=True,
        exact=False,
        finest=8,
    ),
    "omniquant in groups, not trained": Method(
        lambda bits: quant.omniquant(bits, 5), WeightSpec(None, 5), statistics=True, exact=False
    ),
    "static": Method(lambda bits: quant.static_activations(bits), None, statistics=True),
    "static, range as observed": Method(
        lambda bits: quant.static_activations(bits, include_zero=False), None, statistics=True
    ),
    "static, moving average": Method(
        lambda bits: quant.static_activations(bits), None, statistics=True, finest=0, observer=quant.ema(0.5)
    ),
    "static, percentile": Method(
        lambda bits: quant.static_activations(bits),
        None,
        statistics=True,
        finest=0,
        observer=quant.percentile(0.9, rate=0.5),
    ),
    "static, searched range": Method(
        lambda bits: quant.static_activations(bits, range="omse"), None, statistics=True, exact=False
    ),
    "per token": Method(lambda bits: quant.dynamic_activations(bits), None),
    "per token, range as observed": Method(lambda bits: quant.dynamic_activations(bits, include_zero=False), None),
}
WEIGHTS = {name: method for name, method in METHODS.items() if method.groups}


def every(methods):
    return pytest.mark.parametrize("name", methods)


def inputs(seed):
    """(5, 4, WIDTH): a channel of outliers, a token of zeros, a constant one."""
    x = jax.random.normal(jax.random.key(seed), (5, 4, WIDTH))
    return x.at[..., 3].multiply(8.0).at[1, 1].set(0.0).at[1, 2].set(0.5)


@functools.cache
def calibrated(observer, size=1.0, dtype=jnp.float32):
    """(params, statistics), both of inputs and weights of this size.

    Kernels have outliers, a zero row and column, a constant column, and exact half steps.
    """
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(Model().init, jax.random.key(0), inputs(0))["params"]
    params = jax.tree.map(lambda leaf: rng.normal(len(leaf.shape) == 1, 0.5, leaf.shape).astype(np.float32), shapes)
    for site in SITES:
        kernel = params["block"][site]["kernel"]
        kernel[2] *= 5
        kernel[3], kernel[:, 1], kernel[:, 2], kernel[0, 4] = 0, 0, 0.75, -6
        kernel[:, 5] = np.arange(len(kernel)) / 8
        params["block"][site]["bias"] -= 1
        params["block"][site] = jax.tree.map(lambda leaf: leaf * np.float32(size), params["block"][site])
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    observe = linen.observe(Model(), None, observer, ["block"], quant.sequences(6))
    batches = [((size * inputs(seed)).astype(dtype),) for seed in (0, 2)]
    return params, quant.calibrate(observe, {"params": params}, batches)


@pytest.fixture
def setting(request):
    """(params, statistics) as the row of the test, if it is of one, needs them."""
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")
    return calibrated(METHODS[name or "awq"].observer)


@functools.cache
def compiled(name):
    """``(bits, params, statistics) -> state``, bits as data."""
    return quick_jit(METHODS[name])


@quick_jit
def outputs(state, x):
    return linen.quantized_apply(Model())({"params": state.params, "quant": state.quant}, x)


def function(params, x):
    return outputs(quant.State(params, {}, None), x)


def distance(a, b, x):
    """Between what two states make of x, relative to what the second adds to it."""
    a, b = (outputs(state, x) for state in (a, b))
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b - x))


def assert_same(name, got, expected, bits=8):
    """Two states agree: bit for bit where the method is exact, otherwise in what they compute.

    At few bits a search may choose otherwise between two candidates that are as good: what it reached must agree.
    """
    if METHODS[name].exact:
        parts = lambda state: (state.params, state.quant, state.statistics)
        jax.tree.map(np.testing.assert_array_equal, parts(got), parts(expected))
    elif bits < 8:
        x, exact = inputs(3), function(calibrated(METHODS[name].observer)[0], inputs(3))
        reached, wanted = (float(((outputs(state, x) - exact) ** 2).mean()) for state in (got, expected))
        assert reached == pytest.approx(wanted, rel=0.1)
    else:
        assert distance(got, expected, inputs(3)) < 0.02


# Eagerly, searches take as long as all others: that of activations is left out, and so is AWQ's second; OMSE's at one
# width must do.
@every([name for name in METHODS if name not in ("static, searched range", "awq as released")])
def test_jit_equals_eager(name, setting):
    for bits in (8, 4, 3) if METHODS[name].exact and not name.startswith("omse") else (8,):
        with jax.disable_jit():
            eager = METHODS[name](bits, *setting)
        assert_same(name, compiled(name)(bits, *setting), eager)


@every(METHODS)
def test_vmap_over_bits_equals_the_loop(name, setting):
    widths = (2, 3, 8, 15, quant.NO_BITS) if METHODS[name].exact else (3, 4, 8, 15, quant.NO_BITS)
    batched = quick_jit(jax.vmap(METHODS[name], (0, None, None)))(jnp.array(widths), *setting)
    for index, bits in enumerate(widths):
        assert_same(name, jax.tree.map(lambda leaf: leaf[index], batched), compiled(name)(bits, *setting), bits)


@every(METHODS)
def test_structure_shapes_and_dtypes_are_kept(name, setting):
    describe = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    state = compiled(name)(4, *setting)
    assert describe((state.params, state.statistics)) == describe(setting)
    bits_of = lambda bits: jax.tree.structure(compiled(name)(bits, *setting))
    assert bits_of(4) == bits_of(quant.NO_BITS)


@every(METHODS)
def test_bfloat16_works(name, setting):
    """Dtypes stay, the arithmetic is float32, and the result is that of float32 up to bfloat16's own rounding."""
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), setting[0])
    state = compiled(name)(8, half, setting[1])
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.bfloat16)}
    widened = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    full = compiled(name)(8, widened, setting[1])
    if METHODS[name].exact and not METHODS[name].rescales:
        rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), full.params)
        jax.tree.map(np.testing.assert_array_equal, state.params, rounded)
    again = state._replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.float32), state.params))
    assert distance(again, full, inputs(3)) < 0.03
    assert outputs(state, inputs(3).astype(jnp.bfloat16)).dtype == jnp.bfloat16


@every(METHODS)
@pytest.mark.parametrize("none", [None, 16, 32])
def test_no_bits_is_the_identity_bit_for_bit(name, none, setting):
    x = inputs(3)
    transform, traced = METHODS[name](none, *setting), compiled(name)(quant.canonical_bits(none), *setting)
    for state in (transform, traced):
        if METHODS[name].rescales:
            np.testing.assert_allclose(outputs(state, x), function(setting[0], x), rtol=1e-4, atol=1e-4)
        else:
            jax.tree.map(np.testing.assert_array_equal, (state.params, state.statistics), setting)
            np.testing.assert_array_equal(outputs(state, x), function(setting[0], x))


@every([name for name in METHODS if METHODS[name].finest])
def test_error_falls_as_bits_rise_by_two(name, setting):
    x = quant.block_statistics(setting[1])["block"].inputs  # what searches saw: they may clip what they did not
    exact = function(setting[0], x)
    states = [compiled(name)(bits, *setting) for bits in range(2, METHODS[name].finest + 1)]
    errors = [float(((outputs(state, x) - exact) ** 2).mean()) for state in states]
    assert all(finer <= coarser * 1.01 for coarser, finer in zip(errors, errors[2:])), errors
    assert errors[-1] < errors[0] * 1e-2


# Not of per-token ranges as observed, whose released scale is at least 1e-5. One row a kind: searches take long.
@every(["rtn in groups", "omse", "smoothquant", "awq", "omniquant", "static", "per token"])
@pytest.mark.parametrize("size", [2.0**-14, 2.0**6])
def test_error_falls_whatever_the_size(name, size):
    params, statistics = calibrated(METHODS[name].observer, size)
    x = quant.block_statistics(statistics)["block"].inputs
    exact = function(params, x)
    coarse, fine = (
        float(jnp.linalg.norm((outputs(compiled(name)(bits, params, statistics), x) - exact) / size)) for bits in (4, 8)
    )
    assert fine < coarse * 0.25, (fine, coarse)


@every(["smoothquant", "awq", "omniquant", "static", "per token"])
def test_what_was_calibrated_in_bfloat16_serves(name):
    params, statistics = calibrated(METHODS[name].observer, dtype=jnp.bfloat16)
    state = compiled(name)(8, params, statistics)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.bfloat16)}
    widened = calibrated(METHODS[name].observer)
    assert distance(state, compiled(name)(8, *widened), inputs(3)) < 0.05


@every(WEIGHTS)
@pytest.mark.parametrize("bits", [2, 3])
def test_a_grid_has_no_more_values_than_codes(name, bits, setting):
    """Of fc1, whose scale its LayerNorm takes; all but the codes at the ends occur somewhere."""
    kernel = compiled(name)(bits, *setting).params["block"]["fc1"]["kernel"]
    groups = np.concatenate(quant.to_groups(kernel, WEIGHTS[name].groups))
    assert 2 ** (bits - 1) < max(len(np.unique(group)) for group in groups) <= 2**bits


@every(WEIGHTS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_integers_expand_to_the_floats(name, bits, setting):
    state = compiled(name)(bits, *setting)
    assert sorted(state.codes) == [f"block/{site}/kernel" for site in SITES]
    packed = quant.pack(state.params, state.codes)
    jax.tree.map(np.testing.assert_array_equal, quant.expand(packed), state.params)
    for site in SITES:
        kernel = packed["block"][site]["kernel"]
        assert kernel.stream.nbytes == -(-np.prod(kernel.shape) * bits // 8)
        assert quant.packed_nbytes(state.codes[f"block/{site}/kernel"]) == kernel.nbytes


@every(METHODS)
def test_no_token_influences_another(name, setting):
    state, x = compiled(name)(4, *setting), inputs(3)
    spoiled = (x * 100).at[0, 0].set(x[0, 0])
    np.testing.assert_array_equal(outputs(state, spoiled)[0, 0], outputs(state, x)[0, 0])


@every([name for name in WEIGHTS if "flat" not in name])
def test_permuting_output_channels_permutes_the_result(name, setting):
    params, statistics = setting
    order = np.random.default_rng(1).permutation(WIDTH)

    def permuted(params):
        last = jax.tree.map(lambda leaf: leaf[..., order], params["block"]["fc3"])
        return {"block": {**params["block"], "fc3": last}}

    expected = compiled(name)(8, *setting)
    moved = expected._replace(params=permuted(expected.params))
    assert_same(name, compiled(name)(8, permuted(params), statistics), moved)


def spoiled(params, changes):
    """``params`` with rows or columns of kernels replaced by constants, or single values by outliers."""
    block = jax.tree.map(np.array, params["block"])
    for site, kind, index, value in changes:
        kernel = block[site]["kernel"]
        where = {
            "row": np.s_[index % kernel.shape[0]],
            "column": np.s_[:, index % kernel.shape[1]],
            "all": np.s_[:],
            "one": np.s_[index % kernel.shape[0], index % kernel.shape[1]],
        }
        kernel[where[kind]] = value
    return {"block": block}


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(SITES),
        st.sampled_from(["row", "column", "all", "one"]),
        st.integers(0, 143),
        st.sampled_from([0.0, -0.0, 0.3, -1.0, 1e-30, 1e4, -1e4]),
    ),
    min_size=1,
    max_size=4,
)


# The fixture is a value that no example changes.
@every(METHODS)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES, bits=st.integers(2, 15))
def test_any_weights_give_finite_results(name, changes, bits, setting):
    """Zeros, constants and outliers; none stays the identity for them."""
    params = spoiled(setting[0], changes)
    state = compiled(name)(bits, params, setting[1])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert jnp.isfinite(outputs(state, inputs(3))).all()
    if not METHODS[name].rescales:
        none = compiled(name)(quant.NO_BITS, params, setting[1])
        jax.tree.map(np.testing.assert_array_equal, none.params, params)


# Two or three widths only: each shape is compiled.
@every([name for name in WEIGHTS if METHODS[name].exact and "flat" not in name])
@settings(max_examples=10, deadline=None)
@given(shape=st.sampled_from([(1, 1), (5, 3), (13, 2)]), bits=st.integers(2, 15), seed=st.integers(0, 99))
def test_any_shape_is_rounded_as_its_columns_are(name, shape, bits, seed):
    """Shapes and dtypes are kept, 16 bits are the identity, and an output channel is rounded as it is alone."""
    kernel = jax.random.normal(jax.random.key(seed), shape)
    round_to = lambda kernel, bits: compiled_alone(name)(bits, {"kernel": kernel})["kernel"]
    got = round_to(kernel, bits)
    assert (got.shape, got.dtype) == (kernel.shape, kernel.dtype)
    np.testing.assert_array_equal(round_to(kernel, quant.NO_BITS), kernel)
    np.testing.assert_array_equal(round_to(kernel[:, -1:], bits), got[:, -1:])


# One of each search, with groups that do not divide a width: each shape is compiled.
@every(["smoothquant in groups", "awq in groups", "omniquant", "omniquant in groups, not trained"])
@pytest.mark.parametrize("width, hidden", [(1, 1), (2, 9), (16, 1)])
def test_a_search_takes_a_block_of_any_shape(name, width, hidden):
    """Structure is kept, 16 bits are the identity, and what 8 bits leave of the error of 3 is little."""
    method, model = METHODS[name], Model(hidden)
    x = jax.random.normal(jax.random.key(1), (6, 3, width))
    params = model.init(jax.random.key(2), x)["params"]
    observe = linen.observe(model, None, method.observer, ["block"], quant.sequences(6))
    statistics = quant.calibrate(observe, {"params": params}, [(x,)])
    find = quick_jit(lambda bits: quant.quantize_state(method.make(bits), params, statistics, topology(hidden)))
    run = quick_jit(lambda state: linen.quantized_apply(model)({"params": state.params, "quant": state.quant}, x))
    exact, none = run(quant.State(params, {}, None)), find(quant.NO_BITS)
    if not method.rescales:
        jax.tree.map(np.testing.assert_array_equal, none.params, params)
    np.testing.assert_allclose(run(none), exact, rtol=1e-4, atol=1e-4)
    coarse, fine = (float(jnp.linalg.norm(run(find(bits)) - exact)) for bits in (3, 8))
    assert fine <= coarse * 0.25 + 1e-5, (fine, coarse)


@functools.cache
def compiled_alone(name):
    """``(bits, params) -> params`` of any tree."""
    return quick_jit(lambda bits, params: METHODS[name].make(bits).apply(quant.State(params, {}, None)).params)


@every(WEIGHTS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_or_infinity_in_a_weight_is_reported_with_its_name(name, value, setting):
    params = spoiled(setting[0], [("fc2", "one", 3, value)])
    with pytest.raises(ValueError, match="weight 'block/fc2/kernel' has 1 NaN or infinite values of 144"):
        quant.quantize(METHODS[name].make(4), params, setting[1], TOPOLOGY)


# What a method reads of the statistics: ranges of sites, or samples of block inputs.
@pytest.mark.parametrize(
    "name, site, field",
    [
        *((name, "block/fc1/input", "minimum") for name in ("smoothquant", "omniquant", "static")),
        *((name, "block/block-input", "inputs") for name in ("awq", "omniquant")),
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_or_infinity_in_a_statistic_is_reported_with_its_name(name, site, field, value, setting):
    params, statistics = setting
    seen = paths.subtree(statistics, site)
    bad = paths.nest({site: seen._replace(**{field: getattr(seen, field).at[0].set(value)})}, statistics)
    with pytest.raises(ValueError, match=f"calibration statistic '{site.rpartition('/')[0]}/{field}' has"):
        quant.quantize(METHODS[name].make(4), params, bad, TOPOLOGY)


def smoothed(params, statistics):
    return quant.smoothquant(0.3, linear=True).apply(quant.State(params, {}, statistics), TOPOLOGY).params


def scaled_by_awq(params, statistics):
    return quant.awq(3, clip=False, rounded=False).apply(quant.State(params, {}, statistics), TOPOLOGY).params


def learned_by_omniquant(params, statistics):
    """Any scale and shift that training may find, without rounding."""
    spec, sample = OmniQuantSpec(WHOLE), quant.block_statistics(statistics)["block"]
    learned = initial(params["block"], {"fc1": jnp.ones(WIDTH)}, 0.5, BLOCK, spec)
    keys = jax.random.split(jax.random.key(5))
    learned["transform"]["fc1"] = {
        "scale": jax.random.uniform(keys[0], (WIDTH,), minval=0.3, maxval=4.0),
        "shift": jax.random.normal(keys[1], (WIDTH,)),
    }
    x, mask = sample.inputs, sample.mask()
    none = quant.NO_BITS
    return {"block": quant.omniquant_block(params["block"], learned, x, x, mask, none, none, BLOCK, spec).params}


@pytest.mark.parametrize("rescaled", [smoothed, scaled_by_awq, learned_by_omniquant])
def test_rescaling_keeps_the_float_function(rescaled, setting):
    x = inputs(4)
    moved = quick_jit(rescaled)(*setting)
    assert (moved["block"]["fc1"]["kernel"] != setting[0]["block"]["fc1"]["kernel"]).any()
    np.testing.assert_allclose(function(moved, x), function(setting[0], x), rtol=1e-4, atol=1e-4)


GRIDS = {
    "absmax": quant.absmax_grid,
    "searched clipping": quant.omse_grid,
    "range": quant.range_grid,
    "learned clipping": lambda groups, bits: quant.lwc_grid(groups, bits, 2.0, 1.0),
    "learned clipping of a range": lambda groups, bits: quant.lwc_grid(groups, bits, 2.0, 1.0, symmetric=False),
}


@pytest.mark.parametrize("grid", GRIDS)
def test_gradients_pass_rounding_to_scales_and_clipping_factors(grid, setting):
    """Finite and not zero at few bits; at many bits, of clipping, those of the block that is clipped and not rounded.

    A scale moves between norm and kernel, and every kernel and every activation's range is clipped by a factor.
    """
    params, x = setting[0]["block"], inputs(3)
    exact = BLOCK.apply(params, x)
    factors = {"scale": jnp.linspace(0.5, 2, WIDTH)}
    factors |= {f"{kind} {site}": jnp.float32(0.7) for kind in ("weights", "activations") for site in SITES}

    def error(factors, bits, rounding):
        def seen(site, _, value):
            ends = (factors[f"activations {site}"] * end for end in (value.min(), value.max()))
            return quant.fake_quant(value, quant.static_quantizer(*ends, bits), rounding), None

        changed = quant.rescale(params, BLOCK.pairs[0], factors["scale"])
        for site in SITES:
            kernel = changed[site]["kernel"]
            limit = factors[f"weights {site}"] * jnp.abs(kernel).max(0)
            kernel = quant.round_to_grids(jnp.clip(kernel, -limit, limit), bits, WHOLE, GRIDS[grid], rounding)
            changed = paths.nest({f"{site}/kernel": kernel}, changed)
        return ((quant.thread(BLOCK.apply, seen)({}, changed, x)[0] - exact) ** 2).mean()

    def gradient(bits, rounding):
        return jax.grad(error)(factors, bits, rounding)

    few, many, smooth = quick_jit(
        lambda: (
            gradient(5, quant.straight_through_round),
            gradient(14, quant.straight_through_round),
            gradient(14, lambda values: values),
        )
    )()
    for name, leaf in few.items():
        assert jnp.isfinite(leaf).all() and (leaf != 0).all(), name
        if name != "scale":  # without rounding a scale changes nothing
            np.testing.assert_allclose(many[name], smooth[name], rtol=0.2, err_msg=name)
