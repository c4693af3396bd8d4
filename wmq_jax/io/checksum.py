"""SHA-256 of whole files, read in pieces."""

import hashlib
import os
from typing import BinaryIO


def sha256_of(path: str | os.PathLike) -> str:
    """The SHA-256 of the file `path` as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(file: BinaryIO, expected: str, name: str) -> None:
    """Checks the SHA-256 of a whole open file, which can seek; `name` is what the message calls it.

    Raises:
      ValueError: it is another one.
    """
    file.seek(0)
    found = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    if found != expected.lower():
        raise ValueError(f"{name}: its SHA-256 is {found}, not {expected}; the file is damaged or another one")
