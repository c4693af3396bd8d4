"""Compiling quickly what a test runs once: results differ from those of full optimisation in rounding only."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
from jax._src import compiler

# With little optimisation, the older of the two code generators of jaxlib 0.10 takes two thirds of the time. No other
# release knows the flag, and XLA ends a process for a flag that it does not know.
_OLDER_EMITTERS = ("xla_cpu_use_fusion_emitters", False)
_CHOICE_OF_EMITTERS = jax.__version_info__[:2] == (0, 10)
# For processes that a test starts.
ENVIRONMENT = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
if _CHOICE_OF_EMITTERS:
    ENVIRONMENT["XLA_FLAGS"] = f"--{_OLDER_EMITTERS[0]}=false"


def quick_jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` with less optimisation: compiles in half the time."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@contextlib.contextmanager
def compilation(quick: bool, older_emitters: bool = True) -> Iterator[None]:
    """Within it, everything is compiled with less optimisation or as users do, functions that the library jits too."""
    with contextlib.ExitStack() as stack:
        if quick and older_emitters and _CHOICE_OF_EMITTERS:
            # Options of single calls of `jax.jit` are public; for all of a process there is `XLA_FLAGS`, read once.
            stack.enter_context(mock.patch.object(compiler, "get_compile_options", _with_older_emitters))
        before = jax.config.read("jax_disable_most_optimizations")
        jax.config.update("jax_disable_most_optimizations", quick)
        stack.callback(jax.config.update, "jax_disable_most_optimizations", before)
        yield


def _with_older_emitters(*args: Any, **kwargs: Any) -> Any:
    options = _get_compile_options(*args, **kwargs)
    options.env_option_overrides = [*options.env_option_overrides, _OLDER_EMITTERS]
    return options


_get_compile_options = compiler.get_compile_options
