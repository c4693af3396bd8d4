"""A `jax.jit` for programs that a test runs once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def quick_jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` with less optimisation: compiles in half the time; results differ in rounding only."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})
