"""Image and position-table resampling, with the conventions of the official models.

Images are channel last, float32 in [-1, 1].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def normalize_image(image: jax.Array) -> jax.Array:
    """Maps pixel values 0..255 (any dtype) to float32 in [-1, 1]: (v / 255 - 0.5) / 0.5."""
    return (jnp.asarray(image, jnp.float32) / 255.0 - 0.5) / 0.5


def resize(image: jax.Array, size: int) -> jax.Array:
    """Resizes square images (..., H, H, C) to (..., size, size, C): bilinear, with antialiasing.

    Nothing is clipped or rounded; an image that has the size already is returned as it is.
    """
    side = image.shape[-2]
    if side == size:
        return image
    weights = _triangle_weights(side, size)
    return jnp.einsum("ij,kl,...jlc->...ikc", weights, weights, image, precision=lax.Precision.HIGHEST)


def _triangle_weights(old: int, new: int) -> np.ndarray:
    """(new, old) float32: the weight of each old pixel in each new one, along one axis.

    A triangle around the new pixel's centre, as wide as the larger of the two pixels. Computed here, in float32 as
    the original does it, since a compiler's rounding of the centres is visible at sharp edges.
    """
    scale = np.float32(old) / np.float32(new)
    width = max(scale, np.float32(1))
    half = np.float32(0.5)
    centre = (np.arange(new, dtype=np.float32) + half) * scale
    distance = np.arange(old, dtype=np.float32) - centre[:, None] + half
    weights = np.maximum(0, 1 - np.abs(distance / width))
    return weights / weights.sum(axis=1, keepdims=True)


def interpolate_positions(table: jax.Array, grid: int, *, offset: float, antialias: bool) -> jax.Array:
    """Resamples a position table (G, G, D) to (grid, grid, D) with a bicubic kernel, as DINOv2 does.

    The published backbones stretch the table by (grid + offset) / G with offset 0.1, so the samples are not those
    of a plain resize to `grid`; a table of the right size is returned as it is.

    Args:
      table: (G, G, D) float32.
      grid: target side, in patches.
      offset: added to the target side when the stretch is computed.
      antialias: widen the kernel when the table shrinks. The kernel's parameter then is a = -0.5, and -0.75
        without: the two choices of the original library.
    """
    side = table.shape[0]
    if side == grid:
        return table
    stretch = jnp.full((2,), (grid + offset) / side, jnp.float32)
    kernel = "bicubic" if antialias else "bicubic-pytorch"
    return jax.image.scale_and_translate(
        table, (grid, grid, table.shape[-1]), (0, 1), stretch, jnp.zeros((2,), jnp.float32), kernel, antialias=antialias
    )
