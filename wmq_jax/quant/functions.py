"""Activation quantization and calibration of hand-written functions, whose sites are taps (see ``quant.tap``).

    def mlp(params, x):
        h = jax.nn.gelu(quant.tap(x, "fc1") @ params["fc1"]["kernel"])
        return quant.tap(h, "fc2") @ params["fc2"]["kernel"]

The same two functions as ``quant.linen`` has for Flax Linen; ``quant.nnx`` makes such a function of an NNX model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp

from wmq_jax.quant import calibration, paths
from wmq_jax.quant.activations import kernel_sites
from wmq_jax.quant.grid import Rounding
from wmq_jax.quant.observers import Observer, default_observers
from wmq_jax.quant.quantizer import Quantizer, fake_quant_at, is_quantizer
from wmq_jax.quant.taps import thread

PyTree = Any


def quantized_apply(function: Callable[..., PyTree], rounding: Rounding = jnp.round) -> Callable[..., PyTree]:
    """``apply(variables, *args, **kwargs)``: ``function`` with the quantizers of ``variables['quant']`` at its taps.

    A function may be a part of a model: quantizers of kernels among the parameters that it does not come by wait.

    Args:
      function: ``(params, *args, **kwargs) -> anything``, pure.
      rounding: ``straight_through_round`` where gradients are wanted.

    Raises (``apply``):
      ValueError: a quantizer's site is neither a tap of the function nor the owner of a kernel, or has other quantizers
        than iterations of its scan; it is named. Or ``variables`` have no 'params'.
    """

    def quantize(name: str, quantizer: Quantizer | None, x):
        if quantizer is None:
            return x, None
        return fake_quant_at(name, x, quantizer, rounding), quantizer

    run = thread(function, quantize, waits=lambda name, params, *_: name in kernel_sites(params))

    def apply(variables, *args, **kwargs):
        named = paths.named_leaves(variables.get("quant", {}), is_leaf=is_quantizer)
        quantizers = {name.rpartition("/")[0]: quantizer for name, quantizer in named.items()}
        return run(quantizers, calibration.params_of(variables), *args, **kwargs)[0]

    return apply


def observe(
    function: Callable[..., PyTree],
    observer: Observer | None = None,
    blocks: Iterable[str] = (),
    block_observer: Observer | None = None,
    shared: Iterable[str] = (),
) -> Callable[..., PyTree]:
    """An ``observe`` function for ``calibrate``: one call of ``function`` on one batch.

    Args:
      function: ``(params, *batch) -> anything``, pure; ``calibrate`` gets ``{'params': params}``.
      observer: what to keep of sites (default: ``minmax()``, beside ``blocks`` ``channel_ranges()``, which can follow
        the re-scalings of methods that look at blocks).
      blocks: taps whose values, inputs of blocks, are sampled whole; they are no sites.
      block_observer: how (default: ``sequences(32)``).
      shared: regular expressions over names of taps (whole ones) that have one statistic for all iterations of a scan
        or ``lax.map`` around them, and so one quantizer: steps of time, elements of a batch. Others have one each, as
        stacked layers need.

    Raises (when called):
      ValueError: the function has no taps, or not those of ``blocks``; or the variables have no 'params'.
    """
    blocks = frozenset(blocks)
    observer, block_observer = default_observers(observer, block_observer, blocks)

    def record(name: str, seen, x):
        chosen = block_observer if name in blocks else observer
        return x, calibration.updated(chosen, seen, x, name)

    run = thread(function, record, shared)

    def update(variables, statistics, *batch):
        seen = {} if statistics is None else statistics
        states = calibration.site_statistics(seen) | calibration.block_statistics(seen)
        _, states = run(states, calibration.params_of(variables), *batch)
        missing = sorted(blocks - set(states))
        if missing or not states:
            wanted = f"'{missing[0]}'" if missing else "at all"
            raise ValueError(f"the function has no tap {wanted}; calibration sees what passes quant.tap(x, name)")
        last = lambda name: calibration.BLOCK if name in blocks else calibration.INPUT
        return paths.nest({paths.join(name, last(name)): state for name, state in states.items()})

    return update
