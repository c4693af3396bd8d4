"""Weight quantizers against quant_weights.npz: round-to-nearest, per row and in the released grouping."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmq_jax.quant import WeightSpec, absmax_grid, fake_quant_weight, to_groups

# Recorded name -> grid. A moving average of a single update is that update.
GRIDS = {"minmax": absmax_grid, "ema": absmax_grid}
# Recorded methods that this library does not have yet.
LATER = re.compile("omse|awq_.*|lwc_.*")


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
            unknown = [method for method in methods if method not in GRIDS and not LATER.fullmatch(method)]
            assert not unknown, f"recorded methods nobody accounts for: {unknown}"
            found += [(matrix, setting, method) for method in methods if method in GRIDS]
    assert found
    return found


def test_round_to_nearest_is_bit_exact(recording, compared):
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
        spec = spec_of(setting)
        grid = grids_of(recording[f"w/{matrix}"].T, spec.bits, dataclasses.replace(spec, bits=None), GRIDS[method])
        scale = recording[f"{key}/scale"]
        np.testing.assert_array_equal(np.ravel(grid.scale), scale.ravel(), err_msg=key)
        np.testing.assert_array_equal(np.ravel(grid.zero_point), recording[f"{key}/zero_point"].ravel(), err_msg=key)
        compared(2 * scale.size)


def test_what_the_released_grouping_cannot_cut_is_refused_and_padding_can(recording, compared):
    failures = [key.split("/") for key in recording.json("errors_json")]
    refused = [key[:2] for key in failures if len(key) > 2 and key[2] in GRIDS]
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
