"""What several benchmarks need: medians, fresh processes and their memory, weights of a model that is only timed."""

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module returns, in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_bytes() -> int:
    """The largest memory of this process so far."""
    # Linux's own count starts with the program; getrusage's has that of the process which started it, too.
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def medians(repeats: int, calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of each call, repeated in turn; the first round compiles and is not counted."""
    import jax

    seconds = {name: [] for name in calls}
    for round_ in range(repeats + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            if round_:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def random_params(model) -> dict[str, Any]:
    """Weights of a model that is only timed; norms scale by 1, so that nothing vanishes."""
    import jax
    import numpy as np

    from wmq_jax.checkpoints.native import abstract_params

    random = np.random.RandomState(0)

    def draw(path, leaf):
        norm = path[-1].key in ("scale", "std")
        return np.float32(norm) + 0.02 * random.randn(*leaf.shape).astype(np.float32)

    shapes = {name: part for name, part in abstract_params(model).items() if name != "decoder"}
    return jax.tree_util.tree_map_with_path(draw, shapes)
