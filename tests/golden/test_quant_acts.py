"""Activation quantizers against quant_acts.npz: min-max over batches, per token, half-way cases, degenerate inputs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmq_jax.quant import (
    Grid,
    decode,
    encode,
    fake_quant,
    minmax,
    per_token_quantizer,
    static_quantizer,
)

OBSERVERS = {"minmax": minmax()}
# Recorded observers that this library does not have yet.
LATER = ("ema", "percentile", "omse")
QUANTIZE = jax.jit(fake_quant)


@pytest.fixture(scope="module")
def recording(golden):
    return golden("quant_acts.npz")


def cases(recording, wanted):
    """(kind of input, key, method, bits) of the recorded cases whose method is in ``wanted``."""
    found = []
    for kind in recording.names("x/"):
        for case in recording.names(f"{kind}/"):
            method, bits = re.fullmatch(r"(\w+)_b(\d+)", case).groups()
            assert method in (*OBSERVERS, *LATER, "token"), f"nobody accounts for {kind}/{case}"
            if method in wanted:
                found.append((kind, f"{kind}/{case}", method, int(bits)))
    assert found
    return found


def test_observed_ranges_and_static_quantizers(recording, compared):
    for kind, key, method, bits in cases(recording, OBSERVERS):
        batches, observer = recording[f"x/{kind}"], OBSERVERS[method]
        seen = observer.empty(batches[0])
        for batch, (high, low) in zip(batches, recording[f"{key}/range_trace"], strict=True):
            seen = observer.update(seen, jnp.asarray(batch))
            assert (seen.maximum, seen.minimum) == (high, low), key
        assert seen.count == len(batches)
        quantizer = static_quantizer(seen.minimum, seen.maximum, bits, include_zero=False)
        assert quantizer.scale == recording[f"{key}/scale"], key
        assert quantizer.zero_point == recording[f"{key}/zero_point"], key
        wanted = recording[f"{key}/fq_batch1"]
        np.testing.assert_array_equal(QUANTIZE(batches[1], quantizer), wanted, err_msg=key)
        compared(wanted.size + 2 * len(batches) + 2)


def test_a_range_with_zero_is_the_released_quantizer_where_zero_is_in_range_and_sound_elsewhere(recording, compared):
    for kind, key, _, bits in cases(recording, OBSERVERS):
        x = recording[f"x/{kind}"]
        quantizer = static_quantizer(x.min(), x.max(), bits)
        if x.min() <= 0 <= x.max():
            assert (quantizer.scale, quantizer.zero_point) == (
                recording[f"{key}/scale"],
                recording[f"{key}/zero_point"],
            )
            np.testing.assert_array_equal(QUANTIZE(x[1], quantizer), recording[f"{key}/fq_batch1"])
        error = np.abs(QUANTIZE(x[1], quantizer) - x[1]).max()
        assert error <= quantizer.scale * 1.001, key
        compared(x[1].size)


def test_per_token(recording, compared):
    for kind, key, _, bits in cases(recording, ("token",)):
        wanted = recording[f"{key}/fq"]
        x = recording[f"x/{kind}"][0]
        np.testing.assert_array_equal(QUANTIZE(x, per_token_quantizer(bits, include_zero=False)), wanted, err_msg=key)
        compared(wanted.size)


def test_constant_tokens(recording, compared):
    x = recording["const/x"]
    for case in recording.names("const/"):
        if case == "x":
            continue
        bits = int(re.fullmatch(r"token_b(\d+)_fq", case).group(1))
        wanted = recording[f"const/{case}"]
        np.testing.assert_array_equal(QUANTIZE(x, per_token_quantizer(bits, include_zero=False)), wanted)
        np.testing.assert_allclose(QUANTIZE(x, per_token_quantizer(bits)), x, rtol=1e-6)
        compared(wanted.size)


def test_half_way_cases(recording, compared):
    x, codes = recording["half/x"], recording["half/q"]
    quantizer = static_quantizer(-1.5, 6.0, 4)
    grid = Grid(quantizer.scale, quantizer.zero_point, quantizer.qmin, quantizer.qmax)
    np.testing.assert_array_equal(encode(x, grid, quantizer.zero_point_first), codes)
    np.testing.assert_array_equal(decode(codes, grid), recording["half/fq"])
    np.testing.assert_array_equal(QUANTIZE(x, quantizer), recording["half/fq"])
    compared(2 * codes.size)


def test_calibrated_on_zeros(recording, compared):
    wanted = recording["zeros/fq_of_ones"]
    top = np.rint(wanted.max() / recording["zeros/scale"])
    quantizer = static_quantizer(0.0, 0.0, int(np.log2(top + 1)))
    assert quantizer.scale == recording["zeros/scale"]
    np.testing.assert_array_equal(QUANTIZE(np.ones_like(wanted), quantizer), wanted)
    compared(wanted.size + 1)
