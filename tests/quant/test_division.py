"""Division: correctly rounded under every broadcast, and on accelerators whose own division is not."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from wmq_jax import quant
from wmq_jax.quant import division

LARGE = 2.0**60  # whose quotients are normal numbers
numbers = st.floats(1 / LARGE, LARGE, width=32)


@pytest.mark.parametrize("divide", [quant.exact_divide, quant.stable_divide])
@pytest.mark.parametrize("shape", [(), (1, 1), (40, 1), (40, 7)])
def test_quotients_are_correctly_rounded_under_every_broadcast(shape, divide):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 7)).astype(np.float32)
    y = rng.uniform(0.01, 3, size=shape).astype(np.float32)
    for eager_or_jitted in (divide, jax.jit(divide)):
        np.testing.assert_array_equal(eager_or_jitted(x, y), x / y)
    # With constants of the compiled program, too.
    np.testing.assert_array_equal(jax.jit(lambda: divide(jnp.asarray(x), jnp.asarray(y)))(), x / y)
    np.testing.assert_array_equal(jax.jit(lambda y: divide(x, y))(y), x / y)
    np.testing.assert_array_equal(jax.jit(lambda x: divide(x, y))(x), x / y)
    vmapped = jax.jit(jax.vmap(divide, (None, 0)))(x, np.stack([y, 2 * y]))
    np.testing.assert_array_equal(vmapped, [x / y, x / (2 * y)])


@pytest.mark.parametrize("divide", [quant.exact_divide, quant.stable_divide])
def test_division_keeps_nan_and_infinity(divide):
    x = np.array([np.nan, np.inf, -np.inf, 0, 1], np.float32)
    for y in (2.0, np.inf, -np.inf, np.nan):
        with np.errstate(invalid="ignore"):
            expected = x / np.float32(y)
        np.testing.assert_array_equal(jax.jit(divide)(x, y), expected)


@hypothesis.settings(deadline=None)
@hypothesis.given(numbers, numbers, st.integers(-2, 2), st.sampled_from([-1, 1]), st.sampled_from([-1, 1]))
@hypothesis.example(1.0, 1.0, -2, 1, 1)  # the quotient is a power of two, around which ulps change size
@hypothesis.example(1.0, np.float32(1) + np.finfo(np.float32).eps, 2, 1, -1)
def test_a_quotient_within_two_ulps_is_corrected(x, y, ulps, sign, other):
    x, y = np.float32([x * sign]), np.float32([y * other])
    rough = ((x / y).view(np.int32) + np.int32(ulps)).view(np.float32)
    once = division.nearest_quotient(jnp.asarray(rough), x, y)
    np.testing.assert_array_equal(division.nearest_quotient(once, x, y), x / y)


def test_reciprocals_are_corrected_to_quotients_and_special_values_stay():
    rng = np.random.default_rng(0)
    x, y = (np.float32(rng.normal(size=10000) * np.exp(8 * rng.normal(size=10000))) for _ in range(2))
    rough = x * (np.float32(1) / y)
    assert 0.1 < np.mean(rough != x / y)
    np.testing.assert_array_equal(division.nearest_quotient(rough, x, y), x / y)
    x, y = np.float32([np.nan, np.inf, 0, 1, 1, 1e30]), np.float32([1, 2, 3, 0, np.inf, 1e-30])
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(division.nearest_quotient(x / y, x, y), x / y)
        np.testing.assert_array_equal(division._corrected_divide(x, y), x / y)


def test_the_correction_has_the_gradients_of_a_division():
    x, y = jnp.float32([3.0, -0.3, 1e3]), jnp.float32([0.7, 3.0, -1e-3])
    for divide in (division._corrected_divide, quant.exact_divide):
        gradients = jax.vmap(jax.grad(divide, (0, 1)))(x, y)
        expected = jax.vmap(jax.grad(jnp.divide, (0, 1)))(x, y)
        jax.tree.map(np.testing.assert_array_equal, gradients, expected)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_what_accelerators_correct(platform):
    """Weights are rounded to the same integers everywhere; programs with activations do not grow for it."""
    corrects = lambda function, *values: (
        "bitcast_convert" in jax.export.export(jax.jit(function), platforms=[platform])(*values).mlir_module()
    )
    x = jnp.ones((8, 4))
    weights = lambda w: quant.fake_quant_weight(w, quant.WeightSpec(bits=4, group_size=4))
    assert corrects(weights, x) == (platform != "cpu")
    for quantizer in (quant.per_token_quantizer(8), quant.static_quantizer(-1.0, 1.0, 8)):
        assert not corrects(quant.fake_quant, x, quantizer)
