"""The chart of methods against each other: a panel a method, a line a setting."""

from typing import TYPE_CHECKING

from wmq_jax.analysis import style
from wmq_jax.analysis.methods import BASE, MethodEntry, MethodTable
from wmq_jax.analysis.paired import Rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW = 0.27  # inches a line of text needs


def methods_size(table: MethodTable) -> tuple[float, float]:
    """Width and height that `draw_methods` is made for, in inches."""
    names = 0.075 * max(len(setting) for setting in table.settings)
    return 0.5 + names + 1.6 * len(table.methods), 1.15 + _ROW * len(table.settings)


def draw_methods(fig: "Figure", table: MethodTable) -> None:
    """Success after the last MPC iteration, round-to-nearest in grey behind every other method."""
    panels = fig.subplots(1, len(table.methods), sharey=True, squeeze=False).ravel()
    for ax, method in zip(panels, table.methods):
        for row, setting in enumerate(table.settings):
            base, entry = table.entries.get((setting, BASE)), table.entries.get((setting, method))
            if base is not None:
                ax.plot([base.line.success[-1].estimate], [row], "s", color=style.SOFT, markersize=4.5, alpha=0.6)
            if entry is not None and method != BASE:
                _draw_entry(ax, entry, row)
            elif entry is not None:
                rate = entry.line.success[-1]
                _draw_interval(ax, rate, row, style.SOFT)
        ax.set_title(method)
        ax.set_xlim(-0.05, 1.05)
        ax.set_xticks([0, 0.5, 1], ["0", "50", "100%"])
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
    panels[0].set_yticks(range(len(table.settings)), table.settings)
    panels[0].set_ylim(len(table.settings) - 0.4, -0.6)
    fig.supxlabel("success after the last MPC iteration, 95% interval", fontsize=9)
    if table.comparisons:
        _legend(fig)


def _draw_entry(ax: "Axes", entry: MethodEntry, row: int) -> None:
    rate, colour = entry.line.success[-1], _colour(entry.effect)
    marker, size = ("*", 11) if entry.best else ({"better": "o", "worse": "v", None: "o"}[entry.effect], 5.5)
    _draw_interval(ax, rate, row, colour)
    ax.plot([rate.estimate], [row], marker, color=colour, markersize=size, markeredgewidth=0)


def _draw_interval(ax: "Axes", rate: Rate, row: int, colour: str) -> None:
    ax.plot([rate.low, rate.high], [row, row], color=colour, linewidth=2.2, alpha=0.4, solid_capstyle="round")


def _colour(effect: str | None) -> str:
    return style.TONES[style.EFFECT_TONES[effect]].light if effect else style.INK


def _legend(fig: "Figure") -> None:
    from matplotlib.lines import Line2D

    marks = [
        ("s", style.SOFT, f"{BASE}, same setting"),
        ("o", style.INK, "no difference shown"),
        ("o", _colour("better"), f"better than {BASE}"),
        ("*", _colour("better"), "best of its setting"),
        ("v", _colour("worse"), f"worse than {BASE}"),
    ]
    handles = [
        Line2D([], [], linestyle="", marker=marker, color=colour, label=label, markersize=9 if marker == "*" else 6)
        for marker, colour, label in marks
    ]
    fig.legend(
        handles=handles,
        loc="outside upper right",
        ncols=len(marks),
        frameon=False,
        fontsize=8.5,
        handletextpad=0.1,
        columnspacing=1.2,
    )
