"""A folder belongs to one configuration, written into it and compared with afterwards, and to one run at a time."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wmq_jax.io.atomic import sync_folder, write_json
from wmq_jax.io.wording import quoted

CONFIG = "config.json"
_PART = ".part"  # what new_folder has not finished


def check_new_folder(path: str | os.PathLike, what: str) -> None:
    """Checks that a folder can be written without touching what others put there.

    Args:
      path: the folder.
      what: what is to be written, for the message.

    Raises:
      ValueError: it is a file, or a folder with something in it, or it cannot be made.
    """
    path = Path(path)
    above = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    if path.is_dir() and any(child.name != _PART for child in path.iterdir()):
        raise ValueError(f"cannot write {what} to {path}: it exists and is not empty")
    if not above.is_dir():
        raise ValueError(f"cannot write {what} to {path}: {above} is a file")
    if not os.access(above, os.W_OK):
        raise ValueError(f"cannot write {what} to {path}: {above} is not writable")


@contextlib.contextmanager
def new_folder(path: str | os.PathLike, what: str) -> Iterator[Path]:
    """A folder to write into, whose content is at ``path`` once it is whole: what is stopped leaves nothing there.

    It lies in ``path``, which may be a mounted volume, or a link, in a place where nothing else can be made.

    Args:
      path, what: see :func:`check_new_folder`.

    Raises:
      ValueError: as :func:`check_new_folder`.
    """
    check_new_folder(path, what)
    path = Path(path)
    part, new = path / _PART, not path.exists()
    try:
        shutil.rmtree(part, ignore_errors=True)  # of a start that was killed
        part.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"cannot write {what} to {path}: {error.strerror}") from None
    try:
        yield part
        for child in list(part.iterdir()):
            child.rename(path / child.name)
        part.rmdir()
    except BaseException:
        shutil.rmtree(path if new else part, ignore_errors=True)
        raise


def check_name(name: str) -> str:
    """The name of a configuration, which names its folder under results/ and may not lead out of there.

    Raises:
      ValueError: it is empty, starts with a dot, or has other characters than letters, digits, '.', '_' and '-'.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise ValueError(
            f"name must be letters, digits, '.', '_' and '-', the first of them no '.', not {quoted(name)}"
        )
    return name


def make_workdir(path: str | os.PathLike, inside: str = "") -> Path:
    """The folder, made where it is missing, with a folder in it that is written to.

    Args:
      path: of the folder.
      inside: name of the folder in it; "" for itself.

    Raises:
      ValueError: it cannot be made or written.
    """
    path = Path(path)
    try:
        (path / inside).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"workdir {path} cannot be created: {error.strerror}") from None
    if not os.access(path / inside, os.W_OK):
        raise ValueError(f"workdir {path} is not writable")
    return path


def adopt_config(workdir: Path, config: Mapping[str, Any], must_match: Sequence[str]) -> None:
    """Writes `config.json` into a folder, or checks that the one there agrees.

    Of runs that start at once in a new folder, one writes and the others compare.

    Args:
      workdir: an existing folder.
      config: the resolved configuration with its provenance.
      must_match: the keys of `config` that decide what the folder's results mean.

    Raises:
      ValueError: the folder holds results of another configuration, of which the first difference is named; or its
        config.json is damaged.
    """
    path = workdir / CONFIG
    if not path.exists() and _created(path, dict(config)):
        return
    try:
        old = json.loads(path.read_text("utf-8"))
        found = {key: old.get(key) for key in must_match}
    except (ValueError, AttributeError):
        raise ValueError(f"{path} is damaged; remove the folder or choose another --workdir") from None
    for key in must_match:
        for name, before, now in _differences(key, found[key], json.loads(json.dumps(config[key]))):
            raise ValueError(
                f"workdir {workdir} holds results of another config: {name} is {quoted(before)} there and "
                f"{quoted(now)} now; choose another --workdir"
            )


def _created(path: Path, value: Any) -> bool:
    """Writes a JSON file that is not there yet, whole and durably; False if another process was faster."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    try:
        write_json(temporary, value)
        try:
            os.link(temporary, path)  # unlike a renaming, never over an existing file
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            return _copied(Path(temporary), path)
    finally:
        os.unlink(temporary)
    sync_folder(path.parent)
    return True


def _copied(source: Path, path: Path) -> bool:
    """Copies into a file that is not there yet; a kill in between leaves a part of it, which the next start names."""
    try:
        with open(path, "xb") as file:
            file.write(source.read_bytes())
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    sync_folder(path.parent)
    return True


@contextlib.contextmanager
def locked(workdir: Path, file: str = ".lock") -> Iterator[None]:
    """Keeps a second run out of a folder; the kernel unlocks it however this process ends.

    Args:
      workdir: an existing folder.
      file: path of the lock in it.

    Raises:
      ValueError: another run holds the lock.
    """
    with open(workdir / file, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"workdir {workdir} is in use by another run") from None
        yield


def _differences(name: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Leaves at which two JSON values differ, with their dotted names."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(f"{name}.{key}", old.get(key), new.get(key))
    elif old != new:
        yield name, old, new
