"""Blurred views: what they are of an image, and what they tell of a moving spot."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmq_jax.training.views import blur_matrix, blurred_views


@settings(max_examples=30, deadline=None)
@given(st.integers(8, 70), st.integers(1, 24), st.floats(0.5, 30))
def test_rows_are_averages(size, grid, blur):
    matrix = blur_matrix(size, grid, blur)
    assert matrix.shape == (grid, size) and (matrix >= 0).all()
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)
    # The grid is symmetric, so is the blur.
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-6)


def test_patches_are_row_major_and_keep_their_channels():
    image = np.zeros((1, 64, 64, 3), np.float32)
    image[0, 40:44, 20:24, 1] = 1
    (view,) = blurred_views(jnp.asarray(image), (1.0,), grid=16, patches=4)
    strongest = np.unravel_index(np.asarray(view).argmax(), view.shape)
    row, column = 42 // 4, 22 // 4  # sample of the view
    inside = (row % 4 * 4 + column % 4) * 3 + 1
    assert strongest == (0, row // 4 * 4 + column // 4, inside)


@pytest.mark.parametrize("blur", [4.0, 8.0, 16.0])
def test_views_grow_apart_as_a_spot_moves_away(blur):
    image = np.zeros((12, 65, 65, 1), np.float32)
    for n in range(12):
        image[n, 30, 8 + 4 * n] = 1
    (view,) = np.asarray(blurred_views(jnp.asarray(image), (blur,), grid=16, patches=4))
    distance = ((view - view[:1]) ** 2).sum(axis=(1, 2))
    reach = int(2 * blur // 4)
    assert (np.diff(distance[: min(reach, 8)]) > 0).all()
