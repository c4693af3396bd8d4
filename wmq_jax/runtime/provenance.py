"""Where results come from: versions, revision, device and flags, written beside every result."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import wmq_jax

_VECTORS = ("avx512f", "avx2", "avx")  # widest first
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def versions() -> dict[str, str]:
    """Versions of this package, of what it computes with, and of Python."""
    found = {name: metadata.version(name) for name in PACKAGES}
    return {"wmq_jax": wmq_jax.__version__, **found, "python": platform.python_version()}


def git_revision() -> str | None:
    """The revision of the checkout this package is in, ``-dirty`` if it was edited; None outside a checkout."""
    root = Path(wmq_jax.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    run = lambda *args: subprocess.run(
        ["git", *args], cwd=root, capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        return run("rev-parse", "HEAD") + ("-dirty" if run("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def device(count: int) -> dict[str, Any]:
    """Platform, kind and number of the devices computed on; of a CPU the kind is ``processor()``."""
    first = jax.local_devices()[0]
    kind = processor() if first.platform == "cpu" else first.device_kind  # JAX calls every CPU 'cpu'
    return {"platform": first.platform, "kind": kind, "count": count}


def processor() -> str:
    """The processor's own name, where the system tells it, and its widest vectors, which XLA compiles for."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    vectors = [flag for flag in _VECTORS if flag in told.get("flags", "").split()]
    return ", ".join([told.get("model name", platform.machine()), *vectors[:1]])


def record(count: int) -> dict[str, Any]:
    """What results of ``count`` devices depend on beside their config: versions, revision, device, flags, precision."""
    return {
        "versions": versions(),
        "git_revision": git_revision(),
        "device": device(count),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "matmul_precision": jax.config.jax_default_matmul_precision,
    }
