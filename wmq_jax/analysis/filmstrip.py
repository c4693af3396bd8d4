"""Pictures of one cell: where it started and should go, its path, and what the model imagined beside reality."""

from typing import TYPE_CHECKING

import numpy as np

from wmq_jax.analysis import style
from wmq_jax.analysis.results import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FRAMES = 6
_SIDE = 1.12  # inches of a frame's longer side
_GAP = 0.09  # inches between pictures
_TEXT = 0.22  # inches of a line of text


def filmstrip_size(trace: Trace) -> tuple[float, float]:
    """Width and height of a trace's filmstrip, in inches."""
    return _frames_left() + len(_chosen_frames(trace)) * (_SIDE + _GAP), 0.12 + 2 * _TEXT + 2 * _SIDE + _GAP + _TEXT


def draw_filmstrip(fig: "Figure", trace: Trace) -> None:
    """Start and goal, the path, and evenly spread frames of reality above those that the model imagined.

    The layout is in inches on one canvas: pictures of known sizes need no search for a layout.

    Args:
      fig: to draw on.
      trace: of the cell.
    """
    fig.set_layout_engine("none")
    width, height = filmstrip_size(trace)
    canvas = fig.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    canvas.set_axis_off()
    upper, lower = _TEXT + _SIDE + _GAP, _TEXT
    _picture(canvas, trace.start, _GAP, upper)
    _picture(canvas, trace.goal, _GAP, lower)
    _caption(canvas, "start", _GAP + _SIDE / 2, upper + _SIDE, "bottom")
    _caption(canvas, "goal", _GAP + _SIDE / 2, lower, "top")
    side = 2 * _SIDE + _GAP
    _path(fig.add_axes(((_SIDE + 2 * _GAP) / width, lower / height, side / width, side / height)), trace)
    _caption(
        canvas,
        "path from start (dot)" + (" to goal (star)" if _has_star(trace) else ""),
        _SIDE + 2 * _GAP + side / 2,
        upper + _SIDE,
        "bottom",
    )
    left = _frames_left()
    for column, frame in enumerate(_chosen_frames(trace)):
        x = left + column * (_SIDE + _GAP)
        _picture(canvas, trace.real[frame], x, upper)
        _picture(canvas, trace.imagined[frame], x, lower)
        _caption(canvas, f"action {frame + 1}", x + _SIDE / 2, upper + _SIDE, "bottom")
    for label, y in (("reality", upper), ("imagined", lower)):
        canvas.text(left - 0.06, y + _SIDE / 2, label, rotation=90, ha="right", va="center", fontsize=9)
    colour = style.TONES["survives" if trace.outcome == "success" else "falls"].light
    canvas.text(
        _GAP,
        height - 0.08,
        f"{trace.variant}: {trace.outcome} (episode {trace.episode}, seed {trace.seed})",
        va="top",
        fontsize=10.5,
        fontweight="bold",
        color=colour,
    )


def _chosen_frames(trace: Trace) -> list[int]:
    count = min(len(trace.real), len(trace.imagined))
    return np.unique(np.linspace(0, count - 1, min(_FRAMES, count)).round().astype(int)).tolist()


def _frames_left() -> float:
    """Inches at which the frames begin: after start and goal, the path, and the rows' names."""
    return 3 * _SIDE + 4 * _GAP + _TEXT


def _picture(canvas: "Axes", image: np.ndarray, x: float, y: float) -> None:
    """An image (h, w, 3) in a square frame whose lower left corner is (x, y) inches."""
    h, w = image.shape[:2]
    width, height = _SIDE * w / max(h, w), _SIDE * h / max(h, w)
    x, y = x + (_SIDE - width) / 2, y + (_SIDE - height) / 2
    canvas.imshow(image, extent=(x, x + width, y, y + height), aspect="auto", interpolation="nearest")
    canvas.plot([x, x + width, x + width, x, x], [y, y, y + height, y + height, y], color=style.SOFT, linewidth=0.8)


def _caption(canvas: "Axes", text: str, x: float, y: float, va: str) -> None:
    canvas.text(x, y + (0.03 if va == "bottom" else -0.04), text, ha="center", va=va, fontsize=8)


def _has_star(trace: Trace) -> bool:
    return trace.path.shape[1] == 2 and trace.goal_position is not None


def _path(ax: "Axes", trace: Trace) -> None:
    """The path over the faded start picture where its extent is known, else on plain axes with y downwards."""
    path, colour = trace.path, style.TONES["survives"].light
    if path.shape[1] == 1:  # over model actions
        path = np.column_stack([np.arange(len(path)), path])
    if trace.extent is not None:
        ax.imshow(trace.start, extent=trace.extent, alpha=0.3, interpolation="nearest")
    ax.plot(path[:, 0], path[:, 1], color=colour, linewidth=1.6, alpha=0.9)
    ax.plot(path[1:, 0], path[1:, 1], ".", color=colour, markersize=4)
    ax.plot(*path[0], "o", color=style.INK, markersize=6)
    if _has_star(trace):
        ax.plot(*trace.goal_position, "*", color=style.TONES["falls"].light, markersize=11)
    if trace.extent is not None:
        ax.set_xlim(trace.extent[:2])
        ax.set_ylim(trace.extent[2:])
        ax.set_aspect("equal", adjustable="box")
    else:
        ax.margins(0.12)
        ax.set_aspect("equal", adjustable="datalim")
        ax.invert_yaxis()
    ax.grid(visible=False)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(True)
