"""Programs started as a user starts them."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def program(name: str, *arguments, **kwargs) -> subprocess.CompletedProcess:
    """What ``python -m experiments.<name>`` prints and returns, from the repository's root."""
    command = [sys.executable, "-m", f"experiments.{name}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, **kwargs)
