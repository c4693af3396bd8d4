"""Integer grids: exact whatever the bits, and however they are passed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmq_jax import quant

ALL_BITS = range(quant.MIN_BITS, quant.MAX_BITS + 1)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_limits_are_exact_static_and_traced(bits):
    for limits in (quant.signed_limits, jax.jit(quant.signed_limits)):
        assert [float(x) for x in limits(bits)] == [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1]
    for limits in (quant.unsigned_limits, jax.jit(quant.unsigned_limits)):
        assert [float(x) for x in limits(bits)] == [0, 2**bits - 1]


@pytest.mark.parametrize("bits", [None, 16, 32, np.int64(16), np.array(32)])
def test_none_16_and_32_all_mean_none(bits):
    assert quant.canonical_bits(bits) == quant.NO_BITS


@pytest.mark.parametrize("bits", [-1, 0, 1, 17, 31, 33, np.array([4, 1])])
def test_widths_out_of_range_are_refused(bits):
    with pytest.raises(ValueError, match=r"bits must be 2\.\.15, or None, 16 or 32"):
        quant.canonical_bits(bits)


@pytest.mark.parametrize("bits", [4.0, True, "4", "int8", np.float32(4)])
def test_bits_that_are_no_integers_are_refused(bits):
    with pytest.raises(TypeError, match="bits must be an integer or None"):
        quant.canonical_bits(bits)


@pytest.mark.parametrize("bits", [-3, 0, 1])
def test_traced_bits_below_the_fewest_count_as_the_fewest(bits):
    params = {"kernel": jnp.eye(2)}
    rounded = jax.jit(lambda bits: quant.quantize(quant.rtn(bits), params)["params"]["kernel"])
    np.testing.assert_array_equal(rounded(bits), rounded(quant.MIN_BITS))


def test_an_array_of_bits_keeps_its_shape():
    np.testing.assert_array_equal(quant.canonical_bits(np.array([3, 16, 32])), [3, 16, 16])


def test_straight_through_round_rounds_half_to_even_and_passes_gradients():
    x = jnp.array([-2.5, -0.5, 0.5, 1.5, 0.3, -7.7])
    np.testing.assert_array_equal(quant.straight_through_round(x), np.rint(x))
    np.testing.assert_array_equal(jax.vmap(jax.grad(quant.straight_through_round))(x), np.ones(6))
    np.testing.assert_array_equal(jax.vmap(jax.grad(jnp.round))(x), np.zeros(6))


def test_the_order_of_rounding_and_zero_point_is_data():
    # 0.5 + 3 = 3.5 rounds to 4; 0.5 rounds to 0, and 0 + 3 = 3.
    grid = quant.Grid(*map(jnp.float32, (0.5, 3, 0, 15)))
    codes = jax.vmap(lambda first: quant.encode(jnp.float32(0.25), grid, first))(jnp.array([True, False]))
    np.testing.assert_array_equal(codes, [4, 3])
    np.testing.assert_array_equal(quant.decode(codes, grid), [0.5, 0.0])
