"""A read-only folder on disk or inside a zip file, as data sets and models are published.

A path may lead into a zip file (`outputs.zip/wall_single`); only the files that are asked for are taken out of it.
"""

import contextlib
import dataclasses
import functools
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from wmq_jax.io.wording import listed, plain

# A damaged directory makes zipfile seek to places that there are not (OSError), among others.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)

# What a file may expand to, in bytes or times its compressed size, whichever is more. Weights compress to a half at
# best, states padded with zeros to a fifth; a few white frames, which compress a hundredfold, are small. So an archive
# can fill no more of a disk than a small multiple of itself, where deflate alone would give it a thousand times.
_FREE_BYTES, _MOST_EXPANDED = 64 << 20, 20
# As they are published. Other methods state in the file how much memory their decoder takes.
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclasses.dataclass(frozen=True)
class Place:
    """An existing folder.

    Attributes:
      path: what the user calls it.
      root: the folder, or the zip file that it is in.
      prefix: its path inside the zip file, with a slash at the end unless it is empty; None on disk.
      names: paths of all files of a folder in a zip file, relative to it.
    """

    path: str
    root: Path
    prefix: str | None = None
    names: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The folder's own name."""
        return PurePosixPath(self.prefix or self.path).name

    def has(self, name: str) -> bool:
        """Whether there is a file of this relative path."""
        return (self.root / name).is_file() if self.prefix is None else name in self.names

    def files(self, folder: str) -> list[str]:
        """Names of the files directly in a sub-folder, sorted."""
        if self.prefix is None:
            return sorted(file.name for file in (self.root / folder).glob("*") if file.is_file())
        paths = map(PurePosixPath, self.names)
        return sorted(path.name for path in paths if path.parent == PurePosixPath(folder))

    def sub(self, folder: str) -> "Place":
        """A sub-folder."""
        if self.prefix is None:
            return Place(f"{self.path}/{folder}", self.root / folder)
        start = f"{folder}/"
        names = frozenset(name.removeprefix(start) for name in self.names if name.startswith(start))
        return Place(f"{self.path}/{folder}", self.root, f"{self.prefix}{start}", names)

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Opens a file that can seek; one inside a zip file is copied to a temporary file first.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: the zip file is damaged there, or would expand it beyond what such files expand to.
        """
        if not self.has(name):
            raise FileNotFoundError(f"there is no file {self.path}/{name}")
        if self.prefix is None:
            with open(self.root / name, "rb") as file:
                yield file
            return
        with tempfile.TemporaryFile() as copy:
            try:
                archive = _archive(self.root)
                with archive.open(self._member(archive, name)) as member:
                    shutil.copyfileobj(member, copy, 1 << 20)
            except ZIP_ERRORS as error:
                raise ValueError(f"{self.path}/{name} cannot be read from its zip file: {plain(error)}") from None
            copy.seek(0)
            yield copy

    def _member(self, archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
        """A file in the zip file, refused if it declares more bytes than such files have; more are never read."""
        info = archive.getinfo(self.prefix + name)
        if info.compress_type not in METHODS:
            raise ValueError("it is neither stored nor deflated")
        # The compressed size is what the archive states, too.
        check_expansion(min(info.compress_size, self.root.stat().st_size), info.file_size)
        return info


def _archive(path: Path) -> zipfile.ZipFile:
    """A zip file, whose directory is read once: a data set's has tens of thousands of episodes in it.

    Raises:
      One of `ZIP_ERRORS`: it cannot be read.
    """
    status = path.stat()
    return _opened(path.absolute(), os.getpid(), (status.st_ino, status.st_size, status.st_mtime_ns))


@functools.lru_cache(maxsize=4)
def _opened(path: Path, process: int, version: tuple[int, ...]) -> zipfile.ZipFile:
    """The zip file as this process opened it: one that was forked shares its position, and one may be replaced."""
    del process, version
    return zipfile.ZipFile(path)


def check_expansion(packed: int, expanded: int) -> None:
    """Refuses packed bytes that state a size beyond what weights, frames or statistics expand to.

    Raises:
      ValueError: the message says both sizes.
    """
    if expanded > max(_FREE_BYTES, _MOST_EXPANDED * packed):
        raise ValueError(f"its {packed} bytes would expand to {expanded}, which no weights or frames do")


def archive_of(path: str | os.PathLike) -> Path | None:
    """The file that a path is or leads into; None on disk."""
    path = Path(path)
    return next((p for p in (path, *path.parents) if p.is_file()), None)


def open_place(path: str | os.PathLike, markers: Sequence[str], what: str) -> Place:
    """Finds a folder that holds one of the files `markers`, on disk or in a zip file.

    Args:
      path: the folder, or the zip file or folder that it is in if only one there fits. Inside a zip file the end of the
        path decides, since archives differ in what lies above.
      markers: relative paths, of which one tells that this is the folder.
      what: what messages call it.

    Raises:
      FileNotFoundError: there is none; the message lists those that are there.
      ValueError: the zip file cannot be read.
    """
    text = str(path).rstrip("/") or "/"
    folder = Path(text)
    if any((folder / marker).is_file() for marker in markers):
        return Place(text, folder)
    archive = archive_of(folder)
    if archive is not None:
        return _open_in_zip(text, archive, folder.relative_to(archive).as_posix(), markers, what)
    above = next(p for p in (folder, *folder.parents) if p.is_dir())
    there = {child.name for child in above.iterdir() if any((child / marker).is_file() for marker in markers)}
    if above == folder and len(there) == 1:
        (name,) = there
        return Place(f"{text}/{name}", folder / name)
    if above != folder:
        missing = above / folder.relative_to(above).parts[0]
        beside = f"; {'this folder' if above == Path('.') else above} has {listed(sorted(there))}" if there else ""
        raise FileNotFoundError(f"there is no {what} {text}: {missing} does not exist{beside}")
    raise FileNotFoundError(_not_there(text, above, there, markers, what))


def _open_in_zip(text: str, archive: Path, inside: str, markers: Sequence[str], what: str) -> Place:
    try:
        names = [info.filename for info in _archive(archive).infolist() if not info.is_dir()]
    except PermissionError as error:
        raise ValueError(f"{archive} cannot be read: {error.strerror}") from None
    except ZIP_ERRORS as error:
        raise ValueError(f"{archive} is no zip file, or cut short or damaged ({plain(error)})") from None
    found = {name.removesuffix(marker) for name in names for marker in markers if f"/{name}".endswith(f"/{marker}")}
    # A folder of which a part looks like the whole, such as train/ of a data set, counts once.
    whole = {prefix for prefix in found if not any(prefix != other and prefix.startswith(other) for other in found)}
    fits = whole if inside == "." else {p for p in found if f"/{p}".endswith(f"/{inside}/")}
    if len(fits) != 1:
        there = {prefix.rstrip("/").split("/")[-1] for prefix in whole}
        raise FileNotFoundError(_not_there(text, archive, there, markers, what))
    (prefix,) = fits
    return Place(text, archive, prefix, frozenset(n.removeprefix(prefix) for n in names if n.startswith(prefix)))


def _not_there(text: str, above: Path, there: set[str], markers: Sequence[str], what: str) -> str:
    found = f"{above} has {listed(sorted(there)) or 'none'}"
    return f"there is no {what} {text} (a folder with {' or '.join(markers)}); {found}"
