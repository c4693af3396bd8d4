"""How long the reader of torch files takes for a checkpoint of the official size, and how much memory.

The file has the names and shapes of the published Wall run with its encoder inside, and beside them the two moments
that AdamW keeps of the predictor, as plain tensors: all of it is loaded, 369 MB. Every measurement is of a process of
its own that reads it once, from the operating system's cache.
"""

from __future__ import annotations

import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.benchmarks.common import in_a_process, peak_bytes


def sections(config: Mapping[str, Any]) -> dict[str, Callable[[], dict[str, float]]]:
    """What is measured, by title.

    Raises:
      ValueError: there is no such size.
    """
    from experiments.benchmarks.methods import model_config

    model_config(config["size"])
    return {"a checkpoint into numpy": functools.partial(reading, config["size"], config["repeats"])}


def reading(size: str, repeats: int) -> dict[str, float]:
    """Median seconds and largest memory of the reader, and of the checksum of the whole file, which is optional."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model_latest.pth"
        in_a_process(write_checkpoint, path, size)
        found = [in_a_process(measure, path) for _ in range(repeats)]
        file_size = path.stat().st_size
    peak = max(one["peak"] for one in found)
    median = lambda name: statistics.median(one[name] for one in found)
    return {
        "file MB": file_size / 1e6,
        "tensors": found[0]["tensors"],
        "seconds": median("seconds"),
        "seconds of SHA-256": median("digest"),
        "memory before, MB": median("before") / 1e6,
        "peak memory, MB": peak / 1e6,
        "peak memory over file size": peak / file_size,
    }


def measure(path: os.PathLike) -> dict[str, float]:
    """Reads the file once; the peak is that of the whole process, with Python and numpy."""
    from wmq_jax.io import load_torch, sha256_of

    before, began = peak_bytes(), time.perf_counter()
    content = load_torch(path)
    seconds, peak = time.perf_counter() - began, peak_bytes()
    began = time.perf_counter()
    sha256_of(path)
    digest = time.perf_counter() - began
    tensors = [array for state in content.values() if isinstance(state, dict) for array in state.values()]
    assert sum(array.nbytes for array in tensors) > 0.99 * os.path.getsize(path) - 1e6
    return {"seconds": seconds, "digest": digest, "before": before, "peak": peak, "tensors": len(tensors)}


def write_checkpoint(path: os.PathLike, size: str) -> None:
    """Writes a checkpoint of normal numbers under the official names, by module."""
    import numpy as np

    from experiments.benchmarks.methods import model_config
    from wmq_jax.checkpoints.official import parameter_shapes, weights
    from wmq_jax.io import save_torch
    from wmq_jax.models import DecoderConfig

    config = model_config(size).replace(decoder=DecoderConfig() if size == "official" else None)
    shapes, random = parameter_shapes(config), np.random.default_rng(0)
    content: dict[str, Any] = {"epoch": 100}
    for weight in weights(config):
        module, name = weight.name.split(".", 1)
        shape = weight.layout.theirs(np.broadcast_to(np.float32(0), shapes[weight.path])).shape
        content.setdefault(module, {})[name] = random.standard_normal(shape, np.float32)
    for moment in ("exp_avg", "exp_avg_sq"):
        content[moment] = {name: 0.01 * array for name, array in content["predictor"].items()}
    save_torch(path, content)
