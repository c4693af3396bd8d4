"""Grouping of kernels and round-to-nearest on the groups."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wmq_jax import quant
from wmq_jax.quant import WeightSpec
from wmq_jax.quant.per_kernel import per_kernel


def kernels():
    """Kernels of two axes: zeros, constants and outliers among them."""
    values = st.floats(-10, 10, width=32) | st.sampled_from([0.0, -0.0, 1000.0, -1000.0, 1e-9])
    # A few shapes and group sizes only: each pair is compiled.
    return hnp.arrays(np.float32, st.sampled_from([(1, 1), (7, 2), (8, 3)]), elements=values)


WHOLE_RANGE = quant.ClippingSearch(points=1, lowest=1.0)
GROUP_SIZES = st.sampled_from([None, 1, 4, 9])


@settings(max_examples=60, deadline=None)
@given(kernel=kernels(), bits=st.integers(2, 15), group_size=GROUP_SIZES)
def test_rounding_errs_by_at_most_half_a_step_of_the_group(kernel, bits, group_size):
    quantized = np.asarray(quant.fake_quant_weight(kernel, WeightSpec(bits, group_size)))
    size = group_size or kernel.shape[0]
    for start in range(0, kernel.shape[0], size):
        group = slice(start, start + size)
        scale = np.maximum(np.abs(kernel[group]).max(0) / ((2**bits - 1) / 2), 2.0**-60)
        error = np.abs(quantized[group] - kernel[group])
        assert (error <= scale * 0.5 * (1 + 1e-5) + np.abs(kernel[group]) * 1e-6).all()


@settings(max_examples=40, deadline=None)
@given(kernel=kernels(), bits=st.integers(2, 15), group_size=GROUP_SIZES)
def test_a_searched_range_never_rounds_worse_than_the_whole_range(kernel, bits, group_size):
    spec, error = WeightSpec(bits, group_size), {}
    for search in (quant.omse_grid, WHOLE_RANGE):
        difference = np.asarray(quant.fake_quant_weight(kernel, spec, search), np.float64) - kernel
        error[search] = np.asarray(quant.to_groups(jnp.asarray(difference**2, jnp.float32), spec)).sum(-1)
    assert (error[quant.omse_grid] <= error[WHOLE_RANGE] * (1 + 1e-5)).all()


def test_a_searched_range_clips_the_tails_of_normal_weights():
    kernel = np.random.default_rng(0).normal(size=(256, 8)).astype(np.float32)
    error = lambda search: ((quant.fake_quant_weight(kernel, WeightSpec(4), search) - kernel) ** 2).mean()
    assert error(quant.omse_grid) < 0.8 * error(WHOLE_RANGE)


def test_learned_clipping_covers_the_learned_share_of_the_range():
    groups = np.random.default_rng(0).normal(0.3, 1, size=(5, 2, 16)).astype(np.float32)
    upper, lower = np.float32(1.0), np.float32(-0.5)
    share = lambda factor: 1 / (1 + np.exp(-factor))
    high, low = share(upper) * groups.max(-1, keepdims=True), share(lower) * groups.min(-1, keepdims=True)
    symmetric = quant.lwc_grid(groups, 4, upper, lower)
    np.testing.assert_allclose(symmetric.scale * 7, np.maximum(high, -low), rtol=1e-5)
    np.testing.assert_array_equal(symmetric.zero_point, np.full_like(high, 7))
    asymmetric = quant.lwc_grid(groups, 4, upper, lower, symmetric=False)
    np.testing.assert_allclose(asymmetric.scale * 15, high - low, rtol=1e-5)
    np.testing.assert_array_equal(asymmetric.zero_point, np.rint(-low / np.asarray(asymmetric.scale)))


@pytest.mark.parametrize("shape", [(1, 1), (7, 2), (8, 3), (2, 3, 4)])
@pytest.mark.parametrize("group_size", [None, 1, 4, 9])
def test_groups_go_back_to_the_kernel(shape, group_size):
    kernel = np.random.default_rng(0).normal(size=shape)
    spec = WeightSpec(4, group_size, output_axes=(-1,))
    groups = quant.to_groups(jnp.asarray(kernel), spec)
    assert groups.shape == quant.group_shape(shape, spec)
    np.testing.assert_array_equal(quant.from_groups(groups, shape, spec), kernel.astype(np.float32))


def test_an_output_channel_is_a_row_and_groups_run_along_the_input():
    kernel = np.arange(10, dtype=np.float32).reshape(5, 2)  # 5 inputs, 2 outputs
    kernel = jnp.asarray(kernel)
    np.testing.assert_array_equal(quant.to_groups(kernel, WeightSpec(4))[:, 0], kernel.T)
    padded = quant.to_groups(kernel, WeightSpec(4, 3))
    np.testing.assert_array_equal(padded[1], [[1, 3, 5], [7, 9, 0]])
    flat = quant.to_groups(kernel, WeightSpec(4, 2, layout="flat"))
    np.testing.assert_array_equal(flat[:, 0], kernel.T.reshape(-1, 2))
    assert flat[2, 0].tolist() == [8, 1], "a group straddles the rows"


@pytest.mark.parametrize("shape, output_axes", [((3, 3, 4, 6), (-1,)), ((8, 2, 3), (-2, -1)), ((2, 5, 3), (0, -1))])
@pytest.mark.parametrize("group_size", [None, 4])
def test_kernels_of_more_axes_are_quantized_as_matrices(shape, output_axes, group_size):
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    spec = WeightSpec(3, group_size, output_axes=output_axes)
    got = quant.fake_quant_weight(kernel, spec)
    outputs = [axis % kernel.ndim for axis in output_axes]
    for index in np.ndindex(*(shape[axis] for axis in outputs)):
        selection = [slice(None)] * kernel.ndim
        for axis, i in zip(outputs, index):
            selection[axis] = i
        column = kernel[tuple(selection)]
        alone = quant.fake_quant_weight(column.reshape(-1, 1), WeightSpec(3, group_size))
        np.testing.assert_array_equal(got[tuple(selection)], alone.reshape(column.shape))


def test_group_as_long_as_the_row_is_per_channel():
    kernel = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    per_channel = quant.fake_quant_weight(kernel, WeightSpec(4))
    for group_size in (12, 20, 10**12):
        np.testing.assert_array_equal(quant.fake_quant_weight(kernel, WeightSpec(4, group_size)), per_channel)


def test_a_flat_group_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"divides the 15 weights of a kernel of shape \(5, 3\); 4 does not"):
        quant.fake_quant_weight(jnp.ones((5, 3)), WeightSpec(4, 4, layout="flat"))


@pytest.mark.parametrize("group_size", [0, -1, 2.0, True])
def test_group_sizes_that_make_no_sense_are_refused(group_size):
    with pytest.raises(ValueError, match="group_size must be a positive integer or None"):
        WeightSpec(4, group_size)


def test_layouts_and_axes_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="layout must be one of padded, flat, not 'straddling'"):
        WeightSpec(4, 4, layout="straddling")
    for axes in ((0, 1), (), (-1, 1), (5,)):
        with pytest.raises(ValueError, match="not different axes that leave an input axis in a kernel of 2 axes"):
            quant.fake_quant_weight(jnp.ones((2, 3)), WeightSpec(4, output_axes=axes))
    for axes in (-1, "-1", (0.5,)):
        with pytest.raises(
            ValueError, match=re.escape(f"output_axes must be a tuple of integers or None, not {axes!r}")
        ):
            WeightSpec(4, output_axes=axes)
    assert WeightSpec(4, output_axes=[-1]) == WeightSpec(4, output_axes=(-1,))


def test_straight_through_gradients_reach_the_weights():
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32))

    def total(kernel, rounding):
        return quant.fake_quant_weight(kernel, WeightSpec(4), rounding=rounding).sum()

    gradient_of = jax.jit(jax.grad(total), static_argnums=1)
    gradient = gradient_of(kernel, quant.straight_through_round)
    largest = jnp.abs(kernel) == jnp.abs(kernel).max(0)
    np.testing.assert_allclose(gradient[~largest], 1, atol=1e-5)
    assert (jnp.abs(gradient_of(kernel, jnp.round))[~largest] == 0).all()


@pytest.mark.parametrize("grid_fn", [quant.absmax_grid, quant.omse_grid, quant.range_grid])
@pytest.mark.parametrize("size", [1e-9, 1e-12])
def test_small_weights_are_not_zeroed(grid_fn, size):
    kernel = np.random.default_rng(0).uniform(-size, size, (16, 4)).astype(np.float32)
    error = np.abs(quant.fake_quant_weight(kernel, WeightSpec(8), grid_fn) - kernel)
    assert error.max() < size / 100
    released = quant.fake_quant_weight(kernel, WeightSpec(8), quant.released_absmax_grid)
    assert not released.any(), "the released floor is float32's epsilon"


@pytest.mark.parametrize("bits", [8, 15])
def test_ranges_beyond_float32_are_rounded_as_others(bits):
    kernel = jnp.array([[3e38], [-3e38], [1e38], [0.0]], jnp.float32)
    step = 6e38 / (2**bits - 1)
    got = quant.fake_quant_weight(kernel, WeightSpec(bits), quant.range_grid)
    assert (np.abs(np.asarray(got, np.float64) - kernel) <= 0.51 * step).all()
    for make in (lambda: quant.static_quantizer(-3e38, 3e38, bits), lambda: quant.per_token_quantizer(bits)):
        got = quant.fake_quant(kernel.T, make())
        assert (np.abs(np.asarray(got, np.float64) - kernel.T) <= 0.51 * step).all()


def test_transforms_refuse_what_overflows_by_its_name():
    seen = quant.Range(jnp.int32(1), jnp.float32(-3e38), jnp.float32(3e38))
    params = {"a": {"kernel": jnp.array([[3e38], [-3e38]])}}
    sentence = r" has values beyond 8.5e\+37, near which float32 grids overflow$"
    with pytest.raises(ValueError, match="^weight 'a/kernel'" + sentence):
        quant.quantize(quant.rtn(2), params)
    with pytest.raises(ValueError, match="^calibration statistic 'a/minimum'" + sentence):
        quant.quantize(quant.static_activations(2), params, {"a": {"input": seen}})
    half = {"a": {"kernel": jnp.array([[4e4], [-1.0]], jnp.float16)}}
    with pytest.raises(
        ValueError, match=r"^weight 'a/kernel' has values beyond 3.3e\+04, near which float16 grids over"
    ):
        quant.quantize(quant.rtn(2), half)
    params = {"a": {"kernel": jnp.array([[8e37], [-8e37]])}}
    for bits in (2, 3, 8):
        assert jnp.isfinite(
            quant.quantize(per_kernel(WeightSpec(bits), quant.range_grid), params)["params"]["a"]["kernel"]
        ).all()
