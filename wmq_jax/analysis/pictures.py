"""All pictures of a report, drawn."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from wmq_jax.analysis import plots, style
from wmq_jax.analysis.alignment import Alignment
from wmq_jax.analysis.filmstrip import draw_filmstrip, filmstrip_size
from wmq_jax.analysis.method_chart import draw_methods, methods_size
from wmq_jax.analysis.methods import MethodTable
from wmq_jax.analysis.results import Results, Trace
from wmq_jax.analysis.summary import Comparison


@dataclasses.dataclass(frozen=True)
class Picture:
    """A finished figure.

    Attributes:
      name: of its file, without ending.
      png: the file's bytes.
      svg: the chart as an <svg> element; None for photographs.
      trace: the cell that a photograph shows; None for charts.
    """

    name: str
    png: bytes
    svg: str | None = None
    trace: Trace | None = None


def draw_pictures(
    results: Results, comparison: Comparison, aligned: Mapping[str, Alignment], methods: MethodTable | None
) -> Iterator[Picture]:
    """Draws the charts, then a filmstrip a trace.

    Args:
      results: the results folder.
      comparison: what the charts show.
      aligned: alignment of every variant in the comparison that has rows.
      methods: the same variants by setting and method, if the sweep has several methods.

    Yields:
      Pictures, the charts named 'survival', 'methods' (if given), 'success_by_iteration', 'success_by_size',
      'alignment' and 'plans'.
    """
    shown = plots.chosen_for_scatter(comparison)
    yield _chart("survival", plots.survival_size(comparison), plots.draw_survival, comparison)
    if methods is not None:
        yield _chart("methods", methods_size(methods), draw_methods, methods)
    yield _chart("success_by_iteration", plots.curves_size(comparison), plots.draw_curves, comparison)
    yield _chart("success_by_size", plots.SIZE_SIZE, plots.draw_size, comparison)
    yield _chart("alignment", plots.alignment_size(comparison), plots.draw_alignment, comparison, aligned)
    yield _chart("plans", plots.scatter_size(shown), plots.draw_scatter, comparison, aligned, shown)
    for trace in results.traces:
        name = re.sub(r"[^a-z0-9]+", "_", f"rollout_{trace.variant}_{trace.outcome}".lower())
        with style.figure(*filmstrip_size(trace)) as fig:
            draw_filmstrip(fig, trace)
            yield Picture(name, style.to_png(fig), trace=trace)


def _chart(name: str, size: tuple[float, float], draw: Callable[..., None], *args: Any) -> Picture:
    with style.figure(*size) as fig:
        draw(fig, *args)
        return Picture(name, style.to_png(fig), style.to_svg(fig, name))
