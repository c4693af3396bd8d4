"""What a container may use of its machine: Linux control groups, which say it in files (version 2, then 1)."""

import math
from collections.abc import Sequence
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
# Limit, use, and statistics with the part of the use that files can be dropped for.
_MEMORY = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def quota_cores(root: Path = ROOT) -> float:
    """Cores' worth of time that this process's control group has; infinity where nothing bounds it.

    Args:
      root: where control groups are mounted.
    """
    words = _words(root / "cpu.max")
    if not words:
        words = _words(root / "cpu/cpu.cfs_quota_us") + _words(root / "cpu/cpu.cfs_period_us")
    if len(words) != 2 or words[0] in ("max", "-1"):
        return math.inf
    return float(words[0]) / float(words[1])


def free_bytes(root: Path = ROOT) -> float:
    """Memory that this process's control group has left, cached files aside; infinity where nothing bounds it.

    Args:
      root: where control groups are mounted.
    """
    for limit, use, statistics, cached in _MEMORY:
        bound, used = _words(root / limit), _words(root / use)
        if len(bound) == len(used) == 1 and bound[0] != "max":
            words = _words(root / statistics)
            files = dict(zip(words[::2], words[1::2])).get(cached, 0)
            return max(0.0, float(bound[0]) - float(used[0]) + float(files))
    return math.inf


def _words(path: Path) -> Sequence[str]:
    """The words of a file; none where there is no such file."""
    try:
        return path.read_text().split()
    except OSError:
        return []
