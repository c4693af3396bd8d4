"""The numerical-noise floor: how much changes when the same cells are computed at another tile size.

Another tile size rounds differently; a rounding flips a quantization step, a step flips an elite. Two variants that
differ by no more than this floor are not told apart by single cells, only by rates.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from wmq_jax.analysis.results import Row


@dataclasses.dataclass(frozen=True)
class NoiseFloor:
    """One variant's cells at two tile sizes.

    Attributes:
      variant: name.
      cells: cells computed at both.
      success_differs: cells whose success, within any number of iterations, differs.
      path_differs: cells whose path differs at all.
      deviation: median, over the cells whose paths differ, of the largest distance between the two, in state units;
        else 0.
    """

    variant: str
    cells: int
    success_differs: int
    path_differs: int
    deviation: float


def noise_floor(rows: Sequence[Row], others: Sequence[Row]) -> tuple[NoiseFloor, ...]:
    """Compares rows with those of the same cells at another tile size, a record a variant, in the order of `rows`."""
    recomputed = {(row.variant, *row.cell): row for row in others}
    pairs: dict[str, list[tuple[Row, Row]]] = {}
    for row in rows:
        other = recomputed.get((row.variant, *row.cell))
        if other is not None:
            pairs.setdefault(row.variant, []).append((row, other))
    return tuple(_floor(variant, matched) for variant, matched in pairs.items())


def _floor(variant: str, pairs: Sequence[tuple[Row, Row]]) -> NoiseFloor:
    moved = [
        _deviation(row.path, other.path)
        for row, other in pairs
        if not np.array_equal(row.path, other.path, equal_nan=True)
    ]
    return NoiseFloor(
        variant=variant,
        cells=len(pairs),
        success_differs=sum(row.success != other.success for row, other in pairs),
        path_differs=len(moved),
        deviation=float(np.median(moved)) if moved else 0.0,
    )


def _deviation(first: np.ndarray, second: np.ndarray) -> float:
    """Largest distance between two paths at equal steps; the shorter one stays at its end."""
    steps = np.arange(max(len(first), len(second)))
    first, second = (path[np.minimum(steps, len(path) - 1)] for path in (first, second))
    return float(np.max(np.linalg.norm(first - second, axis=1)))
