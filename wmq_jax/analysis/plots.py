"""The charts of the report: who survives, how fast, at what size, and whether the planner's objective still means
success.

Each function draws on the Figure of a `style.figure` context; the `*_size` beside it is the size it is made for, in
inches. Colours and markers tell verdicts, names stand beside what they name.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from wmq_jax.analysis import style
from wmq_jax.analysis.alignment import LINKS, Alignment
from wmq_jax.analysis.paired import Rate
from wmq_jax.analysis.summary import Comparison, Line

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

SIZE_SIZE = (7.6, 4.2)  # of `draw_size`, inches
_ROW = 0.27  # inches a line of text needs
_LEGEND_WIDTH = 4.7  # inches that the legend of the curves takes
_REFERENCE_STYLE = {"true simulator": "--", "random actions": ":"}


def survival_size(comparison: Comparison) -> tuple[float, float]:
    """Width and height that `draw_survival` is made for, in inches."""
    return 6.5 + _names_width(comparison), 1.0 + _ROW * len(_drawn(comparison))


def draw_survival(fig: "Figure", comparison: Comparison) -> None:
    """Success after the last MPC iteration, a line a variant, with the reference rates as vertical lines."""
    lines = _drawn(comparison)
    ax = fig.subplots()
    _reference_lines(ax, comparison, vertical=True)
    for row, line in enumerate(lines):
        _interval(ax, line, row)
    ax.set_yticks(range(len(lines)), [line.name for line in lines])
    ax.set_ylim(len(lines) - 0.4, -0.6)
    ax.set_xlim(-0.02, 1.02)
    _percent(ax.xaxis)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel(f"success within {comparison.length}, 95% interval")
    sizes = ax.secondary_yaxis("right")
    sizes.set_yticks(range(len(lines)), [f"{line.variant.size_bytes / 1e6:.2f} MB" for line in lines])
    sizes.tick_params(axis="y", length=0, labelcolor=style.SOFT)
    sizes.spines["right"].set_visible(False)
    _verdict_legend(fig, {line.verdict for line in lines})


def curves_size(comparison: Comparison) -> tuple[float, float]:
    """Width and height that `draw_curves` is made for, in inches."""
    rows, columns = _grid(len(_drawn(comparison)))
    lines = max(1 + line.name.count(", ") for line in _drawn(comparison))
    return max(2.05 * columns, _LEGEND_WIDTH), 0.6 + (1.5 + 0.15 * lines) * rows


def draw_curves(fig: "Figure", comparison: Comparison) -> None:
    """Success against MPC iterations, a panel a variant, full precision in grey behind each."""
    lines = _drawn(comparison)
    rows, columns = _grid(len(lines))
    panels = fig.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    steps = np.arange(1, comparison.iterations + 1)
    wide = steps if len(steps) > 1 else np.array([0.9, 1.1])  # a curve of one point would not be seen
    values = lambda estimates: np.broadcast_to(estimates, wide.shape)
    base = next((line for line in lines if line.name == comparison.full_precision), None)
    for ax, line in zip(panels, lines):
        for reference in comparison.references:
            ax.plot(
                wide, values(_estimates(reference)), _REFERENCE_STYLE[reference.name], color=style.SOFT, linewidth=0.9
            )
        if base is not None and base is not line:
            ax.plot(wide, values(_estimates(base)), color=style.SOFT, linewidth=1.4, alpha=0.55)
        colour = style.VERDICT_COLOURS[line.verdict]
        low, high = ([getattr(rate, end) for rate in line.success] for end in ("low", "high"))
        ax.fill_between(wide, values(low), values(high), color=colour, alpha=0.18, linewidth=0)
        ax.plot(
            steps,
            _estimates(line),
            color=colour,
            linewidth=1.6,
            marker=style.VERDICT_MARKERS[line.verdict],
            markersize=4,
        )
        ax.set_title(_wrapped(line.name), color=colour)
        ax.set_ylim(-0.03, 1.03)
        ax.set_xticks(steps if len(steps) <= 8 else steps[:: math.ceil(len(steps) / 6)])
        _percent(ax.yaxis)
    for ax in panels[len(lines) :]:
        ax.set_visible(False)
    for column in range(columns):
        lowest = max((i for i in range(len(lines)) if i % columns == column), default=None)
        if lowest is not None:
            panels[lowest].tick_params(labelbottom=True)
    fig.supxlabel("MPC iterations", fontsize=9)
    fig.supylabel("success", fontsize=9)
    _curve_legend(fig, comparison, base)


def draw_size(fig: "Figure", comparison: Comparison) -> None:
    """Success after the last MPC iteration against storage size."""
    lines = _drawn(comparison)
    ax = fig.subplots()
    obstacles = _reference_lines(ax, comparison, vertical=False)
    megabytes = _spread([line.variant.size_bytes / 1e6 for line in lines])
    for x, line in zip(megabytes, lines):
        rate, colour = line.success[-1], style.VERDICT_COLOURS[line.verdict]
        obstacles += ax.plot(
            [x, x], [rate.low, rate.high], color=colour, linewidth=1.3, alpha=0.45, solid_capstyle="round"
        )
        ax.plot([x], [rate.estimate], style.VERDICT_MARKERS[line.verdict], color=colour, markersize=6.5, zorder=3)
    ax.set_xscale("log")
    ax.set_xlim(min(megabytes) / 1.25, max(megabytes) * 1.75)  # room at the right for the names of the references
    _tick_log(ax.xaxis)
    ax.set_ylim(-0.06, 1.09)
    _percent(ax.yaxis)
    ax.set_xlabel("storage size (MB, log scale)")
    ax.set_ylabel(f"success within {comparison.length}")
    _verdict_legend(fig, {line.verdict for line in lines})
    fig.draw_without_rendering()
    order = sorted(range(len(lines)), key=lambda i: (lines[i].verdict != "baseline", megabytes[i]))
    style.label_points(
        ax,
        [megabytes[i] for i in order],
        [lines[i].success[-1].estimate for i in order],
        [lines[i].name for i in order],
        [style.VERDICT_COLOURS[lines[i].verdict] for i in order],
        obstacles,
    )


def alignment_size(comparison: Comparison) -> tuple[float, float]:
    """Width and height that `draw_alignment` is made for, in inches."""
    return 8.3 + _names_width(comparison), 1.35 + _ROW * len(_drawn(comparison))


def draw_alignment(fig: "Figure", comparison: Comparison, aligned: Mapping[str, Alignment]) -> None:
    """Rank correlations of each link, a line a variant, and success at the right: what breaks first as bits fall.

    Args:
      fig: to draw on.
      comparison: the variants.
      aligned: of each variant.
    """
    lines = _drawn(comparison)
    panels = fig.subplots(1, len(LINKS) + 1, sharey=True)
    found = [correlation for line in lines for correlation in aligned[line.name].correlations]
    shown = [value for each in found for value in (each.low, each.rho, each.first_rho)]  # NaN where there is none
    lowest = -1.0 if any(value < -0.5 for value in shown) else -0.5  # the same for all panels; most sweeps need half
    for index, (ax, link) in enumerate(zip(panels, LINKS)):
        for row, line in enumerate(lines):
            found, colour = aligned[line.name].correlations[index], style.VERDICT_COLOURS[line.verdict]
            ax.plot([found.low, found.high], [row, row], color=colour, linewidth=1.3, alpha=0.5)
            ax.plot(
                [found.first_rho],
                [row],
                "o",
                markersize=5,
                markerfacecolor="none",
                markeredgecolor=colour,
                markeredgewidth=0.9,
            )
            ax.plot([found.rho], [row], style.VERDICT_MARKERS[line.verdict], color=colour, markersize=5)
        ax.axvline(0, color=style.SOFT, linewidth=0.8)
        ax.set_xlim(lowest - 0.1, 1.1)
        ticks = {-1: "-1", -0.5: "-.5", 0: "0", 0.5: ".5", 1: "1"}
        ax.set_xticks(*zip(*((place, text) for place, text in ticks.items() if place >= lowest)))
        ax.set_title(f"{link.title}\n", fontsize=9.5)
        _subtitle(ax, link.question)
    _success_panel(panels[-1], lines)
    panels[0].set_yticks(range(len(lines)), [line.name for line in lines])
    panels[0].set_ylim(len(lines) - 0.4, -0.6)
    for ax in panels:
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
    fig.supxlabel(
        "Spearman's rank correlation, within each variant (filled: all iterations, 95% interval; ring: first "
        "iteration)",
        fontsize=8.5,
    )


def scatter_size(names: Sequence[str]) -> tuple[float, float]:
    """Width and height that `draw_scatter` is made for, in inches."""
    return 0.7 + 2.1 * len(names), 4.9


def draw_scatter(fig: "Figure", comparison: Comparison, aligned: Mapping[str, Alignment], names: Sequence[str]) -> None:
    """Executed plans of chosen variants: predicted against realised cost, realised cost against true distance."""
    panels = fig.subplots(2, len(names), squeeze=False)
    for column, name in enumerate(names):
        data, line = aligned[name].points, comparison.line(name)
        top, bottom = panels[:, column]
        _cloud(top, data.predicted_cost, data.realised_cost, data.solved, log_y=True)
        if aligned[name].same_cost:
            _identity(top)
        _cloud(bottom, data.realised_cost, data.distance, data.solved, log_y=False)
        for axis in (top.xaxis, top.yaxis, bottom.xaxis):
            _tick_log(axis)
        top.set_title(_wrapped(name), color=style.VERDICT_COLOURS[line.verdict])
        top.set_xlabel("predicted cost", fontsize=8)
        bottom.set_xlabel("realised cost", fontsize=8)
    panels[0, 0].set_ylabel("realised cost")
    panels[1, 0].set_ylabel("true distance")
    _outcome_legend(fig, any(aligned[name].same_cost for name in names))


def chosen_for_scatter(comparison: Comparison, count: int = 4) -> tuple[str, ...]:
    """Full precision and, of the others ordered by success, evenly spread ones down to the worst."""
    lines = sorted(_drawn(comparison), key=lambda line: (line.verdict != "baseline", -line.success[-1].estimate))
    picks = np.unique(np.linspace(0, len(lines) - 1, min(count, len(lines))).round().astype(int))
    return tuple(lines[i].name for i in picks)


def _drawn(comparison: Comparison) -> list[Line]:
    return [line for line in comparison.lines if line.cells]


def _names_width(comparison: Comparison) -> float:
    """Inches that the longest name takes beside a chart."""
    return 0.075 * max(len(line.name) for line in _drawn(comparison))


def _wrapped(name: str) -> str:
    """A variant's name on a line a module."""
    return name.replace(", ", ",\n")


def _subtitle(ax: "Axes", text: str) -> None:
    ax.annotate(
        text,
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 4),
        textcoords="offset points",
        fontsize=7,
        color=style.SOFT,
        va="bottom",
    )


def _estimates(line: Line) -> list[float]:
    return [rate.estimate for rate in line.success]


def _interval(ax: "Axes", line: Line, row: int) -> None:
    rate: Rate = line.success[-1]
    colour = style.VERDICT_COLOURS[line.verdict]
    ax.plot([rate.low, rate.high], [row, row], color=colour, linewidth=2.2, alpha=0.4, solid_capstyle="round")
    ax.plot([rate.estimate], [row], style.VERDICT_MARKERS[line.verdict], color=colour, markersize=6.5)


def _success_panel(ax: "Axes", lines: Sequence[Line]) -> None:
    for row, line in enumerate(lines):
        _interval(ax, line, row)
    ax.set_xlim(-0.06, 1.06)
    ax.set_xticks([0, 0.5, 1], ["0", "50", "100%"])
    ax.set_title("success\n", fontsize=9.5)
    _subtitle(ax, "after the last iteration")


def _reference_lines(ax: "Axes", comparison: Comparison, vertical: bool) -> list["Artist"]:
    """The reference rates as lines across the axes, named at their ends; returns what was drawn."""
    drawn = []
    for reference in comparison.references:
        draw = ax.axvline if vertical else ax.axhline
        rate = reference.success[-1].estimate
        drawn.append(draw(rate, linestyle=_REFERENCE_STYLE[reference.name], color=style.SOFT, linewidth=1))
    for rate, name in _reference_names(comparison.references, 0.3 if vertical else 0.06):
        if vertical:
            place = {"xy": (rate, 1), "xycoords": ("data", "axes fraction"), "ha": "left" if rate < 0.5 else "right"}
            place["xytext"] = (3 if rate < 0.5 else -3, 3)
        else:
            place = {"xy": (1, rate), "xycoords": ("axes fraction", "data"), "ha": "right", "xytext": (-2, 3)}
        drawn.append(
            ax.annotate(
                name,
                textcoords="offset points",
                fontsize=8,
                color=style.SOFT,
                va="bottom",
                annotation_clip=False,
                **place,
            )
        )
    return drawn


def _reference_names(references: Sequence[Line], close: float) -> list[tuple[float, str]]:
    """(rate, name) of references; those less than ``close`` apart share a place, or they would be written over."""
    places: list[tuple[float, str]] = []
    for line in sorted(references, key=lambda line: line.success[-1].estimate):
        rate = line.success[-1].estimate
        if places and rate - places[-1][0] < close:
            places[-1] = (places[-1][0], f"{places[-1][1]}, {line.name}")
        else:
            places.append((rate, line.name))
    return places


def _percent(axis: "Axis") -> None:
    from matplotlib.ticker import FixedLocator

    axis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")


def _verdict_legend(fig: "Figure", verdicts: set) -> None:
    names = {"baseline": "full precision", "survives": "survives", "undecided": "undecided", "falls": "falls"}
    handles = [
        _mark(style.VERDICT_MARKERS[v], style.VERDICT_COLOURS[v], label) for v, label in names.items() if v in verdicts
    ]
    fig.legend(
        handles=handles,
        loc="outside upper right",
        ncols=4,
        frameon=False,
        fontsize=8.5,
        handletextpad=0.1,
        columnspacing=1.2,
    )


def _outcome_legend(fig: "Figure", as_predicted: bool) -> None:
    handles = [
        _mark("o", style.TONES["survives"].light, "goal reached in that iteration"),
        _mark("x", style.TONES["falls"].light, "not reached"),
    ]
    handles += [_stroke("--", style.SOFT, "as predicted")] * as_predicted
    fig.legend(
        handles=handles,
        loc="outside upper right",
        ncols=3,
        frameon=False,
        fontsize=8.5,
        handletextpad=0.4,
        columnspacing=1.2,
    )


def _curve_legend(fig: "Figure", comparison: Comparison, base: Line | None) -> None:
    handles = [_stroke("-", style.SOFT, "full precision")] if base is not None else []
    handles += [_stroke(_REFERENCE_STYLE[r.name], style.SOFT, r.name) for r in comparison.references]
    fig.legend(handles=handles, loc="outside upper right", ncols=3, frameon=False, fontsize=8.5)


def _mark(marker: str, colour: str, label: str):
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", marker=marker, color=colour, label=label, markersize=6)


def _stroke(line: str, colour: str, label: str):
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle=line, color=colour, label=label, linewidth=1.2)


def _cloud(ax: "Axes", x: np.ndarray, y: np.ndarray, solved: np.ndarray, log_y: bool) -> None:
    """Solved and unsolved plans as points, without those that a log axis has no place for."""
    drawable = np.isfinite(x) & np.isfinite(y) & (x > 0) & ((y > 0) | (not log_y))
    ax.set_xscale("log")
    ax.set_yscale("log" if log_y else "linear")
    for wanted, marker, role in ((False, "x", "falls"), (True, "o", "survives")):
        chosen = drawable & (solved == wanted)
        ax.scatter(
            x[chosen],
            y[chosen],
            s=11,
            marker=marker,
            color=style.TONES[role].light,
            alpha=0.55,
            linewidths=0.8 if marker == "x" else 0,
            rasterized=True,  # thousands of points would swell the page
        )
    ax.tick_params(labelsize=7)


def _identity(ax: "Axes") -> None:
    """Equal log axes and the line on which both values are the same."""
    low = min(ax.get_xlim()[0], ax.get_ylim()[0])
    high = max(ax.get_xlim()[1], ax.get_ylim()[1])
    # Where one range is much the smaller, its own margin is no room beside the other's.
    room = (high / low) ** 0.05
    low, high = low / room, high * room
    ax.plot([low, high], [low, high], "--", color=style.SOFT, linewidth=0.9, zorder=0)
    ax.set_xlim(low, high)
    ax.set_ylim(low, high)


def _grid(count: int) -> tuple[int, int]:
    """Rows and columns of small panels."""
    columns = min(count, 4) or 1
    return math.ceil(count / columns) or 1, columns


def _spread(values: Sequence[float]) -> list[float]:
    """Values with those that coincide moved apart by a few percent, so that their intervals are seen."""
    moved = []
    for index, value in enumerate(values):
        same = [i for i, other in enumerate(values) if abs(other / value - 1) < 0.01]
        moved.append(value * 1.035 ** (same.index(index) - (len(same) - 1) / 2))
    return moved


def log_ticks(low: float, high: float) -> list[float]:
    """Two to six values in low..high: powers of ten, 2 and 5 times them in a short range, even steps in a tiny one."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [factor * 10.0**power for power in powers for factor in (1, 2, 5) if low <= factor * 10.0**power <= high]
    if len(fine) > 6:
        decades = [10.0**power for power in powers if low <= 10.0**power <= high]
        return decades[:: math.ceil(len(decades) / 5)]  # small panels have no room for more
    if len(fine) > 1:
        return fine
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    return [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)][
        :: math.ceil((high - low) / step / 5)
    ]


def _tick_log(axis: "Axis") -> None:
    """Plain numbers on a logarithmic axis whose limits are final."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axis.set_major_locator(FixedLocator(log_ticks(*axis.get_view_interval())))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:g}")
