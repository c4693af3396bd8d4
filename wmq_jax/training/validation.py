"""What a trained world model imagines, measured against the truth and drawn beside it."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wmq_jax import io
from wmq_jax.envs import Wall
from wmq_jax.models import WorldModel
from wmq_jax.training.frames import Frames, render


class Rollouts(NamedTuple):
    """N open-loop imaginations of F frames; frame 0 is observed.

    Attributes:
      truth: (N, F, H, H, 3) true frames in [-1, 1].
      imagined: (N, F, H', H', 3) decoded imagination in [-1, 1], not clipped.
      visual, proprio: (F,) mean squared error of the imagined latents.
      copy_visual, copy_proprio: (F,) the same where frame 0 is taken for all.
    """

    truth: jax.Array
    imagined: jax.Array
    visual: jax.Array
    proprio: jax.Array
    copy_visual: jax.Array
    copy_proprio: jax.Array


def imagine_trajectories(model: WorldModel, params: Any, env: Wall, frames: Frames) -> Rollouts:
    """Imagines whole trajectories from their first frame and their actions alone, by the plain rollout."""

    @jax.jit
    def imagine(params, frames):
        truth = render(env, frames.states)
        apply = lambda *args, method: model.apply({"params": params}, *args, method=method)
        target = apply(truth, frames.proprio, method="encode_obs")
        found = apply(truth[:, :1], frames.proprio[:, :1], frames.actions[:, :-1], method="rollout")
        error = lambda a, b: jnp.mean((a - b) ** 2, axis=(0, *range(2, a.ndim)))
        return Rollouts(
            truth,
            apply(found.visual, method="decode")[0],
            error(found.visual, target.visual),
            error(found.proprio, target.proprio),
            error(target.visual[:, :1], target.visual),
            error(target.proprio[:, :1], target.proprio),
        )

    return imagine(params, frames)


def draw_rollouts(path: Path, rollouts: Rollouts, count: int) -> None:
    """Draws `count` rollouts to a PNG file, each as a row of true frames above a row of decoded imagination."""
    rows = []
    for truth, imagined in zip(rollouts.truth[:count], rollouts.imagined[:count], strict=True):
        side = imagined.shape[1]
        rows += [jax.image.resize(truth, (*truth.shape[:1], side, side, 3), "linear"), imagined]
    pixels = np.asarray(jnp.clip(jnp.stack(rows) * 0.5 + 0.5, 0, 1) * 255).round().astype(np.uint8)
    io.write_bytes(path, _png(_mosaic(pixels)))


def _mosaic(images: np.ndarray, gap: int = 4) -> np.ndarray:
    """(R, F, h, w, 3) uint8 -> one picture, with grey gaps that are wider after every second row."""
    count, frames, height, width, _ = images.shape
    canvas = np.full((count * (height + gap) + count // 2 * gap, frames * (width + gap), 3), 160, np.uint8)
    for row in range(count):
        top = row * (height + gap) + row // 2 * gap
        for column in range(frames):
            left = column * (width + gap)
            canvas[top : top + height, left : left + width] = images[row, column]
    return canvas


def _png(pixels: np.ndarray) -> bytes:
    import io as stdio  # pylint: disable=g-import-not-at-top

    from matplotlib import image  # pylint: disable=g-import-not-at-top

    buffer = stdio.BytesIO()
    image.imsave(buffer, pixels, format="png")
    return buffer.getvalue()
