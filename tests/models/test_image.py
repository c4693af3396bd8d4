"""Resampling: what holds for any image or table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmq_jax.models.image import interpolate_positions, normalize_image, resize

SIZES = [(65, 56), (65, 224), (32, 28), (28, 28), (96, 7)]


def test_pixel_values_become_minus_one_to_one():
    np.testing.assert_allclose(normalize_image(np.array([0, 127.5, 255])), [-1, 0, 1], atol=1e-7)
    assert normalize_image(np.zeros(3, np.uint8)).dtype == jnp.float32


@pytest.mark.parametrize("old, new", SIZES)
def test_resize(old, new):
    """Keeps constants; keeps ramps in pixel-centre coordinates away from the border; treats both axes alike."""
    flat = jnp.full((2, old, old, 3), 0.3)
    np.testing.assert_allclose(resize(flat, new), jnp.full((2, new, new, 3), 0.3), rtol=1e-6)
    centres = (np.arange(old) + 0.5) / old
    ramp = np.broadcast_to(centres[:, None, None], (old, old, 1)).astype(np.float32)
    rows = np.asarray(resize(jnp.asarray(ramp), new))[:, 0, 0]
    border = int(np.ceil(new / old)) + 1
    inner = slice(border, -border)
    # A triangle sampled at whole pixels is a little lopsided where it shrinks an image: less than a tenth of a pixel.
    bound = 1e-5 if new >= old else 0.1 / old
    np.testing.assert_allclose(rows[inner], ((np.arange(new) + 0.5) / new)[inner], atol=bound)
    image = jax.random.normal(jax.random.key(0), (old, old, 3))
    np.testing.assert_allclose(resize(image.swapaxes(0, 1), new), resize(image, new).swapaxes(0, 1), atol=1e-5)


def test_an_image_of_the_right_size_is_returned_as_it_is():
    image = jax.random.normal(jax.random.key(0), (28, 28, 3))
    assert resize(image, 28) is image


@pytest.mark.parametrize("offset, antialias", [(0.1, False), (0.0, False), (0.0, True)])
def test_position_tables(offset, antialias):
    """Constants stay, the right size is returned as it is, and the offset matters."""
    table = jax.random.normal(jax.random.key(0), (9, 9, 4))
    assert interpolate_positions(table, 9, offset=offset, antialias=antialias) is table
    flat = interpolate_positions(jnp.full((9, 9, 4), 0.7), 5, offset=offset, antialias=antialias)
    np.testing.assert_allclose(flat, jnp.full((5, 5, 4), 0.7), rtol=1e-5)
    ours = interpolate_positions(table, 5, offset=offset, antialias=antialias)
    other = interpolate_positions(table, 5, offset=offset + 0.1, antialias=antialias)
    assert np.abs(ours - other).max() > 1e-3
