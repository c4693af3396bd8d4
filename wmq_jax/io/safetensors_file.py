"""Safetensors files as numpy arrays; needs the `safetensors` package (the extra of that name)."""

import os
from pathlib import Path

import numpy as np

from wmq_jax.io.checksum import check_sha256


def load_safetensors(path: str | os.PathLike, sha256: str | None = None) -> dict[str, np.ndarray]:
    """Reads all tensors of a file.

    Args:
      path: the file.
      sha256: what the SHA-256 of the whole file must be; None does not check it.

    Returns:
      Name -> array; bfloat16 is ml_dtypes'.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no safetensors file, cut or damaged, or the package is not installed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError:
        raise ValueError(f"{path}: reading it needs the safetensors package: pip install safetensors") from None
    if sha256 is not None:
        with open(path, "rb") as file:
            check_sha256(file, sha256, str(path))
    try:
        return load_file(path)
    except (SafetensorError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: it is no safetensors file, cut short or damaged ({error})") from None
