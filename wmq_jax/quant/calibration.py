"""Calibration: run a function over batches and keep statistics of what passes its sites.

Statistics are a pytree, site path -> ``{'input': statistic}``; they save, load, merge across batches
and hosts, and mirror the tree of quantizers that is made from them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wmq_jax.quant import paths
from wmq_jax.quant.observers import Observer, is_statistic

PyTree = Any

# (variables, statistics or None, *batch) -> statistics
Observe = Callable[..., PyTree]


def calibrate(
    observe: Observe, variables: PyTree, batches: Iterable[tuple], statistics: PyTree | None = None
) -> PyTree:
    """Statistics of every site over all batches.

    Args:
      observe: pure function ``(variables, statistics, *batch) -> statistics`` that updates
        ``statistics`` (None: nothing seen yet) with one batch; ``linen.observe`` makes one of a
        Flax model. It is compiled once for each shape of a batch.
      variables: the model's variables, not quantized.
      batches: tuples of arguments.
      statistics: continue from these.

    Raises:
      ValueError: there is no batch.
    """
    update = jax.jit(observe)
    empty = True
    for batch in batches:
        if statistics is None:
            shapes = jax.eval_shape(observe, variables, None, *batch)
            statistics = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        statistics = update(variables, statistics, *batch)
        empty = False
    if empty:
        raise ValueError("calibration got no batches; it needs at least one")
    return statistics


def merge_statistics(observer: Observer, *parts: PyTree) -> PyTree:
    """Statistics of several streams (other batches, other hosts) as one."""
    merge = functools.partial(jax.tree.map, observer.merge, is_leaf=is_statistic)
    return functools.reduce(merge, parts)


def site_statistics(statistics: PyTree) -> dict[str, Any]:
    """Site name -> statistic of its input."""
    named = paths.named_leaves(statistics, is_leaf=is_statistic)
    return {name.rpartition("/")[0]: leaf for name, leaf in named.items()}


def check_statistics(named: dict[str, Any]) -> None:
    """Checks on the host that every site was seen and saw finite values only.

    Raises:
      ValueError: naming the first site at fault.
    """
    for site, statistic in named.items():
        if not np.asarray(statistic.count).all():
            raise ValueError(f"site '{site}' was never called during calibration")
        arrays = {f"{site}/{field}": value for field, value in statistic._asdict().items()}
        paths.check_finite("calibration statistic", arrays)
