"""Compiling quickly what a test runs once: results differ from those of full optimisation in rounding only."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax


def quick_jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` with less optimisation: compiles in half the time."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@contextlib.contextmanager
def compilation(quick: bool) -> Iterator[None]:
    """Within it, everything is compiled with less optimisation or as users do, functions that the library jits too."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", quick)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
