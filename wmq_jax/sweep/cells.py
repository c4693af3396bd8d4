"""Cells: one variant on one episode, under one planner seed, at one horizon."""

import dataclasses
from collections.abc import Iterator, Sequence


@dataclasses.dataclass(frozen=True, order=True)
class Cell:
    """What one row of the results is about; all fields are indices or values that name, never data.

    Attributes:
      variant: index into the table of variants.
      seed: the planner's seed (of CEM's noise).
      horizon: planned model actions.
      episode: number of the episode in its manifest.
    """

    variant: int
    seed: int
    horizon: int
    episode: int


def all_cells(variants: int, seeds: Sequence[int], horizons: Sequence[int], episodes: int) -> Iterator[Cell]:
    """Every combination, in the canonical order of the results: variant, seed, horizon, episode."""
    for variant in range(variants):
        for seed in seeds:
            for horizon in horizons:
                for episode in range(episodes):
                    yield Cell(variant, seed, horizon, episode)
