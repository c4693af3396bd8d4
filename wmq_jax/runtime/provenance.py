"""Where results come from: versions, revision, device and flags, written beside every result."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import wmq_jax

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
    """Platform, kind and number of the devices computed on."""
    first = jax.local_devices()[0]
    return {"platform": first.platform, "kind": first.device_kind, "count": count}


def record(count: int) -> dict[str, Any]:
    """What results of ``count`` devices depend on beside their config: versions, revision, device, flags, precision."""
    return {
        "versions": versions(),
        "git_revision": git_revision(),
        "device": device(count),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "matmul_precision": jax.config.jax_default_matmul_precision,
    }
