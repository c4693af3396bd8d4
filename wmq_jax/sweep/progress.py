"""What a person sees while a sweep runs."""

import sys
import time
from collections.abc import Sequence
from typing import TextIO


def duration(seconds: float) -> str:
    """Seconds as ``42 s``, ``3 min 05 s`` or ``2 h 10 min``."""
    seconds = int(round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


class ProgressBar:
    """Cells done of total, MPC iteration of those in work, and time left; one line, redrawn on a terminal.

    Args:
      label: what is counted.
      total: cells to do in all.
      done: cells that were done before.
      iterations: MPC iterations a cell can have.
      stream: where it is drawn; where that is no terminal, a new line is written every ``interval`` seconds.
      interval: seconds between lines.
    """

    def __init__(
        self,
        label: str,
        total: int,
        done: int,
        iterations: int,
        stream: TextIO | None = None,
        interval: float = 15.0,
    ):
        self._label, self._total, self._done, self._before = label, total, done, done
        self._iterations = iterations
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._interval = 0.2 if self._terminal else interval
        self._began = self._drawn = time.monotonic()
        self._line = ""

    def update(self, finished: int, busy: Sequence[int]) -> None:
        """Counts ``finished`` more cells; ``busy`` are the MPC iterations that the cells in work have done."""
        self._done += finished
        if time.monotonic() - self._drawn >= self._interval:
            self._draw(busy)

    def close(self) -> None:
        """Draws the last state and ends the line."""
        self._draw(())
        if self._terminal:
            print(file=self._stream, flush=True)

    def _draw(self, busy: Sequence[int]) -> None:
        self._drawn = time.monotonic()
        share = self._done / self._total if self._total else 1.0
        filled = int(24 * share)
        parts = [f"{self._label} [{'#' * filled}{'.' * (24 - filled)}] {self._done}/{self._total} cells"]
        if busy:
            low, high = min(busy) + 1, max(busy) + 1
            span = f"{low}" if low == high else f"{low}-{high}"
            parts.append(f"MPC iteration {span} of {self._iterations}")
        fresh = self._done - self._before
        elapsed = self._drawn - self._began
        if self._done == self._total:
            parts.append(f"took {duration(elapsed)}")
        elif fresh:
            parts.append(f"{duration(elapsed / fresh * (self._total - self._done))} left")
        end, start = ("", "\r\x1b[K") if self._terminal else ("\n", "")
        line = start + " · ".join(parts)
        if line != self._line:
            print(line, end=end, file=self._stream, flush=True)
        self._line = line
