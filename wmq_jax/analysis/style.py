"""How the figures look: palette, typography, labels that avoid each other, and SVG whose colours follow the page's
theme.

matplotlib is imported inside the functions, so that reading and tabulating results does not load it; pyplot is never
used, so nothing global changes.
"""

import contextlib
import dataclasses
import io
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Tone:
    """A colour by role: its value on a light page and on a dark one."""

    light: str
    dark: str


# Okabe & Ito's palette, which stays distinct under the common colour-vision deficiencies; roles also differ in marker
# or place.
TONES: Mapping[str, Tone] = {
    "ink": Tone("#1b2430", "#e6e9ee"),
    "soft": Tone("#5d6774", "#a3adb9"),
    "grid": Tone("#e3e6ea", "#333b46"),
    "paper": Tone("#ffffff", "#161b22"),
    "survives": Tone("#0072b2", "#56b4e9"),
    "undecided": Tone("#b57f00", "#f0c14b"),
    "falls": Tone("#d1480f", "#ff8f5e"),
}
INK, SOFT, GRID, PAPER = (TONES[name].light for name in ("ink", "soft", "grid", "paper"))
VERDICT_COLOURS = {
    None: SOFT,
    "baseline": INK,
    **{name: TONES[name].light for name in ("survives", "undecided", "falls")},
}
# Of a method beside round-to-nearest: the tone's name, which is also its class on the page.
EFFECT_TONES = {"better": "survives", "worse": "falls"}
VERDICT_MARKERS = {None: ".", "baseline": "s", "survives": "o", "undecided": "D", "falls": "v"}

_RC = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "path",
    "svg.hashsalt": "wmq_jax",
}


@contextlib.contextmanager
def figure(width: float, height: float) -> "Iterator[Figure]":
    """A new Figure of `width` x `height` inches inside the project's style, whatever style the user has set."""
    # Building the font cache logs a warning on a first run; it is of no use to a reader of the report.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context(["default", _RC]):
        fig = Figure(figsize=(width, height))
        FigureCanvasAgg(fig)  # measures text for `label_points`
        yield fig


def to_png(fig: "Figure", dpi: int = 160) -> bytes:
    """PNG bytes, without a date, so that equal figures are equal files."""
    out = io.BytesIO()
    fig.savefig(out, format="png", dpi=dpi)
    fig.set_layout_engine("none")  # the layout is found: the same figure as SVG need not look for it again
    return out.getvalue()


def to_svg(fig: "Figure", name: str) -> str:
    """An <svg> element for a page: ids prefixed by `name`, palette colours replaced by CSS variables (`theme_css`)."""
    out = io.StringIO()
    fig.savefig(out, format="svg")
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    # A page stretches figures to its width: small ones only as far as their text stays text.
    svg = svg.replace("<svg", f'<svg style="max-width:min(60rem,{1.35 * fig.get_figwidth():.2f}in)"', 1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)  # holds the date
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for role, tone in TONES.items():
        svg = re.sub(tone.light, f"var(--{role})", svg, flags=re.IGNORECASE)
    return svg


def theme_css() -> str:
    """CSS variables of the palette, for a light page and for a dark one."""
    light = "".join(f"--{role}:{tone.light};" for role, tone in TONES.items())
    dark = "".join(f"--{role}:{tone.dark};" for role, tone in TONES.items())
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"


def label_points(
    ax: "Axes",
    x: Sequence[float],
    y: Sequence[float],
    texts: Sequence[str],
    colours: Sequence[str],
    obstacles: Sequence["Artist"] = (),
) -> None:
    """Writes each text beside its point; texts meet neither each other, a point nor an obstacle, and one without room
    stays out.

    Places are tried ring by ring around the point, the first texts first. A text away from its point gets a thin line
    to it.

    Args:
      ax: axes whose limits and layout are final.
      x: data coordinates.
      y: data coordinates.
      texts: one a point, the most important first.
      colours: one a text.
      obstacles: what else texts must not cover.
    """
    fig = ax.get_figure()
    renderer = fig.canvas.get_renderer()
    points = ax.transData.transform(list(zip(x, y)))
    scale = fig.dpi / 72
    taken = [(px - 4 * scale, py - 4 * scale, px + 4 * scale, py + 4 * scale) for px, py in points]
    taken += [tuple(artist.get_window_extent(renderer).padded(scale).extents) for artist in obstacles]
    frame = ax.get_window_extent(renderer).extents
    to_data = ax.transData.inverted()
    for (px, py), text, colour in zip(points, texts, colours):
        label = ax.annotate(
            text,
            to_data.transform((px, py)),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=8,
            color=colour,
            va="center",
            ha="left",
        )
        box = label.get_window_extent(renderer)
        for dx, dy in _offsets(box.width / scale, box.height / scale):
            left, bottom = px + dx * scale, py + dy * scale - box.height / 2
            place = (left - scale, bottom, left + box.width + scale, bottom + box.height)
            if _inside(place, frame) and not any(_overlap(place, other) for other in taken):
                break
        else:
            label.remove()
            continue
        taken.append(place)
        label.set_position((dx, dy))
        if dy:
            end = (min(max(px, left), left + box.width), bottom if dy > 0 else bottom + box.height)
            ax.plot(*zip(to_data.transform((px, py)), to_data.transform(end)), color=colour, linewidth=0.6, zorder=1)


def _offsets(width: float, height: float) -> Iterator[tuple[float, float]]:
    """Places of a label's left middle relative to its point, in points, the nearest and most natural first."""
    for ring in range(7):
        reach = 7 + ring * height * 0.9
        for dx, dy in ((7, 0), (-7 - width, 0), (-width / 2, reach + height / 2), (-width / 2, -reach - height / 2)):
            if ring == 0 or dx == -width / 2:
                yield dx, dy
        if ring:
            for side in (9, -9 - width):
                yield side, reach
                yield side, -reach


def _inside(box: Sequence[float], frame: Sequence[float]) -> bool:
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
