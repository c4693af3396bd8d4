"""Activation quantizers against quant_acts.npz: observers over batches, per token, half-way cases, degenerate input."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmq_jax.quant import (
    Grid,
    channel_ranges,
    decode,
    ema,
    encode,
    fake_quant,
    minmax,
    omse_range,
    per_token_quantizer,
    percentile,
    static_quantizer,
)
from wmq_jax.quant.quantizer import _token_grid

OBSERVERS = {"minmax": minmax(), "ema": ema(), "percentile": percentile()}
# Relative bound on what each observes.
OBSERVED = {"minmax": 0, "ema": 1e-6, "percentile": 1e-4}
QUANTIZE = jax.jit(fake_quant)
# The grid of every token.
GRID = jax.jit(functools.partial(_token_grid, rounding=jnp.round))


@pytest.fixture(scope="module")
def recording(golden):
    return golden("quant_acts.npz")


def cases(recording, wanted):
    """(kind of input, key, method, bits) of the recorded cases whose method is in ``wanted``."""
    found = []
    for kind in recording.names("x/"):
        for case in recording.names(f"{kind}/"):
            method, bits = re.fullmatch(r"(\w+)_b(\d+)", case).groups()
            assert method in (*OBSERVERS, "omse", "token"), f"nobody accounts for {kind}/{case}"
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
            np.testing.assert_allclose((seen.maximum, seen.minimum), (high, low), rtol=OBSERVED[method], err_msg=key)
        assert seen.count == len(batches)
        quantizer = static_quantizer(seen.minimum, seen.maximum, bits, include_zero=False)
        np.testing.assert_allclose(quantizer.scale, recording[f"{key}/scale"], rtol=OBSERVED[method], err_msg=key)
        assert quantizer.zero_point == recording[f"{key}/zero_point"], key
        check_steps(QUANTIZE(batches[1], quantizer), recording[f"{key}/fq_batch1"], quantizer, method == "minmax", key)
        compared(recording[f"{key}/fq_batch1"].size + 2 * len(batches) + 2)


def check_steps(got, wanted, quantizer, exact, key):
    """Equal, or, where a scale differs in its last digits, off by a step in at most one value of a thousand."""
    if exact:
        np.testing.assert_array_equal(got, wanted, err_msg=key)
    steps = np.abs(got - wanted) / quantizer.scale
    assert (steps > 0.05).mean() <= 1e-3 and steps.max() < 1.05, key


def test_the_range_that_rounds_the_last_batch_best(recording, compared):
    for kind, key, _, bits in cases(recording, ("omse",)):
        batches = recording[f"x/{kind}"]
        observer = channel_ranges(tokens=batches[0][..., 0].size, last_call=True)
        seen = observer.empty(batches[0])
        *observed, found = recording[f"{key}/range_trace"]
        for batch, (high, low) in zip(batches, [*observed, (batches.max(), batches.min())], strict=True):
            seen = observer.update(seen, jnp.asarray(batch))
            assert seen.range() == (low, high), key
        weights = (seen.priority > 0).astype(np.float32)
        low, high = omse_range(*seen.range(), bits, seen.tokens, weights, include_zero=False)
        np.testing.assert_allclose((high, low), found, rtol=1e-6, err_msg=key)
        np.testing.assert_allclose(
            high, (1 - 0.01 * recording[f"{key}/best_step"]) * batches.max(), rtol=1e-6, err_msg=key
        )
        quantizer = static_quantizer(low, high, bits, include_zero=False)
        np.testing.assert_allclose(quantizer.scale, recording[f"{key}/scale"], rtol=1e-6, err_msg=key)
        assert quantizer.zero_point == recording[f"{key}/zero_point"], key
        check_steps(QUANTIZE(batches[1], quantizer), recording[f"{key}/fq_batch1"], quantizer, False, key)
        compared(batches[1].size + 2 * len(batches) + 3)


def test_a_range_with_zero_is_the_released_quantizer_where_zero_is_in_range_and_sound_elsewhere(recording, compared):
    for kind, key, _, bits in cases(recording, ("minmax",)):
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
        quantizer = per_token_quantizer(bits, include_zero=False)
        np.testing.assert_array_equal(QUANTIZE(x, quantizer), wanted, err_msg=key)
        grid = GRID(x, quantizer)
        scale, zero_point = recording[f"{key}/scale"], recording[f"{key}/zero_point"]
        np.testing.assert_allclose(np.ravel(grid.scale), scale.ravel(), rtol=1e-6, err_msg=key)
        np.testing.assert_array_equal(np.ravel(grid.zero_point), zero_point.ravel(), err_msg=key)
        compared(wanted.size + 2 * scale.size)


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
    quantizer = static_quantizer(0.0, 0.0, int(np.log2(top + 1)), include_zero=False)
    assert quantizer.scale == recording["zeros/scale"]
    np.testing.assert_array_equal(QUANTIZE(np.ones_like(wanted), quantizer), wanted)
    compared(wanted.size + 1)


def test_everything_recorded_is_compared(recording, check_all_read):
    check_all_read(recording, {"zeros/zero_point": "codes of a constant 0 are 0 whatever it is"})
