"""What a trained world model imagines, measured against the truth and drawn beside it."""

from io import BytesIO
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
    from matplotlib.figure import Figure  # only runs that draw load matplotlib

    rows = []
    for truth, imagined in zip(rollouts.truth[:count], rollouts.imagined[:count], strict=True):
        side = imagined.shape[1]
        rows += [jax.image.resize(truth, (*truth.shape[:1], side, side, 3), "linear"), imagined]
    pixels = np.asarray(jnp.clip(jnp.stack(rows) * 0.5 + 0.5, 0, 1) * 255).round().astype(np.uint8)
    fig = Figure(figsize=(0.9 * pixels.shape[1] + 0.5, 0.95 * len(rows) + 0.5), layout="constrained")
    for row, axes in enumerate(fig.subplots(len(rows), pixels.shape[1], squeeze=False)):
        axes[0].set_ylabel("imagined" if row % 2 else "true", fontsize=8)
        for frame, ax in enumerate(axes):
            ax.imshow(pixels[row, frame], interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            if row == 0:
                ax.set_title("observed" if frame == 0 else f"action {frame}", fontsize=8)
    buffer = BytesIO()
    fig.savefig(buffer, format="png", dpi=100)
    io.write_bytes(path, buffer.getvalue())
