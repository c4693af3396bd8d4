"""Transforms over any pytree: composition, rules, checks on the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmq_jax import quant


def params(seed=0):
    rng = np.random.default_rng(seed)
    kernel = lambda *shape: jnp.asarray(rng.normal(size=shape).astype(np.float32))
    return {
        "embed": {"kernel": kernel(6, 8), "bias": kernel(8)},
        "blocks": [{"kernel": kernel(8, 8)}, {"kernel": kernel(8, 4)}],
        "scale": kernel(4),
    }


def statistics(low=-1.0, high=2.0, count=1):
    seen = quant.Range(jnp.int32(count), jnp.float32(low), jnp.float32(high))
    return {"embed": {"input": seen}, "blocks": {"0": {"input": seen}}}


def test_rtn_touches_the_kernels_and_nothing_else():
    before = params()
    after = quant.quantize(quant.rtn(4), before)["params"]
    assert jax.tree.structure(after) == jax.tree.structure(before)
    expected = jax.tree.map(lambda leaf: leaf, before)
    expected["embed"]["kernel"] = quant.fake_quant_weight(before["embed"]["kernel"], quant.WeightSpec(4))
    for i in (0, 1):
        expected["blocks"][i]["kernel"] = quant.fake_quant_weight(before["blocks"][i]["kernel"], quant.WeightSpec(4))
    jax.tree.map(np.testing.assert_array_equal, after, expected)


def test_rules_give_sites_their_own_settings():
    before = params()
    rules = [("embed/.*", None), ("blocks/1/kernel", {"bits": 8, "group_size": 4}), ".*/kernel"]
    with pytest.raises(ValueError, match="bias"):
        quant.quantize(quant.rtn(3, rules=["embed/.*"]), before)
    after = quant.quantize(quant.rtn(3, rules=rules), before)["params"]
    np.testing.assert_array_equal(after["embed"]["kernel"], before["embed"]["kernel"])
    for i, spec in enumerate((quant.WeightSpec(3), quant.WeightSpec(8, 4))):
        expected = quant.fake_quant_weight(before["blocks"][i]["kernel"], spec)
        np.testing.assert_array_equal(after["blocks"][i]["kernel"], expected)


def test_a_rule_without_a_match_is_an_error_when_checked_and_when_traced():
    transform = quant.rtn(4, rules=["decoder/kernel"])
    with pytest.raises(ValueError, match=r"'decoder/kernel'\) applies to nothing"):
        quant.quantize(transform, params())
    with pytest.raises(ValueError, match=r"'decoder/kernel'\) applies to nothing"):
        jax.jit(transform.apply)(quant.State(params(), {}, None))


def test_chain_is_one_after_the_other_and_empty_is_the_identity():
    before = params()
    some, others = quant.rtn(6, rules=["embed/kernel"]), quant.rtn(3, rules=["blocks/.*/kernel"])
    chained = quant.quantize(quant.chain(some, others), before)["params"]
    stepwise = quant.quantize(others, quant.quantize(some, before)["params"])["params"]
    jax.tree.map(np.testing.assert_array_equal, chained, stepwise)
    assert quant.quantize(quant.chain(), before) == {"params": before, "quant": {}}


def test_transforms_add_quantizers_and_a_later_one_wins():
    transform = quant.chain(
        quant.static_activations(8),
        quant.dynamic_activations(4, rules=["embed"]),
    )
    tree = quant.quantize(transform, params(), statistics())["quant"]
    assert tree["blocks"]["0"]["input"] == quant.static_quantizer(-1.0, 2.0, 8)
    assert tree["embed"]["input"] == quant.per_token_quantizer(4)
    assert sorted(tree) == ["blocks", "embed"]


def test_dynamic_activations_find_the_owners_of_kernels():
    assert quant.kernel_sites(params()) == ["blocks/0", "blocks/1", "embed"]
    tree = quant.quantize(quant.dynamic_activations(8), params())["quant"]
    assert sorted(tree["blocks"]) == ["0", "1"]
    named = quant.quantize(quant.dynamic_activations(8, sites=["softmax"]), params())["quant"]
    assert sorted(named) == ["softmax"]


def test_a_model_that_is_one_kernel_has_one_site():
    tree = quant.quantize(quant.dynamic_activations(8), {"kernel": jnp.ones((2, 2))})["quant"]
    assert sorted(tree) == ["input"]


def test_bits_may_be_traced_through_a_whole_chain():
    before = params()
    transform = lambda bits: quant.chain(quant.rtn(bits, 4), quant.static_activations(bits))
    apply = lambda bits: transform(bits).apply(quant.State(before, {}, statistics()))
    widths = jnp.array([2, 4, 8, quant.NO_BITS])
    batched = jax.jit(jax.vmap(apply))(widths)
    for i, bits in enumerate(widths.tolist()):
        alone = quant.quantize(transform(bits), before, statistics())
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[i], b), batched.params, alone["params"])
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[i], b), batched.quant, alone["quant"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_bad_weights_are_named(value):
    bad = params()
    bad["blocks"][1]["kernel"] = bad["blocks"][1]["kernel"].at[2, 3].set(value)
    with pytest.raises(ValueError, match=r"weight 'blocks/1/kernel' has 1 NaN or infinite values of 32"):
        quant.quantize(quant.rtn(4), bad)


def test_weights_that_cannot_be_quantized_are_named():
    integers = {"a": {"kernel": jnp.ones((2, 2), jnp.int32)}}
    with pytest.raises(ValueError, match="weight 'a/kernel' is int32, not floating point"):
        quant.quantize(quant.rtn(4), integers)
    with pytest.raises(ValueError, match="weight 'blocks/0/kernel': the flat layout needs"):
        quant.quantize(quant.rtn(4, 7, layout="flat"), params())


def test_bad_statistics_are_named():
    with pytest.raises(ValueError, match="need calibration statistics; got None"):
        quant.quantize(quant.static_activations(8), params())
    with pytest.raises(ValueError, match="calibration statistic 'embed/maximum' has 1 NaN or infinite values"):
        quant.quantize(quant.static_activations(8, rules=["embed"]), params(), statistics(high=np.nan))
    with pytest.raises(ValueError, match="site 'embed' was never called during calibration"):
        quant.quantize(quant.static_activations(8, rules=["embed"]), params(), statistics(0.0, 0.0, count=0))
    with pytest.raises(ValueError, match="bits must be"):
        quant.static_activations(17)


def test_quantize_may_be_compiled_and_differentiated():
    before, seen = params(), statistics()
    transform = quant.chain(quant.rtn(4, 4), quant.static_activations(8))
    got = jax.jit(lambda params, seen: quant.quantize(transform, params, seen))(before, seen)
    jax.tree.map(np.testing.assert_array_equal, got, quant.quantize(transform, before, seen))
    with pytest.raises(ValueError, match="the flat layout needs"):  # of shapes, which are known
        jax.jit(lambda params: quant.quantize(quant.rtn(4, 7, layout="flat"), params))(before)

    def straight_through(params):
        rounded = quant.quantize(transform, params, seen)["params"]
        return jax.tree.map(lambda exact, new: exact + jax.lax.stop_gradient(new - exact), params, rounded)

    def loss(params):
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(straight_through(params)))

    expected = jax.tree.map(lambda leaf: 2 * leaf, got["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), jax.jit(jax.grad(loss))(before), expected)


@pytest.mark.parametrize("method", [quant.rtn, quant.omse])
@pytest.mark.parametrize("shape", [(2, 5, 3), (3, 3, 4, 6)])
def test_kernels_of_more_axes_say_which_are_outputs(method, shape):
    """No shape tells a convolution from scanned layers or heads."""
    kernel = {"layers": {"kernel": jnp.ones(shape)}}
    sentence = (
        rf"^weight 'layers/kernel': a kernel of {len(shape)} axes needs output_axes, those with scales of their own: "
        r"\(-1,\) for a convolution \(\(-2,\) with transpose_kernel=True\), \(-2, -1\) for heads and their features, "
        r"\(0, -1\) for scanned layers$"
    )
    with pytest.raises(ValueError, match=sentence):
        quant.quantize(method(4), kernel)
    quant.quantize(method(4, output_axes=(0, -1)), kernel)


@pytest.mark.parametrize("name, method", [("awq", quant.awq), ("omniquant", quant.omniquant)])
def test_a_topology_without_blocks_is_refused(name, method):
    for transform, called in ((method(4), name), (quant.smoothquant(), "smoothquant")):
        with pytest.raises(ValueError, match=f"^{called} treats the blocks of a topology, but this one has none$"):
            quant.quantize(transform, params(), {}, quant.Topology(()))
