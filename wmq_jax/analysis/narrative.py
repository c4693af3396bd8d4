"""What the report says: its sections, in order, as HTML."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from wmq_jax.analysis import page
from wmq_jax.analysis.alignment import LINKS, Alignment, Correlation
from wmq_jax.analysis.methods import MethodEntry, MethodTable, methods_sentence
from wmq_jax.analysis.noise import noise_floor
from wmq_jax.analysis.page import Cell
from wmq_jax.analysis.pictures import Picture
from wmq_jax.analysis.rank import RESAMPLES
from wmq_jax.analysis.results import Results
from wmq_jax.analysis.style import EFFECT_TONES
from wmq_jax.analysis.summary import Comparison, Line, baseline_caveat, headline, verdict_sentences
from wmq_jax.analysis.table import METHODS_NOTE, columns, footnotes, method_texts
from wmq_jax.analysis.unfinished import unfinished_note
from wmq_jax.io.wording import counted


def report_html(
    results: Results,
    comparisons: Sequence[Comparison],
    main: Comparison | None,
    aligned: Mapping[str, Alignment],
    methods: MethodTable | None,
    pictures: Sequence[Picture],
) -> str:
    """The report as one self-contained HTML document.

    Args:
      results: the results folder.
      comparisons: one a horizon, ascending.
      main: the one that headline and figures are about; None without any row.
      aligned: alignment of each variant of `main`.
      methods: the variants of `main` by setting and method; None where no setting has several methods.
      pictures: from `draw_pictures`; empty without any row.
    """
    charts = {picture.name: picture.svg for picture in pictures if picture.svg}
    parts = list(_opening(results, main))
    if main is not None:
        parts += _survival(main, charts)
        parts += _other_horizons(comparisons, main)
        parts += _methods(methods, charts)
        parts += _speed_and_size(main, charts)
        parts += _alignment(main, aligned, charts)
        parts += _rollouts(pictures)
        parts += _noise(results)
    parts += _protocol(results, main)
    parts += _provenance(results)
    return page.page(f"{_name(results.protocol)}: who survives quantization", parts)


def _opening(results: Results, main: Comparison | None) -> Iterator[str]:
    yield page.paragraph(f"{_name(results.protocol)} · quantized world models that plan", "kicker")
    yield page.heading("Who survives?", 1)
    yield page.paragraph(headline(main), "lead")
    if main is not None:
        yield page.marked_list(verdict_sentences(main))
        caveat = baseline_caveat(main)
        if caveat:
            yield page.paragraph(caveat)
    if not results.finished:
        yield page.paragraph(unfinished_note(results.left_out), "note")


def _survival(main: Comparison, charts: Mapping[str, str]) -> Iterator[str]:
    yield page.svg_figure(
        charts["survival"],
        "Success of each variant after the last MPC iteration, with its 95% interval and storage size.",
    )
    yield page.heading("The table")
    yield _comparison_table(main)
    yield page.bullets(footnotes(main))


def _other_horizons(comparisons: Sequence[Comparison], main: Comparison) -> Iterator[str]:
    for comparison in comparisons:
        if comparison.horizon != main.horizon:
            yield page.heading(f"Horizon {comparison.horizon}", 3)
            yield _comparison_table(comparison)
            yield page.marked_list(verdict_sentences(comparison))
            yield page.bullets(footnotes(comparison))


def _methods(methods: MethodTable | None, charts: Mapping[str, str]) -> Iterator[str]:
    if methods is None:
        return
    yield page.heading("Which method?")
    yield page.paragraph(methods_sentence(methods))
    yield page.svg_figure(
        charts["methods"],
        "Success of each method after the last MPC iteration with its 95% interval, a line a setting; the grey mark is "
        "round-to-nearest at the same setting. Blue is better than it, orange-red worse, by a paired test after "
        "Holm's adjustment over all that are shown; a star is the best of its setting.",
    )
    head = [("", "setting", True)] + [("", method, False) for method in methods.methods]
    rows = [[Cell(setting, True), *map(_method_cell, methods.row(setting))] for setting in methods.settings]
    yield page.table(head, rows)
    yield page.bullets((METHODS_NOTE,))


def _method_cell(entry: MethodEntry | None) -> Cell:
    text, note = method_texts(entry)
    kinds = () if entry is None else ("verdict" * entry.best, EFFECT_TONES.get(entry.effect, ""))
    kind = " ".join(filter(None, kinds))
    return Cell(text, kind=kind, note=note.replace("..", " to "))


def _speed_and_size(main: Comparison, charts: Mapping[str, str]) -> Iterator[str]:
    yield page.heading("How fast, at what size")
    yield page.svg_figure(
        charts["success_by_iteration"],
        "Success within 1, 2, ... MPC iterations, with pointwise 95% intervals. Success is sticky: a cell that has "
        "reached the goal has succeeded.",
    )
    yield page.svg_figure(
        charts["success_by_size"],
        "Success against storage size, integers packed and scales counted. Variants of equal size are drawn slightly "
        "apart; names that find no room are left out.",
    )


def _alignment(main: Comparison, aligned: Mapping[str, Alignment], charts: Mapping[str, str]) -> Iterator[str]:
    yield page.heading("Does a lower cost still mean success?")
    yield page.paragraph(
        "A planner only sees its own cost. For it to succeed, the cost it predicts for a plan must come true "
        "(imagination), a lower cost must mean a shorter true distance (objective), a predicted gain must be a true "
        "gain (progress), and plans of low predicted cost must be those that reach the goal (task). Each column "
        "below is one of these links, oriented so that 1 is perfect alignment and 0 is none."
    )
    yield page.svg_figure(
        charts["alignment"],
        "Rank correlations per variant. A missing mark is a correlation without meaning, as when no plan of a "
        "variant reached the goal.",
    )
    same_cost = all(alignment.same_cost for alignment in aligned.values())
    apart = (
        "Predicted costs are of whole plans under the planner's objective, realised costs of the frame that what was "
        "executed of them reached. With these settings the two are not the same quantity: imagination and progress "
        "compare ranks only, and progress mixes both.",
    )
    yield page.bullets(
        (
            *(() if same_cost else apart),
            "Quantizing the encoder changes the latent space, so costs of two variants are in different units. All "
            "correlations are of ranks within one variant; no cost is compared between variants.",
            "A cell stops when it has succeeded: iteration k holds only the cells that are still unsolved, which are "
            "harder ones, and a variant that fails contributes more plans than one that succeeds. The first "
            "iteration, where every cell plans, is free of this selection and is shown as a ring.",
            "Episodes differ in difficulty, and an easy episode has both a low cost and a short distance. That "
            "raises the first, second and fourth link in every variant; the third compares changes and depends on it "
            "less.",
            f"Intervals resample whole episodes ({RESAMPLES} draws, percentiles), since plans of one episode depend "
            "on each other.",
        )
    )
    yield page.svg_figure(
        charts["plans"],
        "Every executed plan of full precision and of variants from best to worst. "
        + ("Above the dashed line the plan turned out costlier than predicted. " if same_cost else "")
        + "Each variant has scales of its own.",
    )
    yield page.details("Rank correlations as numbers", _correlation_table(main, aligned))
    yield page.details("Cells that still planned, by MPC iteration", _planning_table(main, aligned))


def _rollouts(pictures: Sequence[Picture]) -> Iterator[str]:
    strips = [picture for picture in pictures if picture.trace is not None]
    if not strips:
        return
    yield page.heading("What the models imagined")
    yield page.paragraph(
        "Reality above, the decoded imagination of the same actions below. Imagination starts again from what was "
        "observed at every MPC iteration. A decoder is only a window into a latent: what it cannot draw may still be "
        "there, and the planner never sees its pictures."
    )
    for strip in strips:
        trace = strip.trace
        yield page.png_figure(
            strip.png,
            f"{trace.variant}, episode {trace.episode}, CEM seed {trace.seed}, {trace.outcome}: "
            "start, goal, path, reality and imagination",
        )


def _noise(results: Results) -> Iterator[str]:
    floors = noise_floor(results.rows, results.noise_floor)
    if not floors:
        return
    yield page.heading("Numerical-noise floor")
    tile, other = results.protocol.get("tile"), _nested(results.protocol, "config", "engine", "noise_floor_tile")
    sizes = f" ({tile} and {other} cells)" if tile and other else ""
    yield page.paragraph(
        f"The same cells computed at two tile sizes{sizes}. Only the order of floating-point operations differs; a "
        "difference in the last bit can flip a quantization step, and that an elite of the planner. Outcomes of "
        "single cells that differ by no more than this between variants are not evidence; all comparisons above are "
        "between variants at one tile size."
    )
    head = [
        ("", "variant", True),
        ("", "cells", False),
        ("success", "differs", False),
        ("path", "differs", False),
        ("median", "deviation", False),
    ]
    yield page.table(
        head,
        [
            [
                Cell(f.variant, True),
                Cell(str(f.cells)),
                Cell(f"{f.success_differs / f.cells:.0%}"),
                Cell(f"{f.path_differs / f.cells:.0%}"),
                Cell(f"{f.deviation:.3g}"),
            ]
            for f in floors
        ],
    )
    yield page.paragraph(
        "Deviation: the largest distance between the two paths of a cell, in units of the state; median over the "
        "cells whose paths differ.",
        "note",
    )


def _protocol(results: Results, main: Comparison | None) -> Iterator[str]:
    yield page.heading("Protocol")
    planner = results.protocol.get("planner", {})
    yield page.definitions((_words(key), _value(value)) for key, value in planner.items())
    if main is not None:
        yield page.bullets(
            (
                f"{counted(main.episodes, 'evaluation episode')}, one checkpoint, {main.seeds_text}. All variants plan "
                "the same episodes with the same noise, so they are compared in pairs. The intervals speak about "
                "further episodes of this task for this checkpoint, not about other training runs.",
                "Success rates: Wilson score intervals. Paired differences: Newcombe (1998), method 10. Tests: exact "
                f"and two-sided ({'McNemar' if main.seeds == 1 else 'sign flips over episodes'}), after the last MPC "
                "iteration only; adjusted over all quantized variants by Holm. Correlations: Spearman, ties by "
                "midranks.",
                f"Reference rows: {_reference_words(main)}. They are compared with full precision but are not part of "
                "the tested family.",
            )
        )


def _reference_words(main: Comparison) -> str:
    random = "random actions are drawn in place of plans"
    note = main.reference_note
    return f"{random}; {note}" if note else f"the true simulator replaces the model in the same planner; {random}"


def _provenance(results: Results) -> Iterator[str]:
    protocol = results.protocol
    yield page.heading("Provenance")
    shown = {key: value for key, value in protocol.items() if key not in ("config", "planner", "versions", "device")}
    pairs = [(_words(key), _value(value)) for key, value in shown.items()]
    pairs += [("device", _value(protocol.get("device")))]
    pairs += [("versions", ", ".join(f"{name} {version}" for name, version in protocol.get("versions", {}).items()))]
    pairs += list(_other_starts(results))
    yield page.definitions(pairs)
    yield page.details("Resolved config", page.preformatted(json.dumps(protocol.get("config", {}), indent=2)))


def _other_starts(results: Results) -> Iterator[tuple[str, str]]:
    """What later starts computed with, where that is not what the one before them did."""
    before = dict(results.protocol)
    for start in results.starts:
        for name, value in start.items():
            if name in before and value != before[name]:
                before[name] = value
                yield f"{_words(name)} since {start.get('time', 'a later start')}", _value(value)


def _comparison_table(comparison: Comparison) -> str:
    name, *others = columns(comparison)
    head = [("", name.title, True), ("", "verdict", True)] + [
        (column.group, column.title, column.left) for column in others
    ]

    def cells(line: Line) -> list[Cell]:
        note = f"non-finite from {line.nonfinite_from}" if line.nonfinite_cells else ""
        judged = Cell(line.verdict or "", True, f"verdict {line.verdict or ''}".strip(), note)
        return [
            Cell(line.name, True),
            judged,
            *(Cell(column.text(line).replace("..", " to "), column.left) for column in others),
        ]

    return page.table(head, [cells(line) for line in comparison.lines], [cells(line) for line in comparison.references])


def _correlation_table(main: Comparison, aligned: Mapping[str, Alignment]) -> str:
    head = [("", "variant", True)]
    for link in LINKS:
        head += [(link.title, "all iterations", False), ("plans", "n", False), (link.title, "first only", False)]
    rows = []
    for line in main.lines:
        if line.name in aligned:
            found = [
                cell for correlation in aligned[line.name].correlations for cell in _correlation_cells(correlation)
            ]
            rows.append([Cell(line.name, True), *found])
    return page.table(head, rows)


def _correlation_cells(found: Correlation) -> list[Cell]:
    interval = f" ({found.low:.2f} to {found.high:.2f})" if found.low == found.low else ""
    return [Cell(_rho(found.rho) + interval), Cell(str(found.count)), Cell(_rho(found.first_rho))]


def _planning_table(main: Comparison, aligned: Mapping[str, Alignment]) -> str:
    head = [("", "variant", True)] + [("iteration", str(k), False) for k in range(1, main.iterations + 1)]
    rows = [
        [Cell(line.name, True), *(Cell(str(count)) for count in aligned[line.name].planning_cells)]
        for line in main.lines
        if line.name in aligned
    ]
    return page.table(head, rows)


def _rho(value: float) -> str:
    return f"{value:.2f}" if value == value else "–"


def _name(protocol: Mapping[str, Any]) -> str:
    return str(_nested(protocol, "config", "name") or "sweep")


def _nested(value: Any, *keys: str) -> Any:
    """value[key][key]..., None where something on the way is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _words(key: str) -> str:
    return key.replace("_", " ")


def _value(value: Any) -> str:
    if value is None or value in ("", {}, []):
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(key)} {_value(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
