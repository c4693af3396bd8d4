"""The results folder: rows survive a kill at any moment, and identical runs leave identical files.

While a sweep runs, finished rows are appended to ``journal/<table>-<process>.jsonl`` and flushed to the disk one by
one. A line that a kill has torn is not a row, so its cell is computed again. When every cell is there, the rows are
written in canonical order to ``<table>.jsonl``, atomically. Times go to ``timing.jsonl``, and what each start of the
sweep computed with to ``starts.jsonl``.
"""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from wmq_jax.io import append_line, locked, make_workdir, write_text
from wmq_jax.runtime.starts import record_start
from wmq_jax.sweep.rows import from_line, row_key, to_line


class ResultsFolder:
    """One folder of results; created where it is missing.

    Args:
      path: the folder.
      process: number of this process, if several share the folder; each appends to files of its own.

    Raises:
      ValueError: the folder cannot be created or written.
    """

    def __init__(self, path: str | os.PathLike, process: int = 0):
        self.path = make_workdir(path, "journal")
        self.process = process

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keeps a second run with this process number out of the folder; see :func:`wmq_jax.io.locked`."""
        return locked(self.path, f"journal/.lock-{self.process}")

    def append(self, table: str, row: dict[str, Any]) -> None:
        """Appends a finished row to the journal, durably."""
        append_line(self.path / "journal" / f"{table}-{self.process}.jsonl", to_line(row))

    def load(self, table: str) -> dict[tuple[Any, ...], dict[str, Any]]:
        """All whole rows of a table so far, of all processes, by :func:`row_key`."""
        files = sorted((self.path / "journal").glob(f"{table}-*.jsonl"))
        lines = (line for file in files for line in file.read_text(errors="replace").splitlines())
        rows = (from_line(line) for line in lines)
        return {row_key(row): row for row in rows if row is not None}

    def finish(self, table: str, order: Sequence[tuple[Any, ...]]) -> None:
        """Writes ``<table>.jsonl`` in the given order of row keys, unless it is there as it should be.

        Every row must be there.
        """
        rows, path = self.load(table), self.path / f"{table}.jsonl"
        text = "".join(to_line(rows[key]) + "\n" for key in order)
        if not path.exists() or path.read_bytes() != text.encode():
            write_text(path, text)

    def start(self, made_with: Mapping[str, Any], **entry: Any) -> str | None:
        """Appends to ``starts.jsonl``, see :func:`wmq_jax.runtime.starts.record_start`."""
        return record_start(self.path, made_with, process=self.process, **entry)

    def time(self, **entry: Any) -> None:
        """Appends to ``timing.jsonl``."""
        append_line(self.path / "timing.jsonl", json.dumps({"process": self.process, **entry}))
