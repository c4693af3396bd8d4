"""Packed integers: exactly as many bits as stated, and the same floats bit for bit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wmq_jax import quant
from wmq_jax.quant.packing import pack_bits, unpack_bits
from wmq_jax.quant.weights import with_shape

GRIDS = {"absmax": quant.absmax_grid, "omse": quant.omse_grid, "range": quant.range_grid}


@pytest.mark.parametrize(
    "bits, grid, group, layout, dtype",
    [
        (2, "absmax", None, "padded", jnp.float32),
        (3, "omse", 4, "padded", jnp.float32),
        (5, "range", 7, "flat", jnp.float32),
        (6, "absmax", 4, "padded", jnp.bfloat16),
        (7, "range", None, "padded", jnp.float32),
        (8, "absmax", 7, "flat", jnp.float32),
    ],
)
def test_expands_to_the_same_floats(bits, grid, group, layout, dtype):
    rng = np.random.default_rng(bits)
    kernel = jnp.asarray(rng.normal(size=(11, 7)), dtype).at[:, 2].set(0).at[3, 3].set(40)
    spec = quant.WeightSpec(bits, group, layout)
    quantized = quant.quantize_kernel(kernel, spec, GRIDS[grid])
    packed = quant.pack_kernel(quantized)
    expected = quant.fake_quant_weight(kernel, spec, GRIDS[grid])
    np.testing.assert_array_equal(quant.expand_kernel(quantized), expected)
    np.testing.assert_array_equal(quant.expand_packed(packed), expected)
    rows, groups, _ = quant.group_shape(kernel.shape, spec)
    assert packed.stream.nbytes == -(-kernel.size * bits // 8), "nothing that fills up a group is stored"
    assert packed.nbytes == packed.stream.nbytes + 4 * rows * groups * (1 if packed.zero_point is None else 2)
    assert (packed.zero_point is None) == (grid != "range")


@pytest.mark.parametrize("grid", GRIDS)
def test_double_precision_expands_to_the_same_floats(grid):
    with jax.enable_x64(True):
        kernel = jnp.asarray(np.random.default_rng(0).normal(size=(9, 5)))
        quantized = quant.quantize_kernel(kernel, quant.WeightSpec(4, 4), GRIDS[grid])
        expanded = quant.expand_packed(quant.pack_kernel(quantized))
        assert expanded.dtype == jnp.float64
        np.testing.assert_array_equal(expanded, quant.expand_kernel(quantized))


@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 8).flatmap(
        lambda b: st.tuples(st.just(b), hnp.arrays(np.int64, 24, elements=st.integers(0, 2**b - 1)))
    )
)
def test_streams_round_trip(case):
    bits, codes = case
    stream = pack_bits(codes, bits)
    assert len(stream) == -(-codes.size * bits // 8)
    np.testing.assert_array_equal(unpack_bits(jnp.asarray(stream), bits, codes.size), codes)


@pytest.mark.parametrize("bits", range(2, 16))
def test_all_widths_pack(bits):
    kernel = jnp.asarray(np.random.default_rng(bits).normal(size=(6, 3)), jnp.float32)
    spec = quant.WeightSpec(bits)
    packed = quant.pack_kernel(quant.quantize_kernel(kernel, spec, quant.range_grid))
    expected = quant.fake_quant_weight(kernel, spec, quant.range_grid)
    np.testing.assert_array_equal(quant.expand_packed(packed), expected)
    assert packed.bits == bits and packed.stream.nbytes == -(-18 * bits // 8)


def test_grids_of_no_bits_are_refused():
    quantized = quant.quantize_kernel(jnp.ones((2, 2)), quant.WeightSpec(16))
    with pytest.raises(ValueError, match=r"packed weights have 2\.\.15 bits, not grids of 65536 codes"):
        quant.pack_kernel(quantized)


def test_a_stack_of_kernels_is_packed_one_by_one():
    stack = {"kernel": np.random.default_rng(0).normal(size=(3, 8, 4)).astype(np.float32)}
    state = jax.vmap(lambda params: quant.quantize_state(quant.rtn(4), params))(stack)
    with pytest.raises(ValueError, match=r"weight 'kernel': its codes are a stack of 3 kernels; pack them one by one"):
        quant.pack(state.params, state.codes)
    one = jax.tree.map(lambda leaf: leaf[1], state)
    np.testing.assert_array_equal(quant.expand(quant.pack(one.params, one.codes))["kernel"], state.params["kernel"][1])


def test_the_ratio_of_signal_to_noise_is_that_of_the_floats():
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(40, 7)), jnp.float32)
    for bits in (2, 5, 8):
        quantized = quant.quantize_kernel(kernel, quant.WeightSpec(bits, 8))
        exact = np.asarray(kernel, np.float64)
        noise = np.asarray(quant.expand_kernel(quantized), np.float64) - exact
        assert quantized.sqnr == pytest.approx(10 * np.log10((exact**2).sum() / (noise**2).sum()), abs=1e-4)
    assert quant.quantize_kernel(jnp.zeros((2, 2)), quant.WeightSpec(4)).sqnr == float("inf")


def test_codes_of_a_matrix_serve_a_kernel_of_several_axes():
    """A DenseGeneral of two input and two output axes, and a divisor of every input."""
    matrix = jnp.asarray(np.random.default_rng(1).normal(size=(6, 4)), jnp.float32)
    quantized = quant.quantize_kernel(matrix, quant.WeightSpec(3, 4))
    quantized = dataclasses.replace(quantized, divisor=jnp.arange(1.0, 7.0)[:, None])
    shaped = with_shape(quantized, (2, 3, 2, 2))
    expected = np.asarray(quant.expand_kernel(quantized)).reshape(2, 3, 2, 2)
    np.testing.assert_array_equal(quant.expand_kernel(shaped), expected)
    np.testing.assert_array_equal(quant.expand_packed(quant.pack_kernel(shaped)), expected)
    with pytest.raises(ValueError, match="are none of one of shape"):
        with_shape(quantized, (2, 3, 5))
