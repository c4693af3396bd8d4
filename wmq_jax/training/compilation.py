"""How the predictor's training step is compiled."""

import functools
from collections.abc import Callable
from typing import Any

import jax

# XLA's CPU backend gives fusions of matrix products to YNNPACK, with which the step takes 1.4 times as long.
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}


def jit_step(function: Callable[..., Any]) -> Callable[..., Any]:
    """``jax.jit``; on a CPU with the options that are fastest for many small matrix products and their gradients."""
    return jax.jit(function, compiler_options=_known_options())


@functools.cache
def _known_options() -> dict[str, str]:
    """The options above; none on other platforms, or where this version of XLA has no such option."""
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda x: x, compiler_options=_CPU_OPTIONS).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return _CPU_OPTIONS
