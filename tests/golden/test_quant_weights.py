"""Weight quantizers against quant_weights.npz: every method, per row and in the released grouping."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmq_jax.quant import (
    RELEASED_SCALE_LIMITS,
    ClippingSearch,
    WeightSpec,
    fake_quant_weight,
    from_groups,
    lwc_grid,
    omse_grid,
    released_absmax_grid,
    released_omse_grid,
    released_range_grid,
    round_to_grids,
    straight_through_round,
    to_groups,
)

# Recorded name -> grid. A moving average of a single update is that update; a search over one factor does not clip.
GRIDS = {
    "minmax": released_absmax_grid,
    "ema": released_absmax_grid,
    "omse": released_omse_grid,
    "awq_asym": released_range_grid,
    "awq_sym": ClippingSearch(points=1, lowest=1.0, scale_limits=RELEASED_SCALE_LIMITS),
}
# Learnable clipping pads rows, all others cut the flattened matrix.
LEARNED = re.compile(r"lwc_(sym|asym)_(4|2|rand)")


@functools.partial(jax.jit, static_argnums=(2, 3))
def grids_of(kernel, bits, spec, grid_fn):
    """The grids of all groups of a kernel."""
    return grid_fn(to_groups(kernel, spec), bits)


@pytest.fixture(scope="module")
def recording(golden):
    return golden("quant_weights.npz")


def spec_of(setting, layout="flat"):
    """'b4_g32' as a spec; a group of -1 is a whole row."""
    bits, group = (int(number) for number in re.fullmatch(r"b(\d+)_g(-?\d+)", setting).groups())
    return WeightSpec(bits, None if group < 0 else group, layout)


def cases(recording):
    """(matrix, setting, method) of everything recorded that can be quantized here."""
    found = []
    for matrix in recording.names("w/"):
        for setting in recording.names(f"{matrix}/"):
            methods = recording.names(f"{matrix}/{setting}/")
            unknown = [method for method in methods if method not in GRIDS and not LEARNED.fullmatch(method)]
            assert not unknown, f"recorded methods nobody accounts for: {unknown}"
            found += [(matrix, setting, method) for method in methods if method in GRIDS]
    assert found
    return found


def test_fake_quantized_weights_are_bit_exact(recording, compared):
    for matrix, setting, method in cases(recording):
        key = f"{matrix}/{setting}/{method}"
        kernel = jnp.asarray(recording[f"w/{matrix}"].T)  # ours are (in, out)
        spec = spec_of(setting)
        quantized = np.asarray(fake_quant_weight(kernel, spec, GRIDS[method])).T
        wanted = recording[f"{key}/fq_sub"]
        np.testing.assert_array_equal(quantized.reshape(-1)[recording[f"sub_idx/{matrix}"]], wanted, err_msg=key)
        np.testing.assert_allclose(
            quantized.astype(np.float64).sum(), recording[f"{key}/fq_sum"], rtol=1e-9, err_msg=key
        )
        square_sum = (quantized.astype(np.float64) ** 2).sum()
        np.testing.assert_allclose(square_sum, recording[f"{key}/fq_sqsum"], rtol=1e-9, err_msg=key)
        if f"{key}/fq" in recording:
            np.testing.assert_array_equal(quantized, recording[f"{key}/fq"], err_msg=key)
            compared(quantized.size)
        compared(wanted.size + 2)


def test_scales_are_bit_exact(recording, compared):
    for matrix, setting, method in cases(recording):
        key = f"{matrix}/{setting}/{method}"
        if f"{key}/scale" not in recording:  # the original cannot return some
            continue
        spec = spec_of(setting)
        grid = grids_of(recording[f"w/{matrix}"].T, spec.bits, dataclasses.replace(spec, bits=None), GRIDS[method])
        scale = recording[f"{key}/scale"]
        np.testing.assert_array_equal(np.ravel(grid.scale), scale.ravel(), err_msg=key)
        zero_point = "zero" if f"{key}/zero" in recording else "zero_point"
        np.testing.assert_array_equal(np.ravel(grid.zero_point), recording[f"{key}/{zero_point}"].ravel(), err_msg=key)
        compared(2 * scale.size)
        if f"{key}/ratio" in recording:
            absmax = np.abs(to_groups(jnp.asarray(recording[f"w/{matrix}"].T), spec)).max(-1).ravel()
            chosen = np.clip(recording[f"{key}/ratio"].ravel() * absmax / grid.qmax.ravel(), *RELEASED_SCALE_LIMITS)
            np.testing.assert_allclose(np.ravel(grid.scale), chosen, rtol=1e-6, err_msg=key)
            compared(chosen.size)


def test_the_sound_limits_of_omse_change_tiny_groups_only(recording, compared):
    for matrix, setting, method in cases(recording):
        if method == "omse":
            kernel = jnp.asarray(recording[f"w/{matrix}"].T)
            spec = spec_of(setting)
            sound, released = (fake_quant_weight(kernel, spec, grid_fn) for grid_fn in (omse_grid, released_omse_grid))
            np.testing.assert_array_equal(sound, released)
            compared(kernel.size)
    tiny = kernel * 1e-8
    assert not fake_quant_weight(tiny, WeightSpec(4), released_omse_grid).any()
    np.testing.assert_allclose(fake_quant_weight(tiny, WeightSpec(4), omse_grid), tiny, atol=1e-7)


@functools.partial(jax.jit, static_argnames=("spec", "symmetric"))
def learned(kernel, bits, upper, lower, spec, symmetric):
    """Weights clipped by given factors, their grids, and loss and gradients of the mean squared error."""
    grid_fn = lambda up, lo: lambda groups, bits: lwc_grid(groups, bits, up, lo, symmetric, True, RELEASED_SCALE_LIMITS)

    def loss(up, lo):
        rounded = round_to_grids(kernel, bits, spec, grid_fn(up, lo), straight_through_round)
        return jnp.mean((rounded - kernel) ** 2), rounded

    (error, rounded), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(upper, lower)
    return rounded, grid_fn(upper, lower)(to_groups(kernel, spec), bits), error, gradients


def test_learnable_clipping(recording, compared):
    for matrix in recording.names("w/"):
        kernel = jnp.asarray(recording[f"w/{matrix}"].T)
        for setting in recording.names(f"{matrix}/"):
            for method in recording.names(f"{matrix}/{setting}/"):
                if not LEARNED.fullmatch(method):
                    continue
                key = f"{matrix}/{setting}/{method}"
                kind, factor = LEARNED.fullmatch(method).groups()
                spec = spec_of(setting, "padded")
                grouped = to_groups(kernel, spec).shape[:2]
                factors = [
                    recording[f"{key}/{name}"] if factor == "rand" else np.full(grouped, factor, np.float32)
                    for name in ("up", "lo")
                ]
                factors = [np.reshape(values, (*grouped, 1)) for values in factors]
                static = dataclasses.replace(spec, bits=None)
                rounded, grid, error, gradients = learned(kernel, spec.bits, *factors, static, kind == "sym")
                scale = recording[f"{key}/scale"].ravel()
                np.testing.assert_allclose(np.ravel(grid.scale), scale, rtol=1e-5, err_msg=key)
                np.testing.assert_array_equal(np.ravel(grid.zero_point), recording[f"{key}/zero"].ravel(), err_msg=key)
                check_learned(recording, key, np.asarray(rounded).T, steps_of(grid, kernel, spec).T, compared)
                compared(2 * scale.size)
                if f"{key}/loss_mse" in recording:
                    np.testing.assert_allclose(error, recording[f"{key}/loss_mse"], rtol=1e-4, err_msg=key)
                    for name, gradient in zip(("grad_up", "grad_lo"), gradients):
                        recorded = recording[f"{key}/{name}"].reshape(gradient.shape)
                        difference = np.linalg.norm(gradient - recorded)
                        assert difference <= 1e-3 * np.linalg.norm(recorded), (key, name)
                        compared(recorded.size)


def check_learned(recording, key, rounded, steps, compared):
    """Compares rounded weights (out, in) with the recorded ones.

    A value that sits on a rounding boundary may go either way, one in a thousand by one step: sigmoid differs in its
    last digit. That and the scales' 1e-5 bound the sums over the matrix.
    """
    entries = {"fq_sub": recording[f"sub_idx/{key[0]}"], "fq": slice(None)}
    for name in (name for name in entries if f"{key}/{name}" in recording):
        wanted = recording[f"{key}/{name}"].ravel()
        got, step = (array.reshape(-1)[entries[name]] for array in (rounded, steps))
        off = ~np.isclose(got, wanted, rtol=1e-5, atol=0)
        assert off.mean() <= 1e-3 and (np.abs(got - wanted) / step).max() < 1.01, (key, name)
        compared(wanted.size)
    exact, flips = rounded.astype(np.float64), 1e-3 * rounded.size * steps.max()
    assert abs(exact.sum() - recording[f"{key}/fq_sum"]) <= flips + 1e-5 * np.abs(exact).sum(), key
    largest = 2 * np.abs(exact).max() + steps.max()
    assert abs((exact**2).sum() - recording[f"{key}/fq_sqsum"]) <= largest * flips + 2e-5 * (exact**2).sum(), key
    compared(2)


def steps_of(grid, kernel, spec):
    """The scale of every weight."""
    groups = to_groups(kernel, spec)
    return np.asarray(from_groups(jnp.broadcast_to(grid.scale, groups.shape), kernel.shape, spec))


def test_what_the_released_grouping_cannot_cut_is_refused_and_padding_can(recording, compared):
    failures = [key.split("/") for key in recording.json("errors_json")]
    refused = [key[:2] for key in failures if len(key) == 4 and key[2] in GRIDS and not key[3]]
    assert refused
    for matrix, setting in refused:
        kernel = jnp.asarray(recording[f"w/{matrix}"].T)
        with pytest.raises(ValueError, match="the flat layout needs a group_size that divides"):
            fake_quant_weight(kernel, spec_of(setting))
        assert fake_quant_weight(kernel, spec_of(setting, "padded")).shape == kernel.shape
    compared(len(refused))


def test_padding_equals_the_released_grouping_where_groups_fit_the_rows(recording, compared):
    fitting = 0
    for matrix, setting, _ in cases(recording):
        kernel = jnp.asarray(recording[f"w/{matrix}"].T)
        flat, padded = spec_of(setting), spec_of(setting, "padded")
        if flat.group_size is None or kernel.shape[0] % flat.group_size == 0:
            np.testing.assert_array_equal(fake_quant_weight(kernel, padded), fake_quant_weight(kernel, flat))
            fitting += kernel.size
    compared(fitting)


def test_everything_recorded_is_compared(recording, check_all_read):
    check_all_read(recording, {})
