"""Kernels of several axes: methods that look at blocks treat a DenseGeneral as the matrix that it is."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wmq_jax import quant
from wmq_jax.quant import linen, paths
from wmq_jax.quant.matrices import as_matrices, reshape_like

pytestmark = pytest.mark.quick

WIDTH, HEADS, SIZE = 6, 2, 4
INNER = HEADS * SIZE
PROJECTIONS = ("attention/query", "attention/key", "attention/value", "attention/out")


class Attention(nn.Module):
    """Flax's own attention: kernels (C, heads, size) and (heads, size, C)."""

    @nn.compact
    def __call__(self, x):
        normal = nn.LayerNorm(name="norm")(x)
        return x + nn.MultiHeadDotProductAttention(HEADS, qkv_features=INNER, name="attention")(normal)


def by_hand(params, x):
    """The same with matrices and taps."""
    norm = params["norm"]
    y = jax.nn.standardize(x, epsilon=1e-6) * norm["scale"] + norm["bias"]
    dense = lambda x, name: (
        quant.tap(x, name) @ paths.subtree(params, name)["kernel"] + paths.subtree(params, name)["bias"]
    )
    q, k, v = (dense(y, name).reshape(*y.shape[:2], HEADS, SIZE) for name in PROJECTIONS[:3])
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / SIZE**0.5)
    return x + dense(jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*x.shape[:2], INNER), PROJECTIONS[3])


PAIRS = (quant.Pair("norm", PROJECTIONS[:3]), quant.Pair("attention/value", ("attention/out",), quant.LINEAR))
SPARED = (("attention/query", INNER), ("attention/key", INNER))
AXES = (*((name, 1) for name in PROJECTIONS[:3]), ("attention/out", 2))
GENERAL = quant.Block(linen.ModuleApply(Attention()), PROJECTIONS, PAIRS, SPARED, AXES)
MATRICES = quant.Block(by_hand, PROJECTIONS, PAIRS, SPARED)
ADAM = optax.adam(5e-3)


def topology(block):
    return quant.Topology(((("block", block),),))


@pytest.fixture(scope="module")
def setting():
    """(params of the Linen block, the same as matrices, statistics)"""
    x = jax.random.normal(jax.random.key(0), (8, 5, WIDTH)).at[..., 2].multiply(6)
    params = jax.jit(Attention().init)(jax.random.key(1), x)["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params)
    _, matrices = as_matrices(GENERAL, params)
    function = lambda params, x: by_hand(params["block"], quant.tap(x, "block"))
    observe = quant.observe(by_hand, quant.channel_ranges(tokens=8))
    sites = quant.calibrate(observe, {"params": matrices}, [(x,)])
    observe = quant.observe(function, quant.channel_ranges(), ["block"], quant.sequences(8))
    blocks = quant.calibrate(observe, {"params": {"block": matrices}}, [(x,)])["block"]
    return params, matrices, {"block": {**sites, "block-input": blocks["block-input"]}}


def test_the_view_is_the_same_function(setting):
    params, matrices, statistics = setting
    view, seen = as_matrices(GENERAL, params)
    x = quant.block_statistics(statistics)["block"].inputs
    np.testing.assert_allclose(view.apply(seen, x), Attention().apply({"params": params}, x), atol=1e-6)
    np.testing.assert_allclose(view.apply(seen, x), by_hand(matrices, x), atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, reshape_like(seen, params), params)
    assert as_matrices(MATRICES, matrices) == (MATRICES, matrices)
    # What Linen observes of the output projection are the channels of all heads.
    found = quant.calibrate(linen.observe(Attention(), None, quant.channel_ranges()), {"params": params}, [(x,)])
    for site in PROJECTIONS:
        expected = paths.subtree(statistics["block"], site)["input"]
        np.testing.assert_allclose(paths.subtree(found, site)["input"].maximum, expected.maximum, atol=1e-5)


@pytest.mark.parametrize(
    "transform",
    [
        quant.smoothquant(0.5, linear=True),
        # A grid that reaches the ends: on others, the largest weight of a group lies between codes, and an ulp decides.
        quant.awq(4, 4, grid_fn=quant.range_grid),
        quant.omniquant(4, epochs=1, optimizer=ADAM, act_bits=8),
    ],
    ids=["smoothquant", "awq", "omniquant"],
)
def test_methods_treat_a_general_kernel_as_its_matrix(setting, transform):
    params, matrices, statistics = setting
    run = lambda block, params: quant.quantize(transform, {"block": params}, statistics, topology(block))["params"]
    general, expected = run(GENERAL, params)["block"], run(MATRICES, matrices)["block"]
    assert jax.tree.map(jnp.shape, general) == jax.tree.map(jnp.shape, params)
    _, general = as_matrices(GENERAL, general)
    x = quant.block_statistics(statistics)["block"].inputs
    exact = by_hand(matrices, x)
    error = float(jnp.abs(by_hand(expected, x) - exact).max())
    np.testing.assert_allclose(by_hand(general, x), by_hand(expected, x), atol=max(1e-4, 0.05 * error))
    changed = [
        name
        for name, leaf in paths.named_leaves(expected).items()
        if (leaf != paths.named_leaves(matrices)[name]).any()
    ]
    assert {f"{name}/kernel" for name in PROJECTIONS} - {"attention/query/kernel"} <= set(changed)


@pytest.mark.parametrize("transform", [quant.awq(4, 4), quant.omniquant(3)], ids=["awq", "omniquant"])
def test_integers_of_general_kernels_have_their_shapes(setting, transform):
    params, _, statistics = setting
    state = quant.quantize_state(transform, {"block": params}, statistics, topology(GENERAL))
    packed = quant.pack(state.params, state.codes)
    assert packed["block"]["attention"]["out"]["kernel"].shape == (HEADS, SIZE, WIDTH)
    jax.tree.map(np.testing.assert_array_equal, quant.expand(packed), state.params)


def test_a_method_that_does_not_apply_names_the_site(setting):
    params, _, statistics = setting
    unstated = dataclasses.replace(GENERAL, input_axes=AXES[:3])
    wrong = dataclasses.replace(GENERAL, input_axes=(*AXES[:3], ("attention/out", 1)))
    untapped = quant.Block(lambda params, x: x, PROJECTIONS, PAIRS, input_axes=AXES)
    for make in (quant.smoothquant, lambda: quant.awq(4), lambda: quant.omniquant(4)):
        with pytest.raises(ValueError, match=r"input_axes says how many are inputs; 'block/attention/out/kernel' has"):
            quant.quantize(make(), {"block": params}, statistics, topology(unstated))
    for make in (lambda: quant.smoothquant(linear=True), lambda: quant.awq(4), lambda: quant.omniquant(4)):
        with pytest.raises(ValueError, match="cannot treat site 'block/attention/out': its kernel has 2 inputs, but"):
            quant.quantize(make(), {"block": params}, statistics, topology(wrong))
    with pytest.raises(ValueError, match="block 'block' has no tap 'attention/query'; its taps are none"):
        quant.quantize(quant.awq(4), {"block": params}, statistics, topology(untapped))
    kernels = {"block": {"conv": {"kernel": jnp.ones((3, WIDTH, WIDTH))}}}
    convolution = quant.Block(lambda params, x: quant.tap(x, "conv"), ("conv",), input_axes=(("conv", 2),))
    with pytest.raises(ValueError, match="awq cannot treat site 'block/conv': its kernel has 18 inputs, but"):
        quant.quantize(quant.awq(4), kernels, statistics, topology(convolution))
