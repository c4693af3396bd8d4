"""The table of a sweep: for a terminal (plain ASCII, about 120 columns), as Markdown, and as CSV."""

import csv
import dataclasses
import io
import textwrap
from collections.abc import Callable, Iterator, Sequence

from wmq_jax.analysis.methods import MethodEntry, MethodTable, methods_sentence
from wmq_jax.analysis.paired import LEVEL, Difference, Rate
from wmq_jax.analysis.results import ModulePrecision, Results, Variant
from wmq_jax.analysis.summary import SURVIVAL_MARGIN, Comparison, Line, baseline_caveat, compare, verdict_sentences
from wmq_jax.analysis.unfinished import NO_ROWS, unfinished_note
from wmq_jax.io.wording import counted

WIDTH = 120
_SHOWN_ITERATIONS = (1, 2, 3, 5)
_MARKS = {"baseline": " ", "survives": "+", "undecided": "?", "falls": "x", None: " "}
_NONE = "-"
METHODS_NOTE = (
    "Success in % of cells after the last MPC iteration with its 95% interval, and the paired difference to "
    "round-to-nearest (rtn) at the same setting in points; better, worse: Holm-adjusted p < "
    f"{LEVEL:g}; best: the highest success of those that are better."
)


@dataclasses.dataclass(frozen=True)
class Column:
    """One column: two header lines, the text of a line's cell, and whether the text is aligned left."""

    group: str
    title: str
    text: Callable[[Line], str]
    left: bool = False


def format_table(results: Results) -> str:
    """The terminal table of a results folder, one block a horizon, with its footer."""
    blocks = [terminal_table(compare(results, horizon)) for horizon in results.horizons]
    if not blocks:
        return NO_ROWS
    if not results.finished:
        blocks.append(unfinished_note(results.left_out))
    return "\n\n".join(blocks)


def columns(comparison: Comparison) -> tuple[Column, ...]:
    """The table's columns, as text."""
    success = tuple(
        Column("success %", f"{k} it", lambda line, k=k: rate_text(line.success[k - 1]) if line.success else _NONE)
        for k in shown_iterations(comparison.iterations)
    )
    return (
        Column("", "variant", lambda line: line.name, left=True),
        Column("enc", "W/A", lambda line: _of(line, lambda v: _bits(v.encoder))),
        Column("pred", "W/A", lambda line: _of(line, lambda v: _bits(v.predictor))),
        Column("weight", "scale", lambda line: _of(line, lambda v: _merged(v, _weight_granularity)), left=True),
        Column("act", "scale", lambda line: _of(line, lambda v: _merged(v, lambda m: m.act_granularity)), left=True),
        Column("size", "MB", lambda line: _of(line, lambda v: f"{v.size_bytes / 1e6:.2f}")),
        *success,
        Column("points", "vs FP", lambda line: difference_text(line.difference)),
        Column("Holm", "p", lambda line: p_text(line.difference)),
    )


def shown_iterations(iterations: int) -> tuple[int, ...]:
    """The MPC iterations that have a column: 1, 2, 3, 5 as far as they exist, and always the last."""
    return tuple(sorted({k for k in (*_SHOWN_ITERATIONS, iterations) if 0 < k <= iterations}))


def terminal_table(comparison: Comparison) -> str:
    """Aligned ASCII text of one horizon: header, variants, references, footer."""
    table = columns(comparison)
    head = [[column.group for column in table], [column.title for column in table]]
    body = [[column.text(line) for column in table] for line in comparison.lines]
    reference = [[column.text(line) for column in table] for line in comparison.references]
    widths = [max(map(len, cells)) for cells in zip(*head, *body, *reference)]
    gap = "  " if sum(widths) + 2 * len(widths) + 2 <= WIDTH else " "

    def render(cells: Sequence[str], mark: str = " ", flag: str = "") -> str:
        texts = [
            cell.ljust(width) if column.left else cell.rjust(width) for cell, width, column in zip(cells, widths, table)
        ]
        return f"{mark} {gap.join(texts)}{flag}".rstrip()

    rule = "-" * (sum(widths) + len(gap) * (len(widths) - 1) + 2)
    lines = [render(cells) for cells in head] + [rule]
    lines += [
        render(cells, _MARKS[line.verdict], "!" * bool(line.nonfinite_cells))
        for cells, line in zip(body, comparison.lines)
    ]
    if reference:
        lines += [rule] + [render(cells) for cells in reference]
    footer = [textwrap.fill(text, WIDTH, subsequent_indent="  ") for text in _footer(comparison)]
    return "\n".join(lines + [rule] + footer)


def markdown_table(comparison: Comparison) -> str:
    """A GitHub-flavoured Markdown table of one horizon with its footer."""
    table = columns(comparison)
    titles = [f"{column.group} {column.title}".strip() for column in table] + ["verdict"]
    rules = [":--" if column.left else "--:" for column in table] + [":--"]
    lines = [titles, rules]
    for line in comparison.lines + comparison.references:
        lines.append([column.text(line).replace("|", "\\|") for column in table] + [line.verdict or _NONE])
    body = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return body + "\n\n" + "\n".join(f"* {text}" for text in footnotes(comparison)) + "\n"


def markdown_methods(table: MethodTable) -> str:
    """A Markdown table of one horizon: a line a setting, a column a method."""
    lines = [["", *table.methods], [":--"] + ["--:"] * len(table.methods)]
    for setting in table.settings:
        texts = [method_texts(entry) for entry in table.row(setting)]
        lines.append([setting, *("; ".join(filter(None, pair)) for pair in texts)])
    body = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    notes = (methods_sentence(table), METHODS_NOTE)
    return f"Methods at the same setting\n\n{body}\n\n" + "\n".join(f"* {text}" for text in notes) + "\n"


def method_texts(entry: MethodEntry | None) -> tuple[str, str]:
    """Success of an entry, and its difference to round-to-nearest with what the test says of it."""
    if entry is None:
        return _NONE, ""
    difference = "" if entry.difference is None else difference_text(entry.difference)
    word = "best" if entry.best else entry.effect
    return rate_text(entry.line.success[-1]), difference + (f" {word}" if word else "")


def csv_table(comparisons: Sequence[Comparison]) -> str:
    """Every number of the comparisons as CSV: a line a variant and horizon; empty fields where there is no value."""
    out = io.StringIO()
    records = [record for comparison in comparisons for record in _records(comparison)]
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(out, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def footnotes(comparison: Comparison) -> tuple[str, ...]:
    """What the table rests on: non-finite variants, sample, intervals and tests."""
    return _warnings(comparison) + _sample_notes(comparison)


def rate_text(rate: Rate) -> str:
    """Such as '92 (84-97)', in percent; 0 and 100 stand for nothing less and nothing more."""
    percent = 100 * rate.estimate
    text = f"{percent:.0f}"
    if text in ("0", "100") and percent not in (0, 100):
        text = f"{min(max(percent, 0.1), 99.9):.1f}"
    return f"{text} ({100 * rate.low:.0f}-{100 * rate.high:.0f})"


def difference_text(difference: Difference | None) -> str:
    """Such as '-12 (-24..+1)', in percentage points; the lower end tells on which side of the margin it lies."""
    if difference is None:
        return _NONE
    low = _signed(difference.low)
    if low == _signed(-SURVIVAL_MARGIN) and difference.low > -SURVIVAL_MARGIN:
        low = f"{max(100 * difference.low, 0.1 - 100 * SURVIVAL_MARGIN):.1f}"
    return f"{_signed(difference.estimate)} ({low}..{_signed(difference.high)})"


def p_text(difference: Difference | None) -> str:
    """The Holm-adjusted p-value, such as '.034'."""
    if difference is None or difference.p_adjusted is None:
        return _NONE
    p = difference.p_adjusted
    if p < 0.001:
        return "<.001"
    return f"{p:.3f}".lstrip("0") if p < 0.9995 else "1"


def _footer(comparison: Comparison) -> Iterator[str]:
    for verdict, sentence in verdict_sentences(comparison).items():
        yield f"{_MARKS[verdict]} {sentence}"
    for note in _warnings(comparison):
        yield f"! {note}"
    for note in _sample_notes(comparison):
        yield f"  {note}"


def _warnings(comparison: Comparison) -> tuple[str, ...]:
    caveat = baseline_caveat(comparison)
    return ((caveat,) if caveat else ()) + tuple(
        f"{line.name}: plans became non-finite in {line.nonfinite_cells} of {line.cells} cells, "
        f"first in MPC iteration {line.nonfinite_from}."
        for line in comparison.lines
        if line.nonfinite_cells
    )


def _sample_notes(comparison: Comparison) -> tuple[str, ...]:
    one_seed = comparison.seeds == 1
    test = "exact McNemar test" if one_seed else "exact sign-flip test over episodes"
    episodes = counted(comparison.episodes, "episode")
    said = ["Success in % of cells with its 95% Wilson interval"]
    if any(line.difference is not None for line in comparison.lines + comparison.references):
        said.append(f"vs FP: paired difference in points after {comparison.length} with its 95% Newcombe interval")
    if any(line.difference is not None for line in comparison.lines):
        said.append(f"p: {test}, Holm-adjusted over the variants")
    notes = [
        f"{episodes}, horizon {comparison.horizon}, one checkpoint, {comparison.seeds_text}.",
        f"{'; '.join(said)}.",
    ]
    if comparison.reference_note:
        notes.append(f"{comparison.reference_note[0].upper()}{comparison.reference_note[1:]}.")
    if not one_seed:
        notes.append(
            "Seeds of one episode are not independent: counts are divided by their design effect (Rao and Scott)."
        )
    return tuple(notes)


def _records(comparison: Comparison) -> Iterator[dict[str, object]]:
    for line in comparison.lines + comparison.references:
        record: dict[str, object] = {"horizon": comparison.horizon, "variant": line.name}
        if line.variant is not None:
            record |= {"spec": line.variant.spec, "size_bytes": line.variant.size_bytes}
            for module in ("encoder", "predictor"):
                fields = dataclasses.asdict(getattr(line.variant, module))
                record |= {f"{module}_{name}": "" if value is None else value for name, value in fields.items()}
        record |= {"cells": line.cells, "episodes": comparison.episodes, "seeds": comparison.seeds}
        for k, rate in enumerate(line.success, start=1):
            record |= {
                f"success_{k}": _exact(rate.estimate),
                f"success_{k}_low": _exact(rate.low),
                f"success_{k}_high": _exact(rate.high),
            }
        if line.difference is not None:
            values = dataclasses.asdict(line.difference)
            record |= {f"difference_{name}": _exact(value) for name, value in values.items() if value is not None}
        record |= {
            "verdict": line.verdict or "",
            "nonfinite_cells": line.nonfinite_cells,
            "nonfinite_from": line.nonfinite_from or "",
        }
        yield record


def _exact(value: float | int) -> str:
    return f"{value:.6g}"


def _signed(fraction: float) -> str:
    points = round(100 * fraction)
    return f"{points:+d}" if points else "0"


def _of(line: Line, text: Callable[[Variant], str]) -> str:
    return text(line.variant) if line.variant is not None else _NONE


def _bits(module: ModulePrecision) -> str:
    """Weight and activation bits; 32 is what an unquantized module computes in."""
    return f"{module.weight_bits or 32}/{module.act_bits or 32}"


def _weight_granularity(module: ModulePrecision) -> str | None:
    if module.weight_bits is None:
        return None
    return f"g{module.group_size}" if module.group_size else "channel"


def _merged(variant: Variant, text: Callable[[ModulePrecision], str | None]) -> str:
    """One word where the quantized modules agree, else both, the encoder's first."""
    encoder, predictor = text(variant.encoder), text(variant.predictor)
    if encoder is None or predictor is None or encoder == predictor:
        return encoder or predictor or _NONE
    return f"{encoder}/{predictor}"
