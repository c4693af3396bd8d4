"""Flax NNX models are quantized and calibrated without being edited, by taps in a copy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wmq_jax import quant
from wmq_jax.quant import nnx as adapter
from wmq_jax.quant import paths


class EveryKind(nnx.Module):
    """One of each intercepted kind, one of them held twice, and what else a model has."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.linear = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
        self.again = self.linear[0]
        self.attention = nnx.MultiHeadAttention(num_heads=2, in_features=4, decode=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.einsum = nnx.Einsum("abc,cd->abd", (4, 3), (3,), rngs=rngs)

    @nnx.jit
    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x))).reshape(x.shape[0], -1, 4)
        for linear in (*self.linear, self.again):
            x = nnx.gelu(linear(inputs=x))
        return self.einsum(self.dropout(self.attention(x)))


SITES = {"conv", "linear/0", "linear/1", "einsum", *(f"attention/{name}" for name in ("query", "key", "value", "out"))}


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(1), (3, 4, 4, 1))


@pytest.fixture(scope="module")
def setting(x):
    """(model, apply, params, statistics)"""
    model = EveryKind(nnx.Rngs(0))
    model.eval()
    apply, params = adapter.functional(model)
    observe = quant.observe(apply, quant.channel_ranges())
    return model, apply, params, quant.calibrate(observe, {"params": params}, [(x,), (2 * x,)])


def test_every_kind_of_layer_is_a_site(setting, x):
    model, apply, params, statistics = setting
    seen = quant.site_statistics(statistics)
    aliases = {"again"} & set(seen)  # which of its two paths comes first is Flax's choice
    assert {"linear/0" if site in aliases else site for site in seen} == SITES
    np.testing.assert_allclose(jax.jit(apply)(params, x), model(x), atol=1e-6)
    quantized, plain = jax.jit(quant.quantized_apply(apply)), model(x)
    for site in seen:
        one = quant.quantize(quant.static_activations(2, rules=[site]), params, statistics)["quant"]
        off = quant.quantize(quant.static_activations(None), params, statistics)["quant"]
        leaves = paths.named_leaves(one, is_leaf=lambda node: isinstance(node, quant.Quantizer))
        assert jnp.abs(quantized({"params": params, "quant": paths.nest(leaves, off)}, x) - plain).max() > 1e-3, site
    assert quantized._cache_size() == 1, "bits are data"
    # The heads that an output projection contracts together are its channels.
    assert seen["attention/out"].minimum.shape == (4,)


def test_the_model_itself_stays_as_it_is(setting, x):
    model, _, params, _ = setting
    assert type(model.conv) is nnx.Conv and not hasattr(model.conv, "tap_name")
    before = model(x)
    adapter.with_params(model, jax.tree.map(jnp.zeros_like, params))
    np.testing.assert_array_equal(model(x), before)


def test_quantized_parameters_go_back_into_a_model(setting, x):
    model, apply, params, _ = setting
    quantized = quant.quantize(quant.rtn(3, output_axes=(-1,)), params)["params"]
    copy = adapter.with_params(model, quantized)
    assert type(copy) is EveryKind and type(copy.conv) is nnx.Conv
    np.testing.assert_allclose(copy(x), jax.jit(apply)(quantized, x), atol=1e-6)
    assert jnp.abs(copy(x) - model(x)).max() > 1e-3


def test_transforms_take_state_trees_by_the_same_rules(setting):
    model, _, params, _ = setting
    state = nnx.state(model, nnx.Param)
    rules = ["linear/.*/kernel", ("attention/.*/kernel", {"output_axes": (-1,)})]
    result = quant.quantize(quant.rtn(3, rules=rules), state)["params"]
    assert jax.tree.structure(result) == jax.tree.structure(state)
    expected = paths.named_leaves(quant.quantize(quant.rtn(3, rules=rules), params)["params"])
    for name, leaf in paths.named_leaves(result).items():
        np.testing.assert_array_equal(leaf, expected[name])


class Mlp(nnx.Module):
    def __init__(self, rngs):
        self.fc1 = nnx.Linear(6, 8, rngs=rngs)
        self.fc2 = nnx.Linear(8, 6, rngs=rngs)

    def __call__(self, x):
        return x + self.fc2(jnp.tanh(self.fc1(x)))


class Stack(nnx.Module):
    """Blocks in a scan: one module, stacked parameters."""

    def __init__(self, rngs):
        self.blocks = nnx.vmap(Mlp, in_axes=0, out_axes=0)(rngs.split(2))

    def __call__(self, x):
        return nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.blocks)


def test_scanned_blocks_have_bits_of_their_own():
    x = jax.random.normal(jax.random.key(2), (5, 6))
    apply, params = adapter.functional(Stack(nnx.Rngs(0)))
    statistics = quant.calibrate(quant.observe(apply), {"params": params}, [(x,)])
    bits = jnp.array([3, 8])
    transform = quant.chain(quant.rtn(4, output_axes=(0, -1)), quant.static_activations(bits))
    variables = quant.quantize(transform, params, statistics)

    def by_hand(x):
        for layer in range(2):
            tree = jax.tree.map(lambda leaf: leaf[layer], (variables["params"]["blocks"], variables["quant"]["blocks"]))
            dense = lambda x, name: (
                quant.fake_quant(x, tree[1][name]["input"]) @ tree[0][name]["kernel"] + tree[0][name]["bias"]
            )
            x = x + dense(jnp.tanh(dense(x, "fc1")), "fc2")
        return x

    np.testing.assert_allclose(jax.jit(quant.quantized_apply(apply))(variables, x), jax.jit(by_hand)(x), atol=1e-5)


def test_blocks_are_functions_of_a_topology():
    """Equal blocks are equal functions, and calibration samples what methods ask for."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.blocks = nnx.List([Mlp(rngs), Mlp(rngs)])

        def __call__(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    model, x = Model(nnx.Rngs(0)), jax.random.normal(jax.random.key(3), (8, 4, 6))
    functions = [adapter.functional(block)[0] for block in model.blocks]
    assert functions[0] == functions[1] and hash(functions[0]) == hash(functions[1])
    block = quant.Block(functions[0], ("fc1", "fc2"), (quant.Pair(None, ("fc1",)),))
    topology = quant.Topology(((("blocks/0", block), ("blocks/1", block)),))
    apply, params = adapter.functional(model, blocks=topology.first_blocks())
    observe = quant.observe(apply, blocks=topology.first_blocks(), block_observer=quant.sequences(8))
    statistics = quant.calibrate(observe, {"params": params}, [(x,)])
    assert sorted(quant.site_statistics(statistics)) == sorted(
        f"blocks/{i}/{fc}" for i in (0, 1) for fc in ("fc1", "fc2")
    )
    awq = quant.quantize(quant.awq(3), params, {"blocks": {"0": statistics["blocks"]["0"]}}, topology)["params"]
    exact = apply(params, x)
    error = lambda params: float(((apply(params, x) - exact) ** 2).mean())
    assert 0 < error(awq) < error(quant.quantize(quant.rtn(3), params)["params"])


def test_what_is_wrong_is_named(setting):
    model, apply, params, _ = setting
    with pytest.raises(ValueError, match="the model has no module 'blocks/7'; its modules are"):
        adapter.functional(model, blocks=["blocks/7"])
    with pytest.raises(ValueError, match="the parameters lack 'conv/bias', which the model has"):
        apply({**params, "conv": {"kernel": params["conv"]["kernel"]}}, None)


class Halved(nnx.Linear):
    """A subclass that does something to its input: what meets the kernel is another."""

    def __call__(self, inputs):
        return super().__call__(nnx.relu(inputs) / 2)


class Masked(nnx.Module):
    def __init__(self, rngs):
        self.halved = Halved(3, 2, rngs=rngs)

    def __call__(self, x, mask=None):
        return self.halved(inputs=x if mask is None else x * mask)


class Around(nnx.Module):
    def __init__(self, rngs):
        self.inner = Masked(rngs)

    def __call__(self, x):
        return self.inner(mask=jnp.ones_like(x), x=x)


def test_a_subclass_is_tapped_where_its_kernel_is_met_and_a_block_at_its_first_parameter():
    x = jax.random.normal(jax.random.key(0), (4, 3))
    apply, params = adapter.functional(Around(nnx.Rngs(0)), blocks=["inner"])
    observe = quant.observe(apply, quant.channel_ranges(), blocks=["inner"])
    statistics = quant.calibrate(observe, {"params": params}, [(x,)])
    seen, met = quant.site_statistics(statistics)["inner/halved"], nnx.relu(x) / 2
    assert seen.count == 1
    np.testing.assert_allclose(seen.maximum, met.max(0), rtol=1e-6)
    np.testing.assert_allclose(quant.block_statistics(statistics)["inner"].inputs[:4].sum(), x.sum(), rtol=1e-5)
