"""Methods that look at blocks take whatever axes lie between samples and channels, and parameters in any mapping."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict, freeze

from tests.quick_jit import compilation
from wmq_jax import quant
from wmq_jax.quant import linen
from wmq_jax.quant.block_inputs import sampled_inputs
from wmq_jax.quant.omniquant import initial

pytestmark = pytest.mark.quick

WIDTH = 8


class Block(nn.Module):
    """LayerNorm -> fc1 -> GELU -> fc2 beside a residual connection; every token is on its own."""

    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(WIDTH, name="fc2")(nn.gelu(nn.Dense(12, name="fc1")(nn.LayerNorm(name="norm")(x))))


BLOCK = quant.Block(
    linen.ModuleApply(Block()), ("fc1", "fc2"), (quant.Pair("norm", ("fc1",)), quant.Pair(None, ("fc2",)))
)
TOPOLOGY = quant.Topology(((("first", BLOCK), ("second", BLOCK)),))
TOKENS = jax.random.normal(jax.random.key(1), (24, WIDTH))
ADAM = optax.adam(5e-3)
METHODS = {
    "awq": quant.awq(3),
    "omniquant": quant.omniquant(3),
    "smoothquant": quant.chain(quant.smoothquant(), quant.rtn(3)),
}


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Block(name="second")(Block(name="first")(x))


@pytest.fixture(scope="module", autouse=True)
def quickly():
    with compilation(quick=True):
        yield


@pytest.fixture(scope="module")
def params():
    params = jax.jit(Model().init)(jax.random.key(0), jnp.ones((1, WIDTH)))["params"]
    return jax.tree.map(lambda leaf: leaf.at[2].multiply(4.0), params)


def sampled(shape, room):
    """Statistics of the same 24 tokens in this shape."""
    x, observer = TOKENS.reshape(*shape, WIDTH), quant.sequences(room)
    return {"first": {"block-input": observer.update(observer.empty(x), x)}}


def losses(params, statistics):
    """Of the search and of the training of the first block; one batch an epoch, so that the tokens alone decide."""
    x, mask = sampled_inputs(statistics, TOPOLOGY.stacks[0])
    part, spec = params["first"], quant.OmniQuantSpec(quant.WeightSpec(None), 3, 40, ADAM)
    searched = quant.awq_block(part, x, mask, 3, BLOCK, quant.AWQSpec(quant.WeightSpec(None), "fc1"))
    learned = initial(part, {"fc1": jnp.ones(WIDTH)}, 0.5, BLOCK, spec)
    trained = quant.omniquant_block(part, learned, x, x, mask, 3, quant.NO_BITS, BLOCK, spec)
    return {**searched.losses, "training": trained.losses}


@pytest.fixture(scope="module")
def expected(params):
    return losses(params, sampled((4, 6), 4))


@pytest.mark.parametrize("shape, room", [((24,), 24), ((3, 2, 2, 2), 3), ((24,), 40)])
def test_axes_between_samples_and_channels_do_not_matter(params, expected, shape, room):
    """Nor does room for samples that nothing filled."""
    statistics = sampled(shape, room)
    quant.awq(3).check(quant.State(params, {}, statistics), TOPOLOGY)
    got = losses(params, statistics)
    for name in expected:
        # Sums of another order may round a weight to the next code.
        assert np.isclose(got[name], expected[name], rtol=1e-3).mean() >= 0.75, (name, got[name], expected[name])


@pytest.mark.parametrize("name", METHODS)
def test_frozen_parameters_give_the_same_in_their_own_structure(params, name):
    observe = linen.observe(Model(), None, quant.channel_ranges(0), TOPOLOGY.first_blocks(), quant.sequences(4))
    statistics = quant.calibrate(observe, {"params": params}, [(TOKENS.reshape(4, 6, WIDTH),)])
    frozen, plain = (
        quant.quantize_state(METHODS[name], tree, statistics, TOPOLOGY) for tree in (freeze(params), params)
    )
    assert isinstance(frozen.params, FrozenDict)
    assert jax.tree.structure(frozen.params) == jax.tree.structure(freeze(params))
    jax.tree.map(np.testing.assert_array_equal, frozen.params.unfreeze(), plain.params)
    jax.tree.map(np.testing.assert_array_equal, quant.expand(quant.pack(frozen.params, frozen.codes)), frozen.params)


class Unit(nn.Module):
    """A block that divides by the length of its input, as normalizations without an epsilon do."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(WIDTH, name="fc1")(nn.LayerNorm(name="norm")(x / jnp.linalg.norm(x, axis=-1, keepdims=True)))


UNIT = quant.Block(linen.ModuleApply(Unit()), ("fc1",), (quant.Pair("norm", ("fc1",)),))
ON_UNITS = {"awq": quant.awq(3), "omniquant": quant.omniquant(3, epochs=2, optimizer=ADAM)}


@pytest.mark.parametrize("method", ON_UNITS)
def test_empty_places_of_a_sample_spoil_nothing(method):
    params = {"only": Unit().init(jax.random.key(0), jnp.ones((1, WIDTH)))["params"]}
    ranges = quant.channel_ranges()
    quantized = []
    for room in (4, 7):
        statistics = sampled((4, 6), room)["first"] | {"fc1": {"input": ranges.update(ranges.empty(TOKENS), TOKENS)}}
        topology = quant.Topology(((("only", UNIT),),))
        state = quant.quantize(ON_UNITS[method], params, {"only": statistics}, topology)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
        quantized.append(state["params"])
    if method == "awq":
        chex.assert_trees_all_close(*quantized, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ON_UNITS)
def test_a_block_that_gives_no_number_is_named(method):
    params = {"only": Unit().init(jax.random.key(0), jnp.ones((1, WIDTH)))["params"]}
    ranges = quant.channel_ranges()
    observer, x = quant.sequences(4), TOKENS.reshape(4, 6, WIDTH).at[1, 2].set(0.0)
    statistics = {"block-input": observer.update(observer.empty(x), x)}
    statistics |= {"fc1": {"input": ranges.update(ranges.empty(TOKENS), TOKENS)}}
    topology = quant.Topology(((("only", UNIT),),))
    with pytest.raises(ValueError, match=r"output of block 'only' has \d+ NaN or infinite values of 192$"):
        quant.quantize(ON_UNITS[method], params, {"only": statistics}, topology)
