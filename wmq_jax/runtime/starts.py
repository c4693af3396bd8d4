"""The log of a folder's starts: what each computed with, and what has changed since the one before."""

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wmq_jax import io

STARTS = "starts.jsonl"


def record_start(folder: Path, made_with: Mapping[str, Any], **entry: Any) -> str | None:
    """Appends to ``starts.jsonl`` in ``folder`` when a start was and what its results are ``made_with`` from now on.

    Args:
      folder: of a run that is continued start by start.
      made_with: JSON values that may change between two starts.
      entry: what else to note, which is not compared.

    Returns:
      A note for a person that names what an earlier start had otherwise; None where all had the same.
    """
    path = folder / STARTS
    lines = path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []
    earlier = [start for start in map(io.object_of, lines) if start]
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    io.append_line(path, json.dumps({**entry, "time": now, **made_with}))
    changed = [name for name in made_with if any(start.get(name) != made_with[name] for start in earlier)]
    if not changed:
        return None
    names = " and ".join(name.replace("_", " ") for name in changed)
    return f"note: an earlier start in this folder had other {names}; {STARTS} tells"
