"""What of an unfinished sweep may be looked at: episodes whose every cell is finished.

A cell ends when it succeeds or runs out of iterations, so that the cells that are finished first are the successes.
Rates over whatever is finished would be too high, and of no two variants over the same episodes.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from wmq_jax.io.wording import counted

NO_ROWS = "No episode is finished yet."

RowType = TypeVar("RowType")


def complete_episodes(
    rows: Sequence[RowType], variants: Sequence[str], protocol: Mapping[str, Any]
) -> tuple[RowType, ...]:
    """The rows of episodes that every variant has finished with every planner seed and horizon.

    Args:
      rows: one per finished cell, each once.
      variants: names of those that are wanted.
      protocol: `config.json` as saved, of which `config.planner` lists seeds and horizons.
    """
    planner = protocol.get("config", {}).get("planner", {})
    wanted = len(variants) * _length(planner.get("seeds", "0")) * _length(planner.get("horizons", "0"))
    found = collections.Counter(row.episode for row in rows)
    return tuple(row for row in rows if found[row.episode] == wanted)


def unfinished_note(left_out: int) -> str:
    """What a report of an unfinished sweep says of itself.

    Args:
      left_out: finished cells of episodes that are not.
    """
    text = "The sweep is not finished: this is the state so far"
    if left_out == 0:
        return f"{text}."
    verb = "is" if left_out == 1 else "are"
    return (
        f"{text}, of the episodes that every variant has finished. {counted(left_out, 'finished cell')} of others "
        f"{verb} left out, since successes finish first."
    )


def _length(listed: Any) -> int:
    """How many whole numbers a setting such as '3 5' lists."""
    return len(str(listed).replace(",", " ").split())
