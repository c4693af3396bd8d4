"""SHA-256 of whole files, read in pieces."""

import hashlib
import os


def sha256_of(path: str | os.PathLike) -> str:
    """The SHA-256 of the file `path` as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
