"""Activation quantizers against the equations of their docstrings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wmq_jax import quant

QUANTIZE = jax.jit(quant.fake_quant)
STATIC_QUANTIZER = jax.jit(quant.static_quantizer)
PER_TOKEN_QUANTIZER = jax.jit(quant.per_token_quantizer)


def reference(x, scale, zero_point, top, zero_point_first):
    """fake_quant in plain numpy float32."""
    scale, zero_point = np.float32(scale), np.float32(zero_point)
    codes = np.rint(x / scale + zero_point) if zero_point_first else np.rint(x / scale) + zero_point
    return (np.clip(codes, 0, top) - zero_point) * scale


def inputs():
    """Activations: any small shape; zeros, constants and outliers among them."""
    values = st.floats(-100, 100, width=32) | st.sampled_from([0.0, -0.0, 1e4, -1e4, 1e-6])
    # A few shapes only: each one is compiled.
    return hnp.arrays(np.float32, st.sampled_from([(1,), (6,), (2, 1), (2, 3, 4)]), elements=values)


BITS = st.integers(quant.MIN_BITS, quant.MAX_BITS)


@settings(max_examples=60, deadline=None)
@given(x=inputs(), bits=BITS)
def test_static_error_is_at_most_half_a_step_inside_the_range(x, bits):
    quantizer = STATIC_QUANTIZER(x.min(), x.max(), bits)
    top = 2**bits - 1
    # The zero point is rounded, so a value at the end of the range may lie half a step outside the codes.
    quantized = QUANTIZE(x, quantizer)
    assert np.abs(quantized - x).max() <= float(quantizer.scale) * (1 + 1e-3)
    assert 0 <= float(quantizer.zero_point) <= top
    np.testing.assert_array_equal(quantized, reference(x, quantizer.scale, quantizer.zero_point, top, True))


@settings(max_examples=60, deadline=None)
@given(x=inputs(), bits=BITS)
def test_per_token_error_is_at_most_a_step_of_the_token(x, bits):
    low, high = np.minimum(x.min(-1, keepdims=True), 0), np.maximum(x.max(-1, keepdims=True), 0)
    step = (high - low) / (2**bits - 1)
    error = np.abs(QUANTIZE(x, PER_TOKEN_QUANTIZER(bits)) - x)
    # Nothing smaller than the floor of the scale survives.
    assert (error <= step * (1 + 1e-3) + np.abs(x) * 1e-6 + 2.0**-60).all()


@pytest.mark.parametrize("constant", [0.0, 1e-6, 0.3, -0.3, 7.0, -1234.5])
@pytest.mark.parametrize("bits", [2, 4, 8, 15])
def test_a_constant_token_comes_back(constant, bits):
    x = np.full((2, 6), constant, np.float32)
    np.testing.assert_allclose(QUANTIZE(x, quant.per_token_quantizer(bits)), x, rtol=1e-6)


def test_the_released_per_token_quantizer_loses_constants():
    x = np.full((1, 6), 7.0, np.float32)
    lost = QUANTIZE(x, quant.per_token_quantizer(8, include_zero=False))
    np.testing.assert_allclose(lost, 0.1, atol=1e-2)


def test_a_range_as_observed_cuts_one_sided_data_and_one_with_zero_does_not():
    x = np.linspace(10, 11, 64, dtype=np.float32)
    sound = quant.static_quantizer(x.min(), x.max(), 8)
    released = quant.static_quantizer(x.min(), x.max(), 8, include_zero=False)
    assert np.abs(QUANTIZE(x, sound) - x).max() <= 11 / 255
    # Q steps of (11 - 10) / Q reach 1 from a zero point of 0.
    np.testing.assert_allclose(QUANTIZE(x, released), 1, rtol=1e-6)
    assert released.zero_point == 0


@pytest.mark.parametrize("zero_point_first", [True, False])
def test_both_orders_of_rounding_and_zero_point(zero_point_first):
    x = (np.arange(-20, 60) / 4).astype(np.float32)
    quantizer = quant.static_quantizer(-1.5, 6.0, 4, zero_point_first=zero_point_first)
    assert (quantizer.scale, quantizer.zero_point) == (0.5, 3)
    np.testing.assert_array_equal(QUANTIZE(x, quantizer), reference(x, 0.5, 3, 15, zero_point_first))


def test_gradients_are_those_of_the_rounded_line():
    """dy/dx is 1 on the codes and 0 beyond; dy/ds = round(v) - v on them and the clipped code beyond (v = x/s)."""
    x = jnp.array([-9.0, -1.3, 0.4, 2.2, 50.0])
    quantizer = quant.static_quantizer(-4.0, 11.0, 4)
    scale, zero_point = float(quantizer.scale), float(quantizer.zero_point)

    def y(x, s):
        return quant.fake_quant(x[None], quantizer._replace(scale=s), quant.straight_through_round)[0]

    dx, ds = jax.vmap(jax.grad(y, argnums=(0, 1)), (0, None))(x, quantizer.scale)
    v = np.asarray(x) / scale
    inside = (v + zero_point >= 0) & (v + zero_point <= 15)
    assert inside.tolist() == [False, True, True, True, False]
    np.testing.assert_allclose(dx, inside, atol=1e-6)
    clipped = np.clip(v, -zero_point, 15 - zero_point)
    np.testing.assert_allclose(ds, np.where(inside, np.rint(v) - v, clipped), atol=1e-5)


def test_gradients_reach_a_per_token_input_and_are_finite_for_zeros():
    quantizer = quant.per_token_quantizer(4)
    x = jnp.stack([jnp.zeros(5), jnp.linspace(-1, 2, 5)])

    @jax.jit
    @jax.grad
    def gradient_of(x):
        return (quant.fake_quant(x, quantizer, quant.straight_through_round) ** 2).sum()

    gradient = gradient_of(x)
    assert jnp.isfinite(gradient).all() and jnp.abs(gradient[1]).max() > 0


def test_modes_are_data_in_a_loop_and_in_a_batch():
    x = jnp.linspace(-3, 5, 24).reshape(4, 6)
    modes = [quant.no_quantizer(), quant.static_quantizer(-3.0, 5.0, 3), quant.per_token_quantizer(3)]
    table = jax.tree.map(lambda *fields: jnp.stack(fields), *modes)
    alone = [quant.fake_quant(x, quantizer) for quantizer in modes]
    looped = jax.jit(lambda table: jax.lax.map(lambda quantizer: quant.fake_quant(x, quantizer), table))(table)
    batched = jax.jit(jax.vmap(quant.fake_quant, (None, 0)))(x, table)
    np.testing.assert_array_equal(looped, alone)
    np.testing.assert_array_equal(batched, alone)
    assert len({np.asarray(a).tobytes() for a in alone}) == len(modes)


@pytest.mark.parametrize("x, named", [(np.arange(3, dtype=np.int32), r"int32\[3\]"), (np.float32(1), r"float32\[\]")])
def test_integers_and_scalars_are_refused(x, named):
    with pytest.raises(TypeError, match=f"floating-point array of at least one axis, not {named}"):
        quant.fake_quant(x, quant.no_quantizer())


def test_nan_and_infinity_in_one_token_stay_there():
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    bad = x.copy()
    bad[1, 2] = np.nan
    for quantizer in (quant.per_token_quantizer(4), quant.static_quantizer(-1.0, 1.0, 4)):
        clean, spoiled = QUANTIZE(x, quantizer), QUANTIZE(bad, quantizer)
        np.testing.assert_array_equal(np.delete(spoiled, 1, 0), np.delete(clean, 1, 0))
        assert np.isnan(spoiled[1, 2])


def test_small_activations_gain_from_more_bits():
    x = 1e-9 * jax.random.normal(jax.random.key(0), (32, 16))
    error = lambda bits: jnp.mean(
        (quant.fake_quant(x, quant.static_quantizer(x.min(), x.max(), bits)) / 1e-9 - x / 1e-9) ** 2
    )
    assert error(8) < error(6) / 4 < error(4) / 16
