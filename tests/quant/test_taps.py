"""Taps: a hand-written function is observed and quantized wherever its taps lie, and nothing else ever is."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmq_jax import quant
from wmq_jax.quant import tap

pytestmark = pytest.mark.quick


@jax.custom_jvp
def double(x):
    return 2 * x


double.defjvp(lambda primals, tangents: (2 * primals[0], 2 * tangents[0]))

# Where a tap may lie: name -> function of a mark at the site and of x (4, 3).
PLACES = {
    "straight": lambda mark, x: double(jnp.tanh(mark(x))),
    "jit": lambda mark, x: jax.jit(lambda x: mark(x) + jax.nn.relu(x))(x),
    "checkpoint": lambda mark, x: jax.checkpoint(lambda x: jnp.sin(mark(x)))(x),
    "scan": lambda mark, x: jax.lax.scan(lambda c, row: (mark(c) * row, c.sum()), x, x[:3], unroll=2),
    "scan in a scan": lambda mark, x: jax.lax.scan(
        lambda c, row: (jax.lax.scan(lambda c, one: (mark(c) + one, None), c, row)[0], None), x, x[:2], reverse=True
    )[0],
    "loop": lambda mark, x: jax.lax.fori_loop(0, 3, lambda i, c: mark(c) * (i + 0.5), x),
    "while": lambda mark, x: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, 0.9 * mark(c[1])), (0, x))[1],
    "cond": lambda mark, x: jax.lax.cond(x.sum() > -1e9, lambda x: 2 * mark(x), lambda x: x, x),
    "while under vmap": lambda mark, x: jax.vmap(
        lambda row: jax.lax.while_loop(lambda c: c[0] < 4, lambda c: (c[0] + 1, 0.9 * mark(c[1])), (row.argmax(), row))[
            1
        ]
    )(x),
    "scan and outside of it": lambda mark, x: jax.lax.scan(lambda c, row: (mark(c) * row, c.sum()), mark(x), x[:3]),
    "vmap": lambda mark, x: jax.vmap(lambda x: mark(x) * 3)(x),
}
every_place = pytest.mark.parametrize("function", PLACES.values(), ids=PLACES)


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), (4, 3))


def tapped(function):
    return lambda params, x: function(lambda value: tap(value, "site"), x)


@every_place
def test_a_tap_is_the_identity_and_compiles_to_nothing(function, x):
    plain = jax.jit(lambda x: function(lambda value: value, x))
    marked = jax.jit(lambda x: tapped(function)(None, x))
    assert marked.lower(x).as_text().replace("jit__lambda_", "") == plain.lower(x).as_text().replace("jit__lambda_", "")
    assert tap(x, "site") is x


@every_place
def test_quantizing_equals_quantizing_by_hand(function, x):
    quantizer = quant.static_quantizer(-1.0, 1.5, 3)
    rounding = quant.straight_through_round
    variables = {"params": None, "quant": {"site": {"input": quantizer}}}
    apply = quant.quantized_apply(tapped(function), rounding)
    by_hand = lambda x: function(lambda value: quant.fake_quant(value, quantizer, rounding), x)
    # With derivatives: what is differentiated is the quantized function.
    run = lambda function: jax.jit(lambda x: jax.jvp(function, (x,), (jnp.cos(x),)))(x)
    got, expected = run(lambda x: apply(variables, x)), run(by_hand)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, expected)
    exact = function(lambda value: value, x)
    assert any(jnp.abs(a - b).max() > 1e-2 for a, b in zip(jax.tree.leaves(got[0]), jax.tree.leaves(exact)))


@every_place
def test_observing_sees_what_passes(function, x):
    seen = []
    with jax.disable_jit():  # loops and branches in Python: values are there to look at
        watch = lambda value: jax.debug.callback(lambda v: seen.append(np.asarray(v)), value) or value
        jax.block_until_ready(function(watch, x))
        jax.effects_barrier()
    found = quant.calibrate(quant.observe(tapped(function)), {"params": None}, [(x,)])["site"]["input"]
    assert np.asarray(found.minimum).min() == pytest.approx(min(value.min() for value in seen), rel=1e-6)
    assert np.asarray(found.maximum).max() == pytest.approx(max(value.max() for value in seen), rel=1e-6)
    again = quant.calibrate(quant.observe(tapped(function)), {"params": None}, [(x,), (2 * x,)])["site"]["input"]
    assert (np.asarray(again.count) == 2 * np.asarray(found.count)).all()


def test_a_gradient_inside_sees_rounding_and_clipping_as_the_identity(x):
    """Quantize first, then differentiate: the other way round, derivatives are those of the tap."""
    variables = {"params": None, "quant": {"site": {"input": quant.static_quantizer(-1.0, 1.0, 3)}}}
    loss = lambda params, x: (tap(x, "site") ** 2).sum()
    inside = quant.quantized_apply(lambda params, x: jax.grad(lambda x: loss(None, x))(x))(variables, x)
    np.testing.assert_allclose(inside, 2 * quant.fake_quant(x, variables["quant"]["site"]["input"]), rtol=1e-6)


def test_compiled_functions_neither_keep_quantizers_nor_miss_them(x):
    inner = jax.jit(lambda x: tap(x, "site") * 1.0)
    variables = {"params": None, "quant": {"site": {"input": quant.static_quantizer(-1.0, 1.0, 2)}}}
    expected = quant.fake_quant(x, variables["quant"]["site"]["input"])
    outer = jax.jit(quant.quantized_apply(lambda params, x: inner(x)))
    for _ in range(2):
        np.testing.assert_array_equal(inner(x), x)
        np.testing.assert_array_equal(outer(variables, x), expected)
        np.testing.assert_array_equal(quant.quantized_apply(lambda params, x: inner(x))(variables, x), expected)


def test_threads_do_not_see_each_other(x):
    apply = quant.quantized_apply(lambda params, x: jnp.tanh(tap(x, "site")))

    def run(bits):
        quantizers = {"site": {"input": quant.static_quantizer(-1.0, 1.0, bits)}}
        return apply({"params": None, "quant": quantizers}, x)

    widths = [2, 3, 4, 8] * 4
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, widths))
    for bits, result in zip(widths, together):
        np.testing.assert_array_equal(result, run(bits))


def network(params, x, scale=1.0):
    """Two layers in a scan and a last one."""
    x, _ = jax.lax.scan(lambda x, kernel: (jnp.tanh(tap(x, "layers") @ kernel), None), x, params["layers"]["kernel"])
    return scale * tap(x, "last") @ params["last"]["kernel"]


@pytest.fixture(scope="module")
def params():
    first, second = jax.random.split(jax.random.key(1))
    return {
        "layers": {"kernel": jax.random.normal(first, (2, 3, 3))},
        "last": {"kernel": jax.random.normal(second, (3, 5))},
    }


def test_layers_in_a_scan_have_statistics_and_bits_of_their_own(params, x):
    statistics = quant.calibrate(quant.observe(network, quant.channel_ranges(tokens=4)), {"params": params}, [(x,)])
    assert statistics["layers"]["input"].tokens.shape == (2, 4, 3)
    bits = jnp.array([2, 8])
    transform = quant.chain(
        quant.static_activations(bits, rules=["layers"]), quant.dynamic_activations(4, rules=["last"])
    )
    variables = quant.quantize(transform, params, statistics)
    exact = hidden = x
    for layer in range(2):
        quantizer = quant.static_quantizer(exact.min(), exact.max(), int(bits[layer]))
        hidden = jnp.tanh(quant.fake_quant(hidden, quantizer) @ params["layers"]["kernel"][layer])
        exact = jnp.tanh(exact @ params["layers"]["kernel"][layer])
    expected = 2 * quant.fake_quant(hidden, quant.per_token_quantizer(4)) @ params["last"]["kernel"]
    apply = jax.jit(quant.quantized_apply(network))
    np.testing.assert_allclose(apply(variables, x, scale=2.0), expected, atol=1e-6)
    # One quantizer without a layer axis serves all layers; bits are data.
    shared = quant.quantize(quant.dynamic_activations(3), params)
    assert jnp.abs(apply(shared, x) - network(params, x)).max() > 1e-2
    before = apply._cache_size()
    apply(quant.quantize(quant.dynamic_activations(8), params), x)
    assert apply._cache_size() == before


def test_iterations_that_share_have_one_statistic_and_one_quantizer(x):
    """Elements of a batch that `lax.map` goes through: none may have a range of its own."""
    rows = x * jnp.array([[0.1], [1], [10], [100]])
    function = lambda params, rows: jax.lax.map(lambda row: tap(row, "fc") @ params["fc"]["kernel"], rows)
    params = {"fc": {"kernel": jnp.eye(3)}}
    batches = [(rows,), (-rows,)]
    seen = quant.site_statistics(quant.calibrate(quant.observe(function, shared=["f."]), {"params": params}, batches))
    assert seen["fc"].count == 8 and seen["fc"].maximum == jnp.abs(rows).max() == -seen["fc"].minimum
    own = quant.site_statistics(quant.calibrate(quant.observe(function, shared=["f"]), {"params": params}, batches))
    np.testing.assert_array_equal(own["fc"].maximum, jnp.abs(rows).max(1))
    variables = quant.quantize(quant.static_activations(4), params, {"fc": {"input": seen["fc"]}})
    apply = jax.jit(quant.quantized_apply(function))
    np.testing.assert_array_equal(apply(variables, rows[::-1]), apply(variables, rows)[::-1])
    np.testing.assert_array_equal(apply(variables, rows[:2]), apply(variables, rows)[:2])


def test_quantizers_of_parts_that_are_not_called_wait(x):
    params = {name: {"kernel": jnp.eye(3)} for name in ("encode", "decode")}
    variables = quant.quantize(quant.dynamic_activations(4), params)
    encode = quant.quantized_apply(lambda params, x: tap(x, "encode") @ params["encode"]["kernel"])
    expected = quant.fake_quant(x, quant.per_token_quantizer(4))
    np.testing.assert_array_equal(encode(variables, x), expected)
    del variables["params"]["decode"]
    with pytest.raises(ValueError, match="the function has no tap 'decode'; its taps are encode"):
        encode(variables, x)


def test_layers_that_share_a_kernel_are_all_quantized(x):
    """Parameters name one of them; calibration sees both."""
    function = lambda params, x: (
        tap(jnp.tanh(tap(x, "emb") @ params["emb"]["kernel"]), "head") @ params["emb"]["kernel"].T
    )
    params = {"emb": {"kernel": jnp.eye(3)}}
    statistics = quant.calibrate(quant.observe(function), {"params": params}, [(x,)])
    sites = lambda *given: sorted(quant.quantize(quant.dynamic_activations(4), params, *given)["quant"])
    assert sites(statistics) == ["emb", "head"] and sites() == ["emb"]


def test_a_token_stays_a_token_under_vmap(x):
    """Whatever axis is mapped, the last axis of what a site sees is its channels."""
    variables = {"params": None, "quant": {"site": {"input": quant.per_token_quantizer(3)}}}
    function = lambda params, x: tap(x, "site")
    for axis in (0, 1, 2):
        stack = jnp.stack([x, 5 * x], axis)
        outside = lambda x: quant.quantized_apply(function)(variables, x)
        inside = quant.quantized_apply(lambda params, x: jax.vmap(lambda x: function(None, x), axis, axis)(x))
        np.testing.assert_array_equal(inside(variables, stack), jax.vmap(outside, axis, axis)(stack))


def test_arguments_that_are_no_arrays_are_left_alone(x):
    def function(params, x, mode, *, flag):
        assert mode == "plain" and not flag
        return {"out": tap(x, "site"), "nothing": None}

    for flag in (False, np.bool_(False)):
        out = quant.quantized_apply(function)({"params": None}, x, "plain", flag=flag)
        np.testing.assert_array_equal(out["out"], x)
        assert out["nothing"] is None


def test_what_is_wrong_is_named(params, x):
    apply = quant.quantized_apply(network)
    quantizer = quant.static_quantizer(0.0, 1.0, 4)
    with pytest.raises(ValueError, match="the function has no tap 'lost'; its taps are layers, last"):
        apply({"params": params, "quant": {"lost": {"input": quantizer}}}, x)
    stacked = quant.static_quantizer(jnp.zeros(2), jnp.ones(2), 4)
    with pytest.raises(
        ValueError, match=r"site 'last' has quantizers of shape \(2,\), but is in no scan of that length"
    ):
        apply({"params": params, "quant": {"last": {"input": stacked}}}, x)
    with pytest.raises(TypeError, match="takes a string as name, not 3"):
        tap(x, 3)
    with pytest.raises(ValueError, match="the function has no tap at all"):
        quant.calibrate(quant.observe(lambda params, x: x), {"params": None}, [(x,)])
    with pytest.raises(ValueError, match="the function has no tap 'block'"):
        quant.calibrate(quant.observe(network, blocks=["block"]), {"params": params}, [(x,)])
    hidden = jax.custom_vjp(lambda x: tap(x, "deep"))
    hidden.defvjp(lambda x: (x, None), lambda _, gradient: (gradient,))
    with pytest.raises(ValueError, match="tap 'deep' lies inside a custom_vjp_call, where it cannot be reached"):
        quant.quantized_apply(lambda params, x: hidden(x))({"params": None}, x)
    looping = lambda params, x: jax.lax.while_loop(lambda x: tap(x, "test").sum() < 1, lambda x: x + 1, x)
    with pytest.raises(ValueError, match="tap 'test' lies in the condition of a while loop"):
        quant.quantized_apply(looping)({"params": None}, x)
