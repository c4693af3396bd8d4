"""Calibration: run a function over batches and keep statistics of what passes its sites.

Statistics are a pytree, site path -> ``{'input': statistic}`` and block path -> ``{'block-input': sequences}``; they
save, load, merge across batches and hosts, and mirror the tree of quantizers that is made from them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wmq_jax.quant import paths
from wmq_jax.quant.observers import Observer
from wmq_jax.quant.statistics import KINDS, ChannelRange, Sequences, is_statistic

PyTree = Any

# Last name of a statistic: of a site's input, of a block's input.
INPUT = "input"
BLOCK = "block-input"  # which no attribute can be called, as a module inside a block can be called "block"

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
      ValueError: there is no batch, one has an empty array, or ``statistics`` are of another observer.
    """
    update = jax.jit(observe)
    empty, given = True, statistics
    for batch in batches:
        _check_batch(batch)
        if empty:
            shapes = jax.eval_shape(observe, variables, None, *batch)
            if given is not None:
                _check_alike(given, shapes, everywhere=False)
            else:
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
      ValueError: they are of other sites or observers, or keep samples by the same draws.
    """
    if not parts:
        raise TypeError("merge_statistics takes the statistics of one or more streams, got none")
    for other in parts[1:]:
        _check_alike(parts[0], other)
    _check_draws(parts)
    merge = functools.partial(jax.tree.map, lambda a, b: a.merge(b), is_leaf=is_statistic)
    return functools.reduce(merge, parts)


def updated(observer: Observer, statistic: Any, x: jax.Array, site: str) -> Any:
    """The statistic of a site (None: nothing seen yet) after one more input.

    Raises:
      ValueError: the site has a single number as its input, or saw another number of channels before.
    """
    if not jnp.ndim(x):
        raise ValueError(f"site '{site}' has a single number as its input; observers take arrays with channels last")
    x = _whole(x)
    empty = observer.empty(x)
    if statistic is None:
        statistic = empty
    elif isinstance(empty, ChannelRange) and empty.minimum.shape != statistic.minimum.shape:
        widths = [seen.minimum.shape[-1] for seen in (statistic, empty)]
        raise ValueError(f"site '{site}' has inputs of {widths[0]} and of {widths[1]} channels; give each its own name")
    return observer.update(statistic, x)


def _whole(x: jax.Array) -> jax.Array:
    """An input on every device of an explicit mesh: samples and quantiles are taken across what its axes divide."""
    sharding = jax.typeof(x).sharding
    if all(axis is None for axis in sharding.spec):
        return x
    return jax.sharding.reshard(x, sharding.update(spec=jax.sharding.PartitionSpec()))


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


def _check_batch(batch: Any) -> None:
    if not isinstance(batch, (tuple, list)):
        raise TypeError(
            f"a batch is a tuple of the model's arguments, (x,) for a single one, not a {type(batch).__name__}"
        )
    empty = [np.shape(leaf) for leaf in jax.tree.leaves(batch) if hasattr(leaf, "shape") and 0 in np.shape(leaf)]
    if empty:
        raise ValueError(f"a batch has an empty array, of shape {empty[0]}")


def _check_alike(one: PyTree, other: PyTree, everywhere: bool = True) -> None:
    """Checks that statistics are of the same kinds and sizes at the same names, or (not ``everywhere``) at those of
    both. Samples of unequal room are not alike: of what the smaller one dropped, no merged sample can be uniform."""
    named = [paths.named_leaves(part, is_leaf=is_statistic) for part in (one, other)]
    names = named[0].keys() | named[1].keys() if everywhere else named[0].keys() & named[1].keys()
    for name in sorted(names):
        kinds = [type(leaves[name]).__name__ if name in leaves else "nothing" for leaves in named]
        ours, theirs = kinds if kinds[0] != kinds[1] else (_described(leaves[name]) for leaves in named)
        if ours != theirs:
            raise ValueError(f"statistics do not fit each other: of '{name}' one has {ours}, the other {theirs}")


def _described(statistic: Any) -> str:
    """A statistic's kind and sizes; of sequences not the length, which may differ from stream to stream."""
    sizes = {field: list(np.shape(value)) for field, value in statistic._asdict().items() if np.ndim(value)}
    if isinstance(statistic, Sequences):
        del sizes["inputs"][np.ndim(statistic.priority)]
    text = ", ".join(f"{field} {tuple(size)}" for field, size in sizes.items())
    return type(statistic).__name__ + (f" with {text}" if text else "")


def _check_draws(parts: tuple[PyTree, ...]) -> None:
    """Checks on the host that no two streams have drawn alike: of places drawn alike, all or none would be kept."""
    seen: dict[str, list[np.ndarray]] = {}
    for part in parts:
        for name, statistic in paths.named_leaves(part, is_leaf=is_statistic).items():
            priority = getattr(statistic, "priority", None)
            if priority is None or not paths.is_known(priority):
                continue
            draws = np.asarray(priority)
            draws = np.unique(draws[draws > 0])
            for other in seen.setdefault(name, []):
                # Of independent draws a few of many are the same by chance, since float32 has few of them.
                if len(np.intersect1d(draws, other)) > min(len(draws), len(other)) / 2:
                    raise ValueError(
                        f"two streams sampled '{name}' by the same draws; give every stream's observer a seed= of "
                        "its own"
                    )
            seen[name].append(draws)


def _ending_in(last: str, statistics: PyTree) -> dict[str, Any]:
    named = paths.named_leaves(statistics, is_leaf=is_statistic)
    split = {name.rpartition("/")[::2]: leaf for name, leaf in named.items()}
    return {owner: leaf for (owner, name), leaf in split.items() if name == last}
