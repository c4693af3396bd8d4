"""Calibration: run a function over batches and keep statistics of what passes its sites.

Statistics are a pytree, site path -> ``{'input': statistic}`` and block path -> ``{'block': sequences}``; they save,
load, merge across batches and hosts, and mirror the tree of quantizers that is made from them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wmq_jax.quant import paths
from wmq_jax.quant.statistics import KINDS, Sequences, is_statistic

PyTree = Any

# Last name of a statistic: of a site's input, of a block's input.
INPUT = "input"
BLOCK = "block"

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
      batches: tuples or lists of arguments.
      statistics: continue from these.

    Raises:
      TypeError: a batch is neither a tuple nor a list.
      ValueError: there is no batch.
    """
    update = jax.jit(observe)
    empty = True
    for batch in batches:
        if not isinstance(batch, (tuple, list)):
            raise TypeError(
                f"a batch is a tuple of the model's arguments, (x,) for a single one, not a {type(batch).__name__}"
            )
        if statistics is None:
            shapes = jax.eval_shape(observe, variables, None, *batch)
            statistics = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        statistics = update(variables, statistics, *batch)
        empty = False
    if empty:
        raise ValueError("calibration got no batches; it needs at least one")
    return statistics


def merge_statistics(*parts: PyTree) -> PyTree:
    """Statistics of several streams (other batches, other hosts) as one.

    Raises:
      TypeError: there are none.
    """
    if not parts:
        raise TypeError("merge_statistics takes the statistics of one or more streams, got none")
    merge = functools.partial(jax.tree.map, lambda a, b: a.merge(b), is_leaf=is_statistic)
    return functools.reduce(merge, parts)


def params_of(variables: PyTree) -> PyTree:
    """``variables['params']``.

    Raises:
      ValueError: there are none; the usual mistake is to pass the parameters themselves.
    """
    if not isinstance(variables, Mapping) or "params" not in variables:
        found = f"keys {', '.join(map(str, variables))}" if isinstance(variables, Mapping) else type(variables).__name__
        raise ValueError(f"variables are {{'params': parameters}}, but these have no 'params': {found}")
    return variables["params"]


def site_statistics(statistics: PyTree) -> dict[str, Any]:
    """Site name -> statistic of its input."""
    return _ending_in(INPUT, statistics)


def block_statistics(statistics: PyTree) -> dict[str, Sequences]:
    """Block name -> sample of its inputs."""
    return _ending_in(BLOCK, statistics)


def statistics_to_arrays(statistics: PyTree) -> dict[str, np.ndarray]:
    """Statistics as named arrays, for ``np.savez`` or any other store; ``statistics_from_arrays`` is the inverse."""
    named = paths.named_leaves(statistics, is_leaf=is_statistic)
    return {
        f"{name}:{type(statistic).__name__}/{field}": np.asarray(value)
        for name, statistic in named.items()
        for field, value in statistic._asdict().items()
    }


def statistics_from_arrays(arrays: Mapping[str, np.ndarray]) -> PyTree:
    """The statistics that ``statistics_to_arrays`` took apart.

    Raises:
      ValueError: a name is none that it gives, or a statistic lacks a field.
    """
    fields: dict[str, dict[str, np.ndarray]] = {}
    for key in arrays:
        statistic, _, field = key.rpartition("/")
        fields.setdefault(statistic, {})[field] = arrays[key]
    named = {}
    for key, values in fields.items():
        name, _, kind = key.rpartition(":")
        if kind not in KINDS or set(values) != set(KINDS[kind]._fields):
            raise ValueError(
                f"'{key}' with {', '.join(sorted(values))} is no statistic; the kinds are {', '.join(KINDS)}"
            )
        named[name] = KINDS[kind](**values)
    return paths.nest(named)


def check_statistics(named: dict[str, Any]) -> None:
    """Checks on the host that every site was seen and saw finite values only; tracers pass, see ``check_finite``.

    Raises:
      ValueError: naming the first site at fault.
    """
    for site, statistic in named.items():
        if paths.is_known(statistic.count) and not np.asarray(statistic.count).all():
            raise ValueError(f"site '{site}' was never called during calibration")
        arrays = {f"{site}/{field}": value for field, value in statistic._asdict().items()}
        paths.check_finite("calibration statistic", arrays)


def _ending_in(last: str, statistics: PyTree) -> dict[str, Any]:
    named = paths.named_leaves(statistics, is_leaf=is_statistic)
    split = {name.rpartition("/")[::2]: leaf for name, leaf in named.items()}
    return {owner: leaf for (owner, name), leaf in split.items() if name == last}
