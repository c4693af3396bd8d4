"""Safetensors files as numpy arrays; needs the `safetensors` package (the extra of that name)."""

import os
from pathlib import Path

import numpy as np

from wmq_jax.io.wording import plain


def load_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads all tensors of a file.

    Args:
      path: the file.

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
    try:
        return load_file(path)
    except (SafetensorError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: it is no safetensors file, cut short or damaged ({plain(error)})") from None
