"""Settings of a process that make what it computes independent of how many devices and cores it has."""

import math
import os

import jax

from wmq_jax.runtime.container import quota_cores

# One ulp flips a rounding and a rounding flips an elite, so a sum must not be split differently when more threads are
# free, nor a kernel be chosen by how long it happened to take.
DETERMINISTIC_FLAGS = ("--xla_cpu_multi_thread_eigen=false", "--xla_gpu_deterministic_ops=true")
FULL_PRECISION = "highest"


def configure(devices: int = 0, distributed: bool = False) -> None:
    """Settings of this process that must precede the first use of JAX.

    The CPU counts as ``devices`` JAX devices (0: one per core), but not as more than it has cores. CPU and GPU compute
    with deterministic kernels; flags that the caller has set in ``XLA_FLAGS`` are kept. Matrix products are of full
    float32 on a GPU or TPU, too, unless ``JAX_DEFAULT_MATMUL_PRECISION`` says otherwise.
    Whether there are that many devices, :func:`wmq_jax.sweep.mesh.cell_mesh` tells, which sees what they are.

    Args:
      devices: as above.
      distributed: join the other processes of a pod, as ``jax.distributed.initialize`` finds them.

    Raises:
      ValueError: ``devices`` is negative.
    """
    if devices < 0:
        raise ValueError(f"engine.devices must be 0 or more, not {devices}")
    cores = available_cores()
    flags = os.environ.get("XLA_FLAGS", "")
    added = [flag for flag in DETERMINISTIC_FLAGS if flag.partition("=")[0] not in flags]
    os.environ["XLA_FLAGS"] = " ".join([flags, *added]).strip()
    jax.config.update("jax_num_cpu_devices", min(devices or cores, cores))
    if jax.config.jax_default_matmul_precision is None:
        # JAX's own default is TF32 on recent GPUs and bfloat16 on TPUs: no full precision to compare eight bits with.
        jax.config.update("jax_default_matmul_precision", FULL_PRECISION)
    if distributed:
        jax.distributed.initialize()


def available_cores() -> int:
    """Cores that this process may use: those it may run on, and no more than its container's share of time is worth."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, quota_cores())))


def use_compilation_cache(folder: str | os.PathLike) -> None:
    """Keeps compiled programs in ``folder``, so that a resumed sweep starts at once; results are the same.

    A cache that ``JAX_COMPILATION_CACHE_DIR`` names is used instead.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", os.fspath(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
