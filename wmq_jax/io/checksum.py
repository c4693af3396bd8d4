"""SHA-256 of whole files, read in pieces."""

import hashlib
import os


def sha256_of(path: str | os.PathLike) -> str:
    """The SHA-256 of the file `path` as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: str | os.PathLike, expected: str) -> None:
    """Checks the SHA-256 of a whole file.

    Raises:
      ValueError: it is another one.
      OSError: the file cannot be read.
    """
    found = sha256_of(path)
    if found != expected.lower():
        raise ValueError(f"{path}: its SHA-256 is {found}, not {expected}; the file is damaged or another one")
