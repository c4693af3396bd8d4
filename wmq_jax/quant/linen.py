"""Activation quantization and calibration of any Flax Linen model, without editing it.

The input of every Dense, DenseGeneral, Einsum and convolution is intercepted. Several last axes that a DenseGeneral
contracts (the heads of an output projection) are one: its channels. The quantizer lives in the collection 'quant' at
the module's own path, as variable 'input'; statistics live in 'stats', those of a block's input as variable 'block'.
Collections, not names, keep layers apart, so a scanned stack works too: with
``nn.scan(..., variable_axes={'params': 0, 'quant': 0})`` every layer has its own quantizer.

The context must be entered *inside* the function that is jitted: a function compiled before
ignores it, and one compiled within it keeps it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from wmq_jax.quant.calibration import BLOCK, INPUT
from wmq_jax.quant.grid import Rounding
from wmq_jax.quant.observers import Observer, minmax, sequences
from wmq_jax.quant.quantizer import fake_quant
from wmq_jax.quant.taps import tap, with_channels

QUANT = "quant"
STATS = "stats"
INTERCEPTED = (nn.Dense, nn.DenseGeneral, nn.Einsum, nn.Conv, nn.ConvLocal, nn.ConvTranspose)


@contextlib.contextmanager
def quantize_inputs(rounding: Rounding = jnp.round) -> Iterator[None]:
    """Within it, every intercepted module with a quantizer gets its input fake-quantized.

    Args:
      rounding: ``straight_through_round`` where gradients are wanted.
    """

    def quantize(module: nn.Module, x):
        if not module.has_variable(QUANT, INPUT):
            return x
        return fake_quant(x, module.get_variable(QUANT, INPUT), rounding)

    with nn.intercept_methods(_on_input(quantize)):
        yield


@contextlib.contextmanager
def observe_inputs(observer: Observer) -> Iterator[None]:
    """Within it, 'stats' gathers the statistics of every intercepted input.

    'stats' must be mutable in the ``apply`` that runs inside; an ``apply`` in which it is not
    gathers nothing.
    """

    def record(module: nn.Module, x):
        _update(module, INPUT, observer, x)
        return x

    with nn.intercept_methods(_on_input(record)):
        yield


@contextlib.contextmanager
def observe_blocks(observer: Observer, blocks: Iterable[str]) -> Iterator[None]:
    """Within it, 'stats' gathers the first argument of the calls of the modules at these paths ('encoder/blocks_0')."""
    chosen = frozenset(tuple(block.split("/")) for block in blocks)

    def intercept(next_function, args, kwargs, context):
        if context.module.path in chosen and context.method_name == "__call__":
            _update(context.module, BLOCK, observer, args[0])
        return next_function(*args, **kwargs)

    with nn.intercept_methods(intercept):
        yield


def quantized_apply(model: nn.Module, rounding: Rounding = jnp.round) -> Callable[..., Any]:
    """``model.apply`` that honours the quantizers in ``variables['quant']``; see ``quantize_inputs``."""

    def apply(variables, *args, **kwargs):
        with quantize_inputs(rounding):
            return model.apply(variables, *args, **kwargs)

    return apply


def observe(
    model: nn.Module,
    method: str | None = None,
    observer: Observer | None = None,
    blocks: Iterable[str] = (),
    block_observer: Observer | None = None,
) -> Callable[..., Any]:
    """An ``observe`` function for ``calibrate``: one call of ``model`` on one batch.

    Args:
      model: the model; ``variables`` are those of its ``apply``.
      method: the method that batches are arguments of (None: ``__call__``).
      observer: what to keep of sites (default: ``minmax()``).
      blocks: paths of the modules whose inputs are sampled whole.
      block_observer: how (default: ``sequences(32)``).
    """
    observer = minmax() if observer is None else observer
    block_observer = sequences(32) if block_observer is None else block_observer

    def update(variables, statistics, *batch):
        if statistics is not None:
            variables = {**variables, STATS: statistics}
        with observe_inputs(observer), observe_blocks(block_observer, blocks):
            _, updated = model.apply(variables, *batch, method=method, mutable=[STATS])
        if STATS not in updated:
            raise ValueError("the model calls no Dense, DenseGeneral, Einsum, Conv or named block: nothing to observe")
        return updated[STATS]

    return update


@dataclasses.dataclass(frozen=True)
class ModuleApply:
    """A Flax module as the function of a block or a part: see ``quant.topology.BlockApply``.

    Attributes:
      module: the block, unbound. Equal modules are equal functions.
      output: which element of a tuple it returns is the block's output; None if it returns an array.
    """

    module: nn.Module
    output: int | None = None

    def __call__(self, params: Any, x: Any) -> Any:
        """The module's output; every intercepted module's input is a tap of its path."""
        with nn.intercept_methods(_on_input(lambda module, x: tap(x, "/".join(module.path)))):
            out = self.module.apply({"params": params}, x)
        return out if self.output is None else out[self.output]


def _update(module: nn.Module, name: str, observer: Observer, x: Any) -> None:
    """Shows ``x`` to the statistic ``name`` of ``module``."""
    if module.is_mutable_collection(STATS):
        seen = module.get_variable(STATS, name) if module.has_variable(STATS, name) else observer.empty(x)
        module.put_variable(STATS, name, observer.update(seen, x))


def _on_input(function: Callable[[nn.Module, Any], Any]) -> Callable[..., Any]:
    """An interceptor that puts ``function(module, x)`` in place of the input of a call.

    Several last axes that a DenseGeneral contracts are one in ``x``: its channels.
    """

    def intercept(next_function, args, kwargs, context):
        if isinstance(context.module, INTERCEPTED) and context.method_name == "__call__":
            module = context.module
            axis = module.axis if isinstance(module, nn.DenseGeneral) else -1
            change = with_channels(lambda x: function(module, x), axis)
            if args:
                args = (change(args[0]), *args[1:])
            else:
                kwargs = {**kwargs, "inputs": change(kwargs["inputs"])}
        return next_function(*args, **kwargs)

    return intercept
