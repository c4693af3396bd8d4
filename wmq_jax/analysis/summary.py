"""What a sweep says about each variant: success with intervals, and the paired comparison with full precision.

Two variants are compared on the cells that both have computed, since every variant plans the same episodes with the
same noise. Whether a variant *survives* is a question of how large a loss the data still allows, not of whether a test
failed to find one.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from wmq_jax.analysis.paired import (
    LEVEL,
    Difference,
    Rate,
    holm_adjusted,
    paired_difference,
    pairs_of,
    success_rate,
)
from wmq_jax.analysis.results import RANDOM_ACTIONS, TRUE_SIMULATOR, Results, Row, Variant
from wmq_jax.analysis.stats import PairedTable, newcombe_paired_interval
from wmq_jax.analysis.unfinished import NO_ROWS
from wmq_jax.io.wording import counted

# Under gradient descent, folders of earlier versions have rows of the true simulator that are no ceiling.
NO_SIMULATOR = "no reference of the true simulator: its pictures have no gradient for gradient descent"
SURVIVAL_MARGIN = 0.10  # the largest loss of success rate that still counts as surviving

Verdict = Literal["baseline", "survives", "undecided", "falls"]


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the table: a variant, or a reference (`variant` None).

    Attributes:
      name: what it is called.
      variant: the variant, None for the true simulator and random actions.
      cells: cells computed.
      success: M rates, within 1..M MPC iterations; empty without cells.
      difference: to full precision; None for full precision itself and where there are no pairs.
      verdict: 'baseline' for full precision; None for references, and where nothing can be compared.
      nonfinite_cells: cells whose plans became non-finite.
      nonfinite_from: the earliest iteration, counted from 1, in which that happened.
    """

    name: str
    variant: Variant | None
    cells: int
    success: tuple[Rate, ...]
    difference: Difference | None
    verdict: Verdict | None
    nonfinite_cells: int
    nonfinite_from: int | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All variants at one horizon.

    Attributes:
      horizon: model actions a plan.
      iterations: MPC iterations M of the protocol.
      seeds: number of the planner's seeds.
      episodes: number of episodes.
      full_precision: name of the variant that the others are compared with; None if the sweep has none.
      lines: one a variant, in the sweep's order.
      references: true simulator and random actions, where they were computed and mean something.
      reference_note: why one of them is not there; '' where none is left out.
      optimizer: of the planner, 'cem' or 'gd'.
    """

    horizon: int
    iterations: int
    seeds: int
    episodes: int
    full_precision: str | None
    lines: tuple[Line, ...]
    references: tuple[Line, ...]
    reference_note: str
    optimizer: str

    @property
    def seeds_text(self) -> str:
        """The number of seeds in words: 'one CEM seed'."""
        kind = "CEM" if self.optimizer == "cem" else "planner"
        return f"one {kind} seed" if self.seeds == 1 else f"{self.seeds} {kind} seeds"

    @property
    def length(self) -> str:
        """The protocol's iterations in words: '5 MPC iterations'."""
        return counted(self.iterations, "MPC iteration")

    def with_verdict(self, verdict: Verdict) -> tuple[Line, ...]:
        """The variants of one verdict, in the sweep's order."""
        return tuple(line for line in self.lines if line.verdict == verdict)

    def line(self, name: str) -> Line:
        """The line of that name."""
        return next(line for line in self.lines + self.references if line.name == name)


def compare(results: Results, horizon: int) -> Comparison:
    """Summarises the cells of one horizon.

    Args:
      results: a results folder.
      horizon: one of `results.horizons`.

    Returns:
      The Comparison; variants without a cell yet have empty lines.
    """
    rows = [row for row in results.rows if row.horizon == horizon]
    reference_rows = [row for row in results.references if row.horizon == horizon]
    optimizer = results.protocol.get("planner", {}).get("optimizer", "cem")
    descends = optimizer == "gd"
    reference_names = (RANDOM_ACTIONS,) if descends else (TRUE_SIMULATOR, RANDOM_ACTIONS)
    seeds = len({row.seed for row in rows})
    base = results.full_precision
    base_rows = [row for row in rows if base is not None and row.variant == base.name]
    groups = {v.name: [row for row in rows if row.variant == v.name] for v in results.variants}
    groups |= {name: [row for row in reference_rows if row.variant == name] for name in reference_names}
    lines = [_line(v.name, v, groups[v.name], [] if v is base else base_rows) for v in results.variants]
    references = [_line(name, None, groups[name], base_rows) for name in reference_names]
    return Comparison(
        horizon=horizon,
        iterations=max((len(row.success) for row in rows), default=0),
        seeds=seeds,
        episodes=len({row.episode for row in rows}),
        full_precision=base.name if base is not None else None,
        lines=_judged(lines, base),
        references=tuple(line for line in references if line.cells),
        reference_note=NO_SIMULATOR if descends and reference_rows else "",
        optimizer=optimizer,
    )


def main_comparison(results: Results) -> Comparison | None:
    """The comparison at the longest horizon, which the headline and the figures are about; None without any row."""
    return compare(results, results.horizons[-1]) if results.rows else None


def headline(comparison: Comparison | None) -> str:
    """Who survives, in a sentence or two; None stands for a sweep without any row."""
    if comparison is None:
        return NO_ROWS
    judged = [line for line in comparison.lines if line.difference is not None]
    base = comparison.line(comparison.full_precision) if comparison.full_precision is not None else None
    if base is None or not base.cells:
        return "There is no full-precision variant to compare with: success rates only."
    if not judged:
        rate = f"{base.success[-1].estimate:.0%} of {counted(base.cells, 'cell')}"
        return f"Full precision reaches the goal in {rate}; there is no other variant to compare with it."
    survivors = comparison.with_verdict("survives")
    undecided, fallen = len(comparison.with_verdict("undecided")), len(comparison.with_verdict("falls"))
    counts = [f"{'survives' if len(survivors) == 1 else 'survive'}"]
    counts += [f"{undecided} {'is' if undecided == 1 else 'are'} undecided"] * bool(undecided)
    counts += [f"{fallen} {'falls' if fallen == 1 else 'fall'}"] * bool(fallen)
    text = f"{len(survivors) or 'None'} of {len(judged)} quantized variants {', '.join(counts)}. "
    text += f"Full precision reaches the goal in {base.success[-1].estimate:.0%} of {counted(base.cells, 'cell')}"
    if survivors:
        smallest = min(survivors, key=lambda line: line.variant.size_bytes)
        share = smallest.variant.size_bytes / base.variant.size_bytes
        rate = smallest.success[-1].estimate
        text += f"; {smallest.name}, the smallest that survives, in {rate:.0%} at {share:.0%} of the size"
    return text + "."


def verdict_sentences(comparison: Comparison) -> dict[Verdict, str]:
    """A sentence for each verdict that occurs, naming its variants."""
    margin = round(100 * SURVIVAL_MARGIN)
    would_tell = _what_would_tell(comparison) if comparison.with_verdict("undecided") else ""
    meaning: dict[Verdict, str] = {
        "survives": f"a loss of {margin} points or more is excluded with 95% confidence, for each by itself",
        "undecided": f"no loss is established after Holm's adjustment, but one of {margin} points is not "
        f"excluded; {would_tell}",
        "falls": f"worse than full precision, Holm-adjusted p < {LEVEL:g}",
    }
    separator = "; " if any("," in line.name for line in comparison.lines) else ", "
    names = {verdict: separator.join(line.name for line in comparison.with_verdict(verdict)) for verdict in meaning}
    # Both can hold of many episodes; surviving then comes first, since it is the larger question.
    worse = [line.name for line in comparison.with_verdict("survives") if line.difference.is_loss]
    if worse:
        meaning["survives"] += f"; yet worse than full precision, Holm-adjusted p < {LEVEL:g}: {separator.join(worse)}"
    return {
        verdict: f"{verdict.capitalize()}: {names[verdict]} ({meaning[verdict]})."
        for verdict in meaning
        if names[verdict]
    }


def _what_would_tell(comparison: Comparison) -> str:
    """What an undecided variant lacks: whether losing one episode, or none, would do to survive."""
    base = comparison.line(comparison.full_precision)
    solved = round(base.success[-1].estimate * comparison.episodes)
    failed = comparison.episodes - solved

    def survives(lost: int) -> bool:
        table = PairedTable(solved - lost, 0, lost, failed)
        return newcombe_paired_interval(table).low > -SURVIVAL_MARGIN

    if solved and survives(1):
        return "more episodes would tell"
    few = f"with {counted(comparison.episodes, 'episode')}"
    if survives(0):
        return f"{few} only a variant that loses none can survive, so more episodes would tell"
    return f"{few} no variant can survive, so more episodes would tell"


def baseline_caveat(comparison: Comparison) -> str | None:
    """What to say where full precision is not clearly better than random actions or fails: nothing is to be lost."""
    for line in comparison.references:
        if line.name == RANDOM_ACTIONS and line.difference is not None and line.difference.high >= 0:
            return "Full precision is not clearly better than random actions here, so that surviving says nothing."
    for line in comparison.lines:
        if line.verdict == "baseline" and line.cells and line.success[-1].estimate <= SURVIVAL_MARGIN:
            return "Full precision hardly ever reaches the goal here, so that surviving says nothing."
    return None


def _line(name: str, variant: Variant | None, rows: Sequence[Row], base_rows: Sequence[Row]) -> Line:
    began = [row.nonfinite_iteration for row in rows if row.nonfinite_iteration is not None]
    return Line(
        name=name,
        variant=variant,
        cells=len(rows),
        success=tuple(success_rate(rows, k) for k in range(len(rows[0].success))) if rows else (),
        difference=paired_difference(pairs_of(rows, base_rows)),
        verdict=None,
        nonfinite_cells=len(began),
        nonfinite_from=min(began, default=None),
    )


def _judged(lines: Sequence[Line], base: Variant | None) -> tuple[Line, ...]:
    """Lines with Holm's adjustment over all quantized variants, and with verdicts."""
    adjusted = iter(holm_adjusted([line.difference for line in lines if line.variant is not base]))
    judged = []
    for line in lines:
        if line.variant is base:
            line = dataclasses.replace(line, verdict="baseline")
        elif (difference := next(adjusted)) is not None:
            line = dataclasses.replace(line, difference=difference, verdict=_verdict(difference))
        judged.append(line)
    return tuple(judged)


def _verdict(difference: Difference) -> Verdict:
    if difference.low > -SURVIVAL_MARGIN:
        return "survives"
    if difference.is_loss:
        return "falls"
    return "undecided"
