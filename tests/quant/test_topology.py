"""What a user states of a model's blocks: containers of every kind, and descriptions that do not fit."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze

from wmq_jax import quant
from wmq_jax.quant import linen, paths

pytestmark = pytest.mark.quick

WIDTH = 6
METHODS = {
    "smoothquant": quant.smoothquant(linear=True),
    "awq": quant.awq(4),
    "omniquant": quant.omniquant(4, epochs=1, batch=4, optimizer=optax.adam(5e-3)),
}
every_method = pytest.mark.parametrize("name", METHODS)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(WIDTH, name="fc2")(nn.relu(nn.Dense(8, name="fc1")(nn.LayerNorm(name="norm")(x))))


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range(2):
            x = Block(name=f"blocks_{i}")(x)
        return x


BLOCK = quant.Block(
    linen.ModuleApply(Block()),
    ("fc1", "fc2"),
    (quant.Pair("norm", ("fc1",)), quant.Pair("fc1", ("fc2",), quant.LINEAR)),
)
TOPOLOGY = quant.Topology(((("blocks_0", BLOCK), ("blocks_1", BLOCK)),))


@pytest.fixture(scope="module")
def setting():
    x = jax.random.normal(jax.random.key(0), (8, 3, WIDTH))
    params = jax.jit(Model().init)(jax.random.key(1), x)["params"]
    # Beside blocks, the default observer is one that can follow the methods' scales.
    return params, quant.calibrate(linen.observe(Model(), blocks=["blocks_0"]), {"params": params}, [(x,)])


def renamed(statistics, pattern, new):
    named = paths.named_leaves(statistics, is_leaf=lambda node: isinstance(node, tuple))
    return paths.nest({re.sub(pattern, new, name): leaf for name, leaf in named.items()})


def of_blocks(path):
    return quant.Topology((tuple((path(i), BLOCK) for i in range(2)),))


CONTAINERS = {
    "list": lambda params: {"blocks": [params["blocks_0"], params["blocks_1"]]},
    "tuple": lambda params: {"blocks": (params["blocks_0"], params["blocks_1"])},
    "FrozenDict": lambda params: freeze({"blocks": {"0": params["blocks_0"], "1": params["blocks_1"]}}),
    "nnx.State": lambda params: nnx.State({"blocks": {i: params[f"blocks_{i}"] for i in range(2)}}),
    "boxes": lambda params: {
        "blocks": [
            jax.tree.map(lambda leaf: nn.Partitioned(leaf, (None,) * leaf.ndim), params[f"blocks_{i}"])
            for i in range(2)
        ]
    },
}


@every_method
@pytest.mark.parametrize("container", CONTAINERS)
def test_blocks_may_lie_in_any_container(name, container, setting):
    params, statistics = setting
    expected = quant.quantize(METHODS[name], params, statistics, TOPOLOGY)["params"]
    held = CONTAINERS[container](params)
    statistics = renamed(statistics, "blocks_", "blocks/")
    found = quant.quantize(METHODS[name], held, statistics, of_blocks(lambda i: f"blocks/{i}"))["params"]
    assert jax.tree.structure(found) == jax.tree.structure(held)
    leaves = {path.replace("blocks_", "blocks/"): leaf for path, leaf in paths.named_leaves(expected).items()}
    for path, leaf in paths.named_leaves(found).items():
        np.testing.assert_array_equal(leaf, leaves[path], err_msg=path)


@every_method
@pytest.mark.parametrize("leaf", ["norm/scale", "norm/bias", "fc1/bias", "fc2/kernel"])
def test_nan_anywhere_in_a_block_is_reported(name, leaf, setting):
    """It would reach the inputs of all later blocks, and choose among the candidates of their searches."""
    params, statistics = setting
    block, owner, field = "blocks_1", *leaf.split("/")
    spoiled = jnp.asarray(params[block][owner][field]).at[0].set(jnp.nan)
    bad = paths.nest({f"{block}/{leaf}": spoiled}, params)
    with pytest.raises(ValueError, match=f"weight '{block}/{leaf}' has [0-9]+ NaN or infinite values"):
        quant.quantize(METHODS[name], bad, statistics, TOPOLOGY)


@every_method
def test_lists_in_a_description_count_as_tuples(name, setting):
    params, statistics = setting
    pairs = [quant.Pair("norm", ["fc1"]), quant.Pair("fc1", ["fc2"], quant.LINEAR)]
    block = quant.Block(linen.ModuleApply(Block()), ["fc1", "fc2"], pairs)
    topology = quant.Topology([[["blocks_0", block], ["blocks_1", block]]])
    assert topology == TOPOLOGY and hash(topology) == hash(TOPOLOGY)
    quant.quantize(METHODS[name], params, statistics, topology)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: quant.Pair("norm", ("fc1")), "a pair's consumers are a tuple, not 'fc1'"),
        (lambda: quant.Block(None, "fc1"), "a block's sites are a tuple, not 'fc1'"),
        (
            lambda: quant.Topology((("blocks_0", BLOCK),)),
            "a topology is a tuple of stacks, a stack is one of (path, Bl",
        ),
        (lambda: quant.Topology(BLOCK), "a topology's stacks are a tuple, not Block("),
    ],
)
def test_descriptions_of_another_form_are_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@every_method
@pytest.mark.parametrize(
    "blocks, message",
    [
        (
            (("blocks_0", dataclasses.replace(BLOCK, sites=("fc2",))),),
            "a pair of block 'blocks_0' has the consumer 'fc1', which is none of the block's sites: fc2",
        ),
        (
            (("blocks_0", dataclasses.replace(BLOCK, pairs=(*BLOCK.pairs, quant.Pair("norm", ("fc2",))))),),
            "two pairs of block 'blocks_0' have the producer 'norm'; name all that it feeds as consumers of one",
        ),
        (
            (
                (
                    "blocks_0",
                    dataclasses.replace(BLOCK, pairs=(*BLOCK.pairs, quant.Pair("fc2", ("fc1",), quant.LINEAR))),
                ),
            ),
            "two pairs of block 'blocks_0' with a producer have the consumer 'fc1'",
        ),
        ((("blocks_0", BLOCK), ("blocks_0", BLOCK)), "the topology names block 'blocks_0' twice"),
    ],
)
def test_descriptions_that_contradict_themselves_are_refused(name, blocks, message, setting):
    with pytest.raises(ValueError, match=message):
        quant.quantize(METHODS[name], *setting, quant.Topology((blocks,)))


class Parallel(nn.Module):
    """What the norm gives goes three ways; between fc1 and fc2 is a GELU."""

    @nn.compact
    def __call__(self, x):
        normed = nn.LayerNorm(name="norm")(x)
        hidden = nn.gelu(nn.Dense(8, name="fc1")(normed)) + nn.Dense(8, name="gate")(normed)
        return x + nn.Dense(WIDTH, name="fc2")(hidden)


@every_method
@pytest.mark.parametrize(
    "pair, message",
    [
        (
            quant.Pair("norm", ("fc1",)),
            "re-scaling 'norm' and 'fc1' changes what block 'parts_1' computes: the pair lacks",
        ),
        (
            quant.Pair("fc1", ("fc2",), quant.LINEAR),
            "re-scaling 'fc1' and 'fc2' changes what block 'parts_1' computes: .* or is not linear",
        ),
        (quant.Pair("norm", ("fc1", "gate")), None),
    ],
)
def test_a_pair_that_does_not_keep_the_float_function_is_refused(name, pair, message, setting):
    """Also in a later block of a stack, whose inputs are what the blocks before it give."""
    params, statistics = setting
    x = quant.block_statistics(statistics)["blocks_0"].inputs
    params = {"blocks_0": params["blocks_0"], "parts_1": jax.jit(Parallel().init)(jax.random.key(2), x)["params"]}
    ranges = quant.channel_ranges()
    seen = {site: {"input": ranges.update(ranges.empty(x), x)} for site in ("fc1", "gate")}
    seen["fc2"] = {"input": quant.site_statistics(statistics)["blocks_1/fc2"]}
    block = quant.Block(linen.ModuleApply(Parallel()), ("fc1", "gate", "fc2"), (pair,))
    model = quant.Topology(((("blocks_0", dataclasses.replace(BLOCK, pairs=BLOCK.pairs[:1])), ("parts_1", block)),))
    state = quant.State(params, {}, {**statistics, "parts_1": seen})
    if message is None or (name == "omniquant" and pair.kind == quant.LINEAR):  # of which OmniQuant makes no use
        METHODS[name].check(state, model)
    else:
        with pytest.raises(ValueError, match=message):
            METHODS[name].check(state, model)


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = Block(name="inner")(x)
        return x, x


@pytest.mark.parametrize("name", ["awq", "omniquant"])
def test_a_block_of_several_outputs_says_which(name, setting):
    params, statistics = setting
    pairs = (quant.Pair("inner/norm", ("inner/fc1",)),)
    params = {f"blocks_{i}": {"inner": params[f"blocks_{i}"]} for i in range(2)}
    statistics = renamed(statistics, "(?<=blocks_[01])(?=/fc)", "/inner")
    topology = lambda apply: quant.Topology(((("blocks_0", quant.Block(apply, ("inner/fc1",), pairs)),),))
    with pytest.raises(ValueError, match="block 'blocks_0' must give an array, not a tuple; ModuleApply"):
        quant.quantize(METHODS[name], params, statistics, topology(linen.ModuleApply(Twice())))
    quant.quantize(METHODS[name], params, statistics, topology(linen.ModuleApply(Twice(), output=0)))


@pytest.mark.parametrize("method", [quant.awq, quant.omniquant])
def test_groups_that_do_not_fit_name_their_weight(method, setting):
    with pytest.raises(
        ValueError, match="weight 'blocks_0/fc1/kernel': the flat layout needs a group_size that divides"
    ):
        quant.quantize(method(4, 7, "flat"), *setting, TOPOLOGY)


@pytest.mark.parametrize("name", ["awq", "omniquant"])
def test_ranges_that_cannot_follow_are_refused_before_a_search(name, setting):
    params, _ = setting
    observe = linen.observe(Model(), observer=quant.minmax(), blocks=["blocks_0"])
    statistics = quant.calibrate(observe, {"params": params}, [(jnp.ones((2, 3, WIDTH)),)])
    if name == "awq":
        message = (
            "the Range of site 'blocks_0/fc1' cannot follow a re-scaling of channels; observe with channel_ranges()"
        )
    else:
        message = "omniquant needs statistics of the channels of site 'blocks_0/fc1'; observe with channel_ranges()"
    with pytest.raises(ValueError, match=re.escape(message)):
        METHODS[name].check(quant.State(params, {}, statistics), TOPOLOGY)


def test_a_block_that_is_not_called_is_named():
    x = jnp.ones((2, 3, WIDTH))
    params = jax.jit(Model().init)(jax.random.key(1), x)["params"]
    with pytest.raises(ValueError, match="the model calls no module at 'block_0', whose input was to be sampled"):
        quant.calibrate(linen.observe(Model(), blocks=["block_0"]), {"params": params}, [(x,)])


def test_a_module_that_is_not_hashable_is_named():
    class Wide(nn.Module):
        widths: list[int]

    with pytest.raises(ValueError, match="^Wide cannot be a block: its field widths is not hashable; write a list as"):
        linen.ModuleApply(Wide([16]))


def test_arguments_that_are_no_methods_settings_are_refused():
    with pytest.raises(ValueError, match="awq: scaled='\\*fc' is no regular expression: nothing to repeat"):
        quant.awq(4, scaled="*fc")
    with pytest.raises(ValueError, match="omniquant's optimizer must be one of optax, such as optax.adam"):
        quant.omniquant(4, epochs=1, optimizer="adam")
    with pytest.raises(TypeError, match=re.escape("rules are a list of rules, ['.*kernel'], not one pattern")):
        quant.quantize(quant.rtn(4, rules=".*kernel"), {"kernel": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match="weight 'kernel' has no values: its shape is \\(0, 4\\)"):
        quant.quantize(quant.rtn(4), {"kernel": jnp.ones((0, 4))})
    with pytest.raises(
        ValueError, match="no parameter is called 'kernel', whose owners are the sites; name them: sites="
    ):
        quant.quantize(quant.dynamic_activations(8), {"fc": {"w": jnp.ones((2, 2))}})
