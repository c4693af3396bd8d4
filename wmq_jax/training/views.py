"""Blurred views of an image: what the encoder learns to predict.

A Gaussian blur of standard deviation s turns the small agent into a hill whose slope reaches some 2 s pixels. A code
from which views of several widths can be read *linearly* therefore changes smoothly and monotonically as the agent
moves, near and far, and that is the distance a planner descends. The views are functions of the image alone; no
position is given.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def blur_matrix(size: int, grid: int, blur: float) -> np.ndarray:
    """Rows of a Gaussian blur sampled at `grid` evenly spaced places: (grid, size) float32, each row sums to 1."""
    centres = (np.arange(grid) + 0.5) * size / grid - 0.5
    weights = np.exp(-((centres[:, None] - np.arange(size)) ** 2) / (2 * blur**2))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def blurred_views(images: jax.Array, blurs: Sequence[float], grid: int, patches: int) -> jax.Array:
    """Blurs images at several widths and cuts every view into patches.

    Args:
      images: (B, H, H, C).
      blurs: K standard deviations, in pixels.
      grid: side of a view, in samples.
      patches: patches along a side; divides `grid`.

    Returns:
      (K, B, patches^2, (grid / patches)^2 * C), patches row-major.
    """
    views = []
    for blur in blurs:
        matrix = blur_matrix(images.shape[1], grid, blur)
        rows = jnp.einsum("gh,bhwc->bgwc", matrix, images)
        views.append(jnp.einsum("gw,bhwc->bhgc", matrix, rows))
    return _to_patches(jnp.stack(views), patches)


def _to_patches(views: jax.Array, patches: int) -> jax.Array:
    count, batch, grid, _, channels = views.shape
    side = grid // patches
    views = views.reshape(count, batch, patches, side, patches, side, channels)
    return views.transpose(0, 1, 2, 4, 3, 5, 6).reshape(count, batch, patches**2, side**2 * channels)
