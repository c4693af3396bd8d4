"""Success rates of a sweep's cells, and two variants compared on the cells that both have computed.

Every variant plans the same episodes with the same noise, so a difference is one of pairs. Seeds of one episode are no
independent cells: how alike they are enters the intervals. Every rate and every difference is of its own cells alone,
so that no variant's figures depend on which others a sweep has; Holm's adjustment does, as it must.
"""

import collections
import dataclasses
from collections.abc import Sequence

from wmq_jax.analysis import stats
from wmq_jax.analysis.results import Row

LEVEL = 0.05  # of the Holm-adjusted tests


@dataclasses.dataclass(frozen=True)
class Rate:
    """A success rate in 0..1 with its 95% interval."""

    estimate: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Difference:
    """Success rate of a variant minus that of a base on the same cells, after the last MPC iteration.

    Attributes:
      estimate: in -1..1; negative where the variant is worse.
      low: lower end of the 95% interval.
      high: upper end of the 95% interval.
      pairs: cells that both have computed.
      gained: pairs that only the variant solved.
      lost: pairs that only the base solved.
      p_value: of the exact McNemar test (sign-flip test over episodes where there are several seeds).
      p_adjusted: by Holm over a family of comparisons; None outside of any.
    """

    estimate: float
    low: float
    high: float
    pairs: int
    gained: int
    lost: int
    p_value: float
    p_adjusted: float | None

    @property
    def is_loss(self) -> bool:
        """Whether the variant is worse than the base, by the adjusted test."""
        return self.estimate < 0 and self.p_adjusted is not None and self.p_adjusted < LEVEL


Pairs = Sequence[tuple[Row, Row]]


def success_rate(rows: Sequence[Row], k: int) -> Rate:
    """The Rate of success within k + 1 iterations, of at least one row."""
    solved = [int(row.success[k]) for row in rows]
    effective = _effective_share(solved, [row.episode for row in rows], ends=(0, 1))
    low, high = stats.wilson_interval(sum(solved) * effective, len(rows) * effective)
    return Rate(sum(solved) / len(rows), low, high)


def pairs_of(rows: Sequence[Row], base_rows: Sequence[Row]) -> Pairs:
    """The cells that both have computed."""
    base = {row.cell: row for row in base_rows}
    return [(row, base[row.cell]) for row in rows if row.cell in base]


def paired_difference(pairs: Pairs) -> Difference | None:
    """The comparison of the pairs' first rows with their second ones, not yet adjusted; None without any pair."""
    if not pairs:
        return None
    outcomes = [(row.success[-1], other.success[-1]) for row, other in pairs]
    table = stats.PairedTable(
        *(outcomes.count(outcome) for outcome in ((True, True), (True, False), (False, True), (False, False)))
    )
    gaps, episodes = _gaps(pairs), [row.episode for row, _ in pairs]
    effective = _effective_share(gaps, episodes, ends=(-1, 1))
    low, high = stats.newcombe_paired_interval(table.scaled(effective))
    return Difference(
        estimate=sum(gaps) / len(gaps),
        low=low,
        high=high,
        pairs=len(pairs),
        gained=table.first_only,
        lost=table.second_only,
        p_value=_p_value(table, gaps, episodes),
        p_adjusted=None,
    )


def holm_adjusted(differences: Sequence[Difference | None]) -> list[Difference | None]:
    """The differences with Holm's adjustment over all of them.

    None, where nothing is computed yet, counts as one that does not differ, so that what an unfinished sweep says does
    not turn round as the others come in.
    """
    values = stats.holm([1.0 if difference is None else difference.p_value for difference in differences])
    return [
        None if difference is None else dataclasses.replace(difference, p_adjusted=value)
        for difference, value in zip(differences, values)
    ]


def _gaps(pairs: Pairs) -> list[int]:
    """1 where only the first succeeded, -1 where only the second did, else 0."""
    return [int(row.success[-1]) - int(other.success[-1]) for row, other in pairs]


def _effective_share(values: Sequence[int], episodes: Sequence[int], ends: tuple[int, int]) -> float:
    """The share of the cells that counts, had all been independent.

    Cells of one episode are taken to be as alike as they and one more episode at each of the ``ends`` say. Where
    nothing or nearly nothing varies, cells tell little about the next episode; without those two a single failure
    among many would turn full correlation into none.
    """
    size = max(collections.Counter(episodes).values())
    added = [end for end in ends for _ in range(size)]
    labels = [f"end {end}" for end in added]
    correlation = stats.intraclass_correlation([*values, *added], [*map(str, episodes), *labels])
    return 1 / stats.design_effect(episodes, correlation)


def _p_value(table: stats.PairedTable, gaps: Sequence[int], episodes: Sequence[int]) -> float:
    """Exact McNemar; with several seeds an episode's cells are flipped together, since they are not independent."""
    if len(set(episodes)) == len(episodes):
        return stats.mcnemar_exact(table.first_only, table.second_only)
    sums = dict.fromkeys(episodes, 0)
    for gap, episode in zip(gaps, episodes):
        sums[episode] += gap
    return stats.sign_flip_test(list(sums.values()))
