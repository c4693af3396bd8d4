"""A self-contained HTML page: sections, tables, figures, one stylesheet; nothing is loaded from anywhere.

Texts are escaped here; only `Figure.content` and what this module returns are HTML.
"""

import base64
import dataclasses
import html
from collections.abc import Iterable, Mapping, Sequence

from wmq_jax.analysis.style import theme_css

_CSS = """
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:72rem;margin:0 auto;padding:2.5rem 1.25rem 5rem}
h1{font-size:2rem;line-height:1.2;margin:.2rem 0 .6rem;letter-spacing:-.015em}
h2{font-size:1.3rem;margin:3.2rem 0 .4rem;letter-spacing:-.01em}
h3{font-size:1rem;margin:1.6rem 0 .3rem}
p,li{max-width:46rem}
.kicker,figcaption,.note,footer{color:var(--soft);font-size:.875rem}
.lead{font-size:1.15rem}
ul{padding-left:1.2rem}
figure{margin:1.4rem 0}
figure svg,figure img{display:block;width:100%;height:auto}
figure.photo{max-width:60rem}
figure.photo{background:#fff;border:1px solid var(--grid);border-radius:8px;padding:.8rem}
.scroll{overflow-x:auto;margin:1.2rem 0}
table{border-collapse:collapse;font-size:.84rem;font-variant-numeric:tabular-nums;white-space:nowrap}
th,td{padding:.32rem .5rem;text-align:right;border-bottom:1px solid var(--grid)}
th{font-weight:600;vertical-align:bottom;border-bottom:1px solid var(--soft)}
th:first-child,td:first-child{padding-left:0}
th small,td small{display:block;font-weight:400;color:var(--soft)}
.left{text-align:left}
tr.apart td{color:var(--soft)}
.verdict{font-weight:600}.baseline{font-weight:400;color:var(--soft)}
ul.marked{list-style:none;padding:0}ul.marked li{margin:.35rem 0}
.survives{color:var(--survives)}.undecided{color:var(--undecided)}.falls{color:var(--falls)}
details{margin:1rem 0}
summary{cursor:pointer;color:var(--soft)}
pre{overflow-x:auto;font-size:.8rem;line-height:1.4;border:1px solid var(--grid);border-radius:8px;padding:.9rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1.2rem;font-size:.9rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
"""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A table cell: its text, whether it is aligned left, a style class ('' or a verdict), a small second line."""

    text: str
    left: bool = False
    kind: str = ""
    note: str = ""


def page(title: str, parts: Iterable[str]) -> str:
    """The whole document."""
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{html.escape(title)}</title><style>{theme_css()}{_CSS}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def heading(text: str, level: int = 2) -> str:
    """A heading of level 2 (a section) or 3."""
    return f"<h{level}>{html.escape(text)}</h{level}>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph, of a style class if one is given."""
    return f"<p{_class(kind)}>{html.escape(text)}</p>"


def bullets(texts: Iterable[str]) -> str:
    """A list with an item a text."""
    return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in texts) + "</ul>"


def marked_list(texts: Mapping[str, str]) -> str:
    """A list of 'Word: text' whose words are set in the style class that is the text's key."""
    items = []
    for kind, text in texts.items():
        word, _, rest = text.partition(":")
        items.append(f'<li><span class="verdict {kind}">{html.escape(word)}:</span>{html.escape(rest)}</li>')
    return f'<ul class="marked">{"".join(items)}</ul>'


def svg_figure(svg: str, caption: str) -> str:
    """An inline chart that follows the page's colours."""
    text = html.escape(caption, quote=True)
    return f'<figure role="img" aria-label="{text}">{svg}<figcaption>{text}</figcaption></figure>'


def png_figure(png: bytes, alt: str) -> str:
    """An embedded picture on a white card, which names itself; `alt` is for who cannot see it."""
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure class="photo"><img alt="{html.escape(alt, quote=True)}" src="data:image/png;base64,{data}"></figure>'
    )


def table(
    head: Sequence[tuple[str, str, bool]], rows: Sequence[Sequence[Cell]], apart: Sequence[Sequence[Cell]] = ()
) -> str:
    """A table that scrolls sideways where it does not fit.

    Args:
      head: (small text, title, whether it is aligned left) of each column.
      rows: cells of each line.
      apart: further lines, set back.
    """
    columns = "".join(
        f"<th{_class('left' if left else '')}><small>{html.escape(small)}</small>{html.escape(title)}</th>"
        for small, title, left in head
    )
    body = "".join(_row(cells, "") for cells in rows) + "".join(_row(cells, "apart") for cells in apart)
    return f'<div class="scroll"><table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>'


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of (term, text)."""
    return (
        "<dl>" + "".join(f"<dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd>" for term, text in pairs) + "</dl>"
    )


def details(title: str, content: str) -> str:
    """Content that a click unfolds."""
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"


def preformatted(text: str) -> str:
    """Text as it stands, in a fixed width."""
    return f"<pre>{html.escape(text)}</pre>"


def _row(cells: Sequence[Cell], kind: str) -> str:
    return f"<tr{_class(kind)}>{''.join(_cell(cell) for cell in cells)}</tr>"


def _cell(cell: Cell) -> str:
    kinds = " ".join(filter(None, ("left" if cell.left else "", cell.kind)))
    note = f"<small>{html.escape(cell.note)}</small>" if cell.note else ""
    return f"<td{_class(kinds)}>{html.escape(cell.text)}{note}</td>"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
