"""How many recorded values the tests compared, over all worker processes, and how close to their bounds."""

import os
from pathlib import Path
from typing import Any

REDUCED = Path(__file__).parent / "data"

_compared: dict[str, int] = {}
_closest: dict[str, tuple[float, str]] = {}


def golden_folder() -> Path:
    """The folder of recordings in use."""
    return Path(os.environ.get("WMQ_GOLDEN") or REDUCED)


def add(module: str, values: int) -> None:
    """Counts values that a test module compared."""
    _compared[module] = _compared.get(module, 0) + values


def closest(module: str, share: float, what: str) -> None:
    """Notes how much of its bound a comparison used."""
    _closest[module] = max(_closest.get(module, (0.0, "")), (float(share), str(what)))


def export() -> list[Any]:
    """This process's counts, as the plain Python values that worker processes can send."""
    return [[module, int(count), *_closest.get(module, (0.0, ""))] for module, count in _compared.items()]


def merge(exported: list[Any]) -> None:
    """Adds the counts of another process."""
    for module, count, share, what in exported:
        add(module, count)
        closest(module, share, what)


def report() -> list[str]:
    """The lines that end a test run; none if nothing was compared."""
    if not _compared:
        return []
    lines = [f"folder: {golden_folder()}"]
    for module, count in sorted(_compared.items()):
        share, what = _closest.get(module, (0.0, ""))
        tightest = f"; closest to its bound, at {share:.0%} of it: {what}" if what else ""
        lines.append(f"{module}: {count:,} values compared{tightest}")
    return [*lines, f"total: {sum(_compared.values()):,}"]
