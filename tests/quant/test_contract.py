"""What every quantization method keeps, whatever its granularity and bits: one table, the same tests for all."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmq_jax import quant
from wmq_jax.quant import WeightSpec


@dataclasses.dataclass(frozen=True)
class Method:
    """A method, and what its grids cover.

    Attributes:
      quantize: ``(x, bits) -> fake-quantized x`` for arrays of two axes.
      independent: axes along which slices never see each other.
      split: cuts an array into parts that have one grid each.
    """

    quantize: Callable
    independent: tuple[int, ...]
    split: Callable

    def __post_init__(self):
        # One program for all bits; only the comparison with eager execution takes another way.
        object.__setattr__(self, "compiled", jax.jit(self.quantize))


def _rtn(*spec, independent=(1,)) -> Method:
    def split(x):
        return jnp.concatenate(quant.to_groups(x, WeightSpec(None, *spec)))

    return Method(lambda x, bits: quant.fake_quant_weight(x, WeightSpec(bits, *spec)), independent, split)


def _searched(grid_fn, *spec) -> Method:
    def split(x):
        return jnp.concatenate(quant.to_groups(x, WeightSpec(None, *spec)))

    return Method(lambda x, bits: quant.fake_quant_weight(x, WeightSpec(bits, *spec), grid_fn), (1,), split)


def _static(include_zero) -> Method:
    def quantize(x, bits):
        # A fixed range, as calibration gives: what is quantized now does not decide it.
        return quant.fake_quant(x, quant.static_quantizer(-2.5, 3.5, bits, include_zero=include_zero))

    return Method(quantize, (0, 1), lambda x: [x])


def _token(include_zero) -> Method:
    def quantize(x, bits):
        return quant.fake_quant(x, quant.per_token_quantizer(bits, include_zero=include_zero))

    return Method(quantize, (0,), list)


METHODS = {
    "rtn per channel": _rtn(),
    "rtn groups that divide": _rtn(8),
    "rtn groups that do not": _rtn(7),
    "rtn flat groups": _rtn(16, "flat", independent=()),
    "omse per channel": _searched(quant.omse_grid),
    "omse groups that do not divide": _searched(quant.omse_grid, 7),
    "asymmetric groups": _searched(quant.range_grid, 8),
    "static": _static(True),
    "static, range as observed": _static(False),
    "per token": _token(True),
    "per token, range as observed": _token(False),
}
BITS = (2, 3, 4, 8, 15)

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@pytest.fixture(scope="module")
def x():
    """(24, 32) values with outliers, a zero row and column, a constant row, signed zeros and exact half steps."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(24, 32)).astype(np.float32)
    values[3, 5], values[9, 20] = 40, -60
    values[1], values[:, 2], values[4] = 0, 0, 0.75
    values[6] = np.arange(32) / 8
    values[7, :4] = -0.0
    return jnp.asarray(values)


@every_method
@pytest.mark.parametrize("bits", [3, 8])
def test_jit_equals_eager(method, x, bits):
    with jax.disable_jit():
        eager = method.quantize(x, bits)
    np.testing.assert_array_equal(jax.jit(method.quantize, static_argnums=1)(x, bits), eager)
    np.testing.assert_array_equal(method.compiled(x, bits), eager)


@every_method
def test_vmap_over_bits_equals_the_loop(method, x):
    bits = (*BITS, quant.NO_BITS)
    batched = jax.jit(jax.vmap(method.quantize, (None, 0)))(x, jnp.array(bits))
    for one, width in zip(batched, bits):
        np.testing.assert_array_equal(one, method.compiled(x, width))


@every_method
def test_vmap_over_inputs_equals_the_loop(method, x):
    stack = jnp.stack([x, x[::-1], 2 * x])
    batched = jax.jit(jax.vmap(method.quantize, (0, None)))(stack, 4)
    for one, alone in zip(batched, stack):
        np.testing.assert_array_equal(one, method.compiled(alone, 4))


@every_method
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_shape_and_dtype_are_kept(method, x, dtype):
    quantized = method.compiled(x.astype(dtype), 4)
    assert (quantized.shape, quantized.dtype) == (x.shape, dtype)
    # The arithmetic is float32: the result is that of the float32 values, rounded once.
    np.testing.assert_array_equal(quantized, method.compiled(x.astype(dtype).astype(jnp.float32), 4).astype(dtype))


@every_method
@pytest.mark.parametrize("none", [None, 16, 32])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_no_bits_is_the_identity_bit_for_bit(method, x, none, dtype):
    x = x.astype(dtype).at[0, 0].set(jnp.nan)
    assert np.asarray(method.quantize(x, none)).tobytes() == np.asarray(x).tobytes()
    traced = method.compiled(x, quant.canonical_bits(none))
    assert np.asarray(traced).tobytes() == np.asarray(x).tobytes()


@every_method
def test_error_falls_as_bits_rise_by_two(method):
    x = jax.random.normal(jax.random.key(0), (24, 32)).clip(-2.4, 3.4)
    errors = [float(((method.compiled(x, bits) - x) ** 2).mean()) for bits in range(2, 14)]
    assert all(finer <= coarser * 1.01 for coarser, finer in zip(errors, errors[2:]))
    assert errors[-1] < errors[0] * 1e-4


@every_method
def test_a_grid_has_no_more_values_than_codes(method, x):
    for bits in (2, 3):
        counts = [len(np.unique(part)) for part in method.split(method.compiled(x, bits))]
        assert 2 ** (bits - 1) < max(counts) <= 2**bits


@every_method
def test_independent_slices_do_not_see_each_other(method, x):
    for axis in method.independent:
        whole = method.compiled(x, 4)
        spoiled = jnp.moveaxis(jnp.moveaxis(x, axis, 0).at[1:].multiply(1e3), 0, axis)
        first = (slice(None),) * axis + (slice(1),)
        np.testing.assert_array_equal(method.compiled(spoiled, 4)[first], whole[first])


@every_method
def test_permuting_independent_slices_permutes_the_result(method, x):
    for axis in method.independent:
        order = np.random.default_rng(1).permutation(x.shape[axis])
        permuted = method.compiled(jnp.take(x, order, axis), 4)
        np.testing.assert_array_equal(permuted, jnp.take(method.compiled(x, 4), order, axis))


@pytest.mark.parametrize("bits", BITS)
def test_a_fixed_grid_is_idempotent(x, bits):
    quantizer = quant.static_quantizer(-2.5, 3.5, bits)
    once = quant.fake_quant(x, quantizer)
    np.testing.assert_array_equal(quant.fake_quant(once, quantizer), once)
    once, twice = round_twice(quant.to_groups(x, WeightSpec(None, 8)), bits)
    np.testing.assert_array_equal(twice, once)


@jax.jit
def round_twice(groups, bits):
    """Groups rounded to their own grids once, and twice."""
    grid = quant.absmax_grid(groups, bits)
    once = quant.decode(quant.encode(groups, grid), grid)
    return once, quant.decode(quant.encode(once, grid), grid)


@every_method
def test_results_are_finite(method):
    for x in (jnp.zeros((8, 16)), jnp.full((8, 16), 5.0), jnp.full((8, 16), 1e30), jnp.full((8, 16), -1e-30)):
        assert jnp.isfinite(method.compiled(x, 4)).all()
