"""Files that are whole or absent: atomic replacement and durable appends.

A reader, or a later run after a kill at any moment, sees the old file or the new one and never a part of it.
Replacement writes a temporary file in the same folder, flushes it to the disk, renames it over the target and flushes
the folder.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Replaces the file `path` by `data`, atomically and durably.

    Args:
      path: target file; its folder must exist.
      data: the whole new content.

    Raises:
      OSError: the folder is missing or cannot be written; the old file is then untouched.
    """
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    sync_folder(path.parent)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replaces the file `path` by `text` in UTF-8, atomically and durably (see `write_bytes`)."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Replaces the file `path` by `value` as indented JSON, atomically and durably.

    Raises:
      TypeError: `value` holds something JSON has no form for.
      ValueError: `value` holds NaN or infinity, which JSON has no form for.
      OSError: see `write_bytes`.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def append_line(path: str | os.PathLike, line: str) -> None:
    """Appends `line` and a newline to the file `path` (created if absent) and flushes it to the disk.

    A kill can tear the last line of a file. A torn line is closed with a newline first, so that it never swallows the
    next one.

    Args:
      path: a file with one record a line.
      line: one record, without a newline.

    Raises:
      ValueError: `line` contains a newline.
      OSError: the file cannot be written.
    """
    if "\n" in line:
        raise ValueError("append_line: the line must not contain a newline")
    with open(path, "a+b") as file:
        created = file.seek(0, os.SEEK_END) == 0
        torn = False
        if not created:
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + line.encode("utf-8") + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if created:
        sync_folder(Path(path).parent)


def object_of(line: str) -> dict[str, Any] | None:
    """The JSON object of a line, or None if the line was torn by a kill."""
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def _umask() -> int:
    """The process's file mode mask; reading it is only possible by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries, without which a rename may be lost by a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
