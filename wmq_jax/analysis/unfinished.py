"""What of an unfinished sweep may be looked at: its first episodes, as far as every cell of them is finished.

A cell ends when it succeeds or runs out of iterations, so that the cells that are finished first are the successes, and
the episodes that are finished first the easy ones. Rates over whatever is finished would be too high, and of no two
variants over the same episodes. Sweeps start episode by episode, in order.
"""

import collections
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from wmq_jax.io.wording import counted

NO_ROWS = "No episode is finished yet."

RowType = TypeVar("RowType")


def first_episodes(
    rows: Sequence[RowType], variants: Sequence[str], protocol: Mapping[str, Any]
) -> tuple[RowType, ...]:
    """The rows of the episodes before the first that a variant has not finished with every planner seed and horizon.

    Args:
      rows: one per finished cell, each once.
      variants: names of those that are wanted.
      protocol: `config.json` as saved, of which `config.planner` lists seeds and horizons.
    """
    planner = protocol.get("config", {}).get("planner", {})
    wanted = len(variants) * _length(planner.get("seeds", "0")) * _length(planner.get("horizons", "0"))
    found = collections.Counter(row.episode for row in rows)
    end = next(episode for episode in itertools.count() if found[episode] < max(1, wanted))
    return tuple(row for row in rows if row.episode < end)


def unfinished_note(left_out: int) -> str:
    """What a report of an unfinished sweep says of itself.

    Args:
      left_out: finished cells that are not looked at.
    """
    text = "The sweep is not finished: this is the state so far"
    if left_out == 0:
        return f"{text}."
    verb = "is" if left_out == 1 else "are"
    return (
        f"{text}, of the first episodes, which every variant has finished. {counted(left_out, 'finished cell')} of "
        f"later ones {verb} left out, since successes finish first."
    )


def _length(listed: Any) -> int:
    """How many whole numbers a setting such as '3 5' lists."""
    return len(str(listed).replace(",", " ").split())
