"""Pictures of one cell: where it started, where it should go, the path it took, and what the model imagined beside reality."""

from typing import TYPE_CHECKING

import numpy as np

from wmq_jax.analysis import style
from wmq_jax.analysis.results import Trace

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

_FRAMES = 6


def filmstrip_size(trace: Trace) -> tuple[float, float]:
  return 3.6 + 1.18 * len(_chosen_frames(trace)), 2.75


def draw_filmstrip(fig: 'Figure', trace: Trace, goal: tuple[float, ...] | None) -> None:
  """Start and goal, the path, and evenly spread frames of reality above those that the model imagined.

  Args:
    fig: to draw on.
    trace: of the cell.
    goal: position of the goal in the path's coordinates, if known.
  """
  chosen = _chosen_frames(trace)
  left, right = fig.subfigures(1, 2, width_ratios=[3.6, 1.18 * len(chosen)])
  layout = left.subplot_mosaic([['start', 'path'], ['goal', 'path']], width_ratios=[1, 2.1])
  _image(layout['start'], trace.start, 'start')
  _image(layout['goal'], trace.goal, 'goal')
  _path(layout['path'], trace, goal)
  rows = right.subplots(2, len(chosen), squeeze=False)
  for column, frame in enumerate(chosen):
    _image(rows[0, column], trace.real[frame], f'action {frame + 1}')
    _image(rows[1, column], trace.imagined[frame], '')
  rows[0, 0].set_ylabel('reality')
  rows[1, 0].set_ylabel('imagined')
  colour = style.TONES['survives' if trace.outcome == 'success' else 'falls'].light
  fig.suptitle(f'{trace.variant}: {trace.outcome}', x=0.012, ha='left', fontsize=10.5, fontweight='bold', color=colour)


def _chosen_frames(trace: Trace) -> list[int]:
  count = min(len(trace.real), len(trace.imagined))
  return np.unique(np.linspace(0, count - 1, min(_FRAMES, count)).round().astype(int)).tolist()


def _image(ax: 'Axes', image: np.ndarray, title: str) -> None:
  ax.imshow(image, interpolation='nearest')
  ax.set_xticks([])
  ax.set_yticks([])
  ax.grid(visible=False)
  for spine in ax.spines.values():
    spine.set_visible(True)
  ax.set_title(title, fontsize=8, fontweight='normal', pad=3)


def _path(ax: 'Axes', trace: Trace, goal: tuple[float, ...] | None) -> None:
  """The path over the faded start picture where the picture's extent is known, else on plain axes with y downwards."""
  path = trace.path
  if trace.extent is not None:
    ax.imshow(trace.start, extent=trace.extent, alpha=0.3, interpolation='nearest')
  ax.plot(path[:, 0], path[:, 1], color=style.TONES['survives'].light, linewidth=1.6, alpha=0.9)
  ax.plot(path[1:, 0], path[1:, 1], '.', color=style.TONES['survives'].light, markersize=4)
  ax.plot(*path[0], 'o', color=style.INK, markersize=6)
  if goal is not None and len(goal) >= 2:
    ax.plot(goal[0], goal[1], '*', color=style.TONES['falls'].light, markersize=11)
  ax.set_aspect('equal', adjustable='datalim' if trace.extent is None else 'box')
  if trace.extent is None:
    ax.invert_yaxis()
    ax.margins(0.12)
  else:
    ax.set_xlim(trace.extent[0], trace.extent[1])
    ax.set_ylim(trace.extent[2], trace.extent[3])
  ax.set_xticks([])
  ax.set_yticks([])
  for spine in ax.spines.values():
    spine.set_visible(True)
  ax.set_title('path (dot: start, star: goal)' if goal is not None else 'path (dot: start)', fontsize=8, fontweight='normal', pad=3)
