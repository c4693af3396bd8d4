"""Does a lower planning cost still mean success? Rank correlations within each variant.

A quantized encoder changes the latent space, so costs of two variants are in different units and are never compared
with each other: every correlation is of ranks inside one variant. Cells stop when they succeed, so later iterations
hold only cells that are hard to solve; the first iteration, which holds every cell, is therefore reported beside all of
them pooled.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wmq_jax.analysis.rank import spearman, spearman_interval
from wmq_jax.analysis.results import Row


@dataclasses.dataclass(frozen=True)
class Points:
    """The executed plans of one variant, N of them, one for each cell and MPC iteration.

    Attributes:
      predicted_cost: (N,) what the planner expected of the plan it chose.
      realised_cost: (N,) cost of the encoded observation after executing it, as the objective's last frame. It is what
        was predicted where the whole plan is executed and the objective looks at the last frame (the study's protocol).
      distance: (N,) true state distance after executing it.
      predicted_drop: (N,) cost before the plan minus predicted cost.
      distance_drop: (N,) true distance before the plan minus after it.
      solved: (N,) bool, whether the goal was reached in that iteration.
      iteration: (N,) counted from 1.
      episode: (N,) number of the episode.
    """

    predicted_cost: np.ndarray
    realised_cost: np.ndarray
    distance: np.ndarray
    predicted_drop: np.ndarray
    distance_drop: np.ndarray
    solved: np.ndarray
    iteration: np.ndarray
    episode: np.ndarray

    @property
    def failed(self) -> np.ndarray:
        return ~self.solved

    def __len__(self) -> int:
        return len(self.iteration)


@dataclasses.dataclass(frozen=True)
class Link:
    """One link of the chain from the planner's objective to success: two fields of Points; +1 is aligned."""

    title: str
    x: str
    y: str
    question: str


LINKS = (
    Link("imagination", "predicted_cost", "realised_cost", "predicted cost vs realised cost"),
    Link("objective", "realised_cost", "distance", "realised cost vs true distance"),
    Link("progress", "predicted_drop", "distance_drop", "predicted gain vs true gain"),
    Link("task", "predicted_cost", "failed", "predicted cost vs failure"),
)


@dataclasses.dataclass(frozen=True)
class Correlation:
    """Spearman's rho of one link in one variant; NaN where it is undefined (a side without spread).

    Attributes:
      rho: over all iterations.
      low: lower end of its 95% interval (bootstrap over episodes).
      high: upper end.
      count: plans it rests on.
      first_rho: over the first iteration alone, which holds every cell.
      first_count: plans in the first iteration.
    """

    rho: float
    low: float
    high: float
    count: int
    first_rho: float
    first_count: int


@dataclasses.dataclass(frozen=True)
class Alignment:
    """One variant's executed plans.

    Attributes:
      points: the plans.
      correlations: in order of `LINKS`.
      planning_cells: how many cells planned in each MPC iteration.
      same_cost: whether predicted and realised cost are of the same thing; see `costs_agree`.
    """

    points: Points
    correlations: tuple[Correlation, ...]
    planning_cells: tuple[int, ...]
    same_cost: bool = True


def costs_agree(planner: Mapping[str, Any], horizon: int) -> bool:
    """Whether the realised cost is what the predicted one predicts.

    It is of the last frame that was reached: the objective must look at that frame alone, and plans be executed whole.

    Args:
      planner: the group `planner` of the sweep's config.
      horizon: model actions a plan.
    """
    return planner.get("objective", "last") == "last" and planner.get("executed", 0) in (0, horizon)


def align(rows: Sequence[Row], same_cost: bool = True) -> dict[str, Alignment]:
    """The alignment of every variant that has rows, by name, in the order of `rows`."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.variant, []).append(row)
    aligned = {}
    for name, members in groups.items():
        points = gather(members)
        correlations = tuple(correlate(points, link) for link in LINKS)
        aligned[name] = Alignment(points, correlations, planning_cells(members), same_cost)
    return aligned


def gather(rows: Sequence[Row]) -> Points:
    """The executed plans of one variant's rows."""
    plans = [(row, k) for row in rows for k in range(row.iterations)]

    def column(value, dtype=float) -> np.ndarray:
        return np.array([value(row, k) for row, k in plans], dtype=dtype)

    def before(series: str, start: str) -> np.ndarray:
        return column(lambda row, k: getattr(row, series)[k - 1] if k else getattr(row, start))

    predicted = column(lambda row, k: row.predicted_cost[k])
    distance = column(lambda row, k: row.distance[k])
    return Points(
        predicted_cost=predicted,
        realised_cost=column(lambda row, k: row.realised_cost[k]),
        distance=distance,
        predicted_drop=before("realised_cost", "initial_cost") - predicted,
        distance_drop=before("distance", "initial_distance") - distance,
        solved=column(lambda row, k: row.success[k], bool),
        iteration=column(lambda row, k: k + 1, int),
        episode=column(lambda row, k: row.episode, int),
    )


def correlate(points: Points, link: Link) -> Correlation:
    """The rank correlation of one link; plans with a value that is not finite are left out (and not counted)."""
    x, y = getattr(points, link.x).astype(float), getattr(points, link.y).astype(float)
    finite = np.isfinite(x) & np.isfinite(y)
    first = finite & (points.iteration == 1)
    low, high = spearman_interval(x[finite], y[finite], points.episode[finite])
    return Correlation(
        rho=spearman(x[finite], y[finite]),
        low=low,
        high=high,
        count=int(finite.sum()),
        first_rho=spearman(x[first], y[first]),
        first_count=int(first.sum()),
    )


def planning_cells(rows: Sequence[Row]) -> tuple[int, ...]:
    """How many cells still planned in each iteration 1..M: what the plans of that iteration are drawn from."""
    iterations = max((len(row.success) for row in rows), default=0)
    return tuple(sum(row.iterations >= k for row in rows) for k in range(1, iterations + 1))
