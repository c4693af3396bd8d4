"""The methods of a sweep against each other: at the same bits, groups, activations and modules.

A *setting* is what a variant's spec says beside its method: 'w4g32' of 'awq:w4g32'. Methods of one setting are compared
in pairs with round-to-nearest, which is what they have to beat.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Literal

from wmq_jax.analysis.paired import LEVEL, Difference, holm_adjusted, paired_difference, pairs_of
from wmq_jax.analysis.results import Results, Row, Variant
from wmq_jax.analysis.summary import Comparison, Line

BASE = "rtn"

Effect = Literal["better", "worse"]


@dataclasses.dataclass(frozen=True)
class MethodEntry:
    """One method at one setting.

    Attributes:
      line: of the variant, which has cells.
      difference: to round-to-nearest at the same setting, Holm-adjusted over all of the table's; None for
        round-to-nearest itself and where there are no pairs.
      effect: what the adjusted test says; None where it says nothing.
      best: of its setting: the highest success among the methods that are better than round-to-nearest.
    """

    line: Line
    difference: Difference | None = None
    effect: Effect | None = None
    best: bool = False


@dataclasses.dataclass(frozen=True)
class MethodTable:
    """Methods against settings.

    Attributes:
      methods: in the order of the sweep, round-to-nearest first.
      settings: in the order of the sweep.
      entries: (setting, method) -> what is known of it; those without a cell are missing.
      comparisons: how many differences to round-to-nearest the sweep asks for, computed or not.
    """

    methods: tuple[str, ...]
    settings: tuple[str, ...]
    entries: Mapping[tuple[str, str], MethodEntry]
    comparisons: int

    def row(self, setting: str) -> list[MethodEntry | None]:
        """The entries of a setting, one a method."""
        return [self.entries.get((setting, method)) for method in self.methods]


def compare_methods(results: Results, comparison: Comparison) -> MethodTable | None:
    """The settings of a sweep that have several methods; None if none has.

    Args:
      results: the results folder.
      comparison: all variants at the horizon that is looked at.
    """
    named = {key: variant for variant in results.variants if (key := _setting_and_method(variant)) is not None}
    methods_of: dict[str, list[str]] = {}
    for setting, method in named:
        methods_of.setdefault(setting, []).append(method)
    settings = [setting for setting, methods in methods_of.items() if len(methods) > 1]
    if not settings:
        return None
    methods = dict.fromkeys(method for setting in settings for method in methods_of[setting])
    wanted = {key: named[key] for key in named if key[0] in settings}
    compared = [(setting, m) for setting, m in wanted if m != BASE and (setting, BASE) in wanted]
    differences = dict(zip(compared, _differences(results, comparison, wanted, compared)))
    entries = {key: _entry(comparison.line(variant.name), differences.get(key)) for key, variant in wanted.items()}
    entries = {key: entry for key, entry in entries.items() if entry.line.cells}
    return MethodTable(
        methods=tuple(sorted(methods, key=lambda method: method != BASE)),
        settings=tuple(settings),
        entries=_with_best(entries),
        comparisons=len(compared),
    )


def methods_sentence(table: MethodTable) -> str:
    """What the tests say, in a sentence."""
    if not table.comparisons:
        return "The sweep has no round-to-nearest at these settings to compare with: success rates only."
    tested = f"of {table.comparisons} comparisons with round-to-nearest, after Holm's adjustment over all of them"
    found = {effect: [key for key, e in table.entries.items() if e.effect == effect] for effect in ("better", "worse")}
    parts = [
        f"{effect} in {len(keys)} ({', '.join(f'{method} at {setting}' for setting, method in keys)})"
        for effect, keys in found.items()
        if keys
    ]
    return f"A method is {' and '.join(parts)} {tested}." if parts else f"No method differs in any {tested}."


def _setting_and_method(variant: Variant) -> tuple[str, str] | None:
    """None where no weight is quantized; both methods where the modules' differ, the encoder's first."""
    methods = dict.fromkeys(m.method for m in (variant.encoder, variant.predictor) if m.method is not None)
    return (re.sub(r"\w+:", "", variant.spec), "/".join(methods)) if methods else None


def _differences(
    results: Results,
    comparison: Comparison,
    variants: Mapping[tuple[str, str], Variant],
    compared: list[tuple[str, str]],
) -> list[Difference | None]:
    """The difference of each of ``compared`` to round-to-nearest, adjusted over all of them."""
    rows: dict[str, list[Row]] = {variant.name: [] for variant in variants.values()}
    for row in results.rows:
        if row.horizon == comparison.horizon and row.variant in rows:
            rows[row.variant].append(row)
    of = lambda key: rows[variants[key].name]
    pairs = [pairs_of(of(key), of((key[0], BASE))) for key in compared]
    return holm_adjusted([paired_difference(found) for found in pairs])


def _entry(line: Line, difference: Difference | None) -> MethodEntry:
    if difference is None or difference.p_adjusted >= LEVEL:
        return MethodEntry(line, difference)
    return MethodEntry(line, difference, "better" if difference.estimate > 0 else "worse")


def _with_best(entries: Mapping[tuple[str, str], MethodEntry]) -> dict[tuple[str, str], MethodEntry]:
    better = {key: entry.line.success[-1].estimate for key, entry in entries.items() if entry.effect == "better"}
    top: dict[str, float] = {}
    for (setting, _), rate in better.items():
        top[setting] = max(rate, top.get(setting, 0.0))
    return {
        key: dataclasses.replace(entry, best=key in better and better[key] == top[key[0]])
        for key, entry in entries.items()
    }
