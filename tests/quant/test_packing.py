"""Packed integers: exactly as many bits as stated, and the same floats bit for bit."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wmq_jax import quant
from wmq_jax.quant.packing import pack_bits, unpack_bits

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
    packed = quant.pack_kernel(kernel, spec, GRIDS[grid])
    expected = quant.fake_quant_weight(kernel, spec, GRIDS[grid])
    np.testing.assert_array_equal(quant.expand_kernel(packed), expected)
    rows, groups, size = quant.group_shape(kernel.shape, spec)
    assert packed.stream.nbytes == -(-rows * groups * size * bits // 8)
    assert packed.nbytes == packed.stream.nbytes + 4 * rows * groups * (1 if packed.zero_point is None else 2)
    assert (packed.zero_point is None) == (grid != "range")


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


@pytest.mark.parametrize("bits", [None, 16, 9])
def test_bits_that_do_not_pack_are_refused(bits):
    with pytest.raises(ValueError, match=r"packed weights have 2\.\.8 bits"):
        quant.pack_kernel(jnp.ones((2, 2)), quant.WeightSpec(bits))
