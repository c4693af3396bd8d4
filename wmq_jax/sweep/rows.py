"""Rows: what a finished cell leaves behind, free of anything that changes between identical runs."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from wmq_jax.io import object_of
from wmq_jax.planning import IterationRecord, MPCConfig, num_executed
from wmq_jax.sweep.cells import Cell

KEY = ("variant", "seed", "horizon", "episode")


def _number(value: np.ndarray) -> float | None:
    """A float32 as the shortest decimal that reads back as the same float32; None where it is not finite."""
    return float(str(np.float32(value))) if math.isfinite(value) else None


def make_row(cell: Cell, name: str, records: Sequence[IterationRecord], config: MPCConfig) -> dict[str, Any]:
    """The row of a finished cell.

    Args:
      cell: what was computed.
      name: the variant's name.
      records: one per executed MPC iteration.
      config: how many iterations there could be and how many model actions each executes.

    Returns:
      A dictionary that JSON can hold. ``success`` has one entry per MPC iteration, filled forward once it is true;
      costs and distances have one per executed iteration; ``path`` has the first two numbers of proprioception at the
      start and after every executed model action.
    """
    succeeded = [bool(record.success) for record in records]
    sticky = succeeded + [succeeded[-1]] * (config.iterations - len(records))
    wild = [k for k, record in enumerate(records, start=1) if not record.finite]
    count = int(num_executed(config, cell.horizon))
    path = [records[0].path[0], *(place for record in records for place in record.path[1 : count + 1])]
    return {
        "variant": name,
        "seed": cell.seed,
        "horizon": cell.horizon,
        "episode": cell.episode,
        "iterations": len(records),
        "success": sticky,
        "predicted_cost": [_number(record.predicted_cost) for record in records],
        "realised_cost": [_number(record.realised_cost) for record in records],
        "distance": [_number(record.distance) for record in records],
        "initial_cost": _number(records[0].initial_cost),
        "initial_distance": _number(records[0].initial_distance),
        "nonfinite_iteration": wild[0] if wild else None,
        "path": [[_number(x) for x in place[:2]] for place in path],
    }


def row_key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What identifies a row within one sweep."""
    return tuple(row[field] for field in KEY)


def to_line(row: dict[str, Any]) -> str:
    """The row as one line of JSON; equal rows are equal bytes."""
    return json.dumps(row, separators=(",", ":"), allow_nan=False)


def from_line(line: str) -> dict[str, Any] | None:
    """The row of a line, or None if the line was torn by a kill."""
    row = object_of(line)
    return row if row is not None and all(field in row for field in KEY) else None
