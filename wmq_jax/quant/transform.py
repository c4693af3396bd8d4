"""Quantization transforms: pure functions over a tree of parameters, composed like optax.

    transform = chain(rtn(bits=4, group_size=128), dynamic_activations(bits=8))
    variables = quantize(transform, params)

A transform reads and replaces a ``State``. ``check`` looks at concrete values on the host
and raises; ``apply`` is pure and runs under ``jit``, ``vmap`` and ``shard_map`` (over traced bits,
for example).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from wmq_jax.quant import grid as grids
from wmq_jax.quant import paths
from wmq_jax.quant.weights import QuantizedKernel, expanded_or, with_shape

PyTree = Any


class State(NamedTuple):
    """What transforms pass on.

    Attributes:
      params: float parameters, any pytree; quantized ones are expanded to floats again.
      quant: activation quantizers, nested dictionaries, site path -> ``{'input': Quantizer}``.
      statistics: what calibration saw (see ``calibrate``), or None. A transform that changes
        what reaches a site changes its statistics too.
      codes: name of a parameter -> the integers behind it, of every parameter that is quantized now; with traced bits
        that turn out to be none they mean nothing.
    """

    params: PyTree
    quant: PyTree
    statistics: PyTree | None
    codes: Mapping[str, QuantizedKernel] = {}


def _unmarked(state: State, topology: Any = None) -> State:
    """``state`` as it is: of a transform after which later checks find nothing else."""
    del topology
    return state


class Transform(NamedTuple):
    """One quantization step.

    Attributes:
      check: ``(state, topology) -> None``; raises ValueError naming the site for input that
        cannot be quantized: a rule without a match, NaN or infinity (of known values; tracers pass), missing
        statistics.
      apply: ``(state, topology) -> state``, pure.
      mark: ``(state, topology) -> state`` as far as later checks look at what ``apply`` does, without doing it: the
        names of parameters with codes (whose values may be anything), and the modes of quantizers. ``chain`` finds with
        it, before any search, what does not go together.

    ``topology`` is whatever description of the model's structure a method asks for (None for
    methods that look at one site at a time).
    """

    check: Callable[[State, Any], None]
    apply: Callable[[State, Any], State]
    mark: Callable[[State, Any], State] = _unmarked


def chain(*transforms: Transform) -> Transform:
    """The transforms one after the other; no transforms at all is the identity."""

    def check(state: State, topology: Any = None) -> None:
        for transform in transforms:
            transform.check(state, topology)
            state = transform.mark(state, topology)

    def apply(state: State, topology: Any = None) -> State:
        for transform in transforms:
            state = transform.apply(state, topology)
        return state

    def mark(state: State, topology: Any = None) -> State:
        for transform in transforms:
            state = transform.mark(state, topology)
        return state

    return Transform(check, apply, mark)


def mark_codes(state: State, names: Iterable[str]) -> State:
    """For ``Transform.mark``: ``state`` with parameters of these names known as rounded."""
    return state._replace(codes={**state.codes, **dict.fromkeys(names)})


def block_params(state: State, path: str) -> dict[str, Any]:
    """The parameters of a block as plain nested dictionaries, whatever (a FrozenDict, lists, boxes) holds them."""
    prefix = path and f"{path}/"
    named = paths.named_leaves(state.params).items()
    return paths.nest({name.removeprefix(prefix): leaf for name, leaf in named if name.startswith(prefix)})


def replace_block(
    state: State,
    path: str,
    params: PyTree,
    sites: Iterable[str],
    codes: Mapping[str, QuantizedKernel] | None = None,
    bits: Any = None,
) -> State:
    """``state`` with other parameters of a block: those of the codes are what the codes expand to.

    The tree keeps its structure.

    Args:
      state: before.
      path: of the block.
      params: of the block; of a parameter with codes it counts only where ``bits`` are none.
      sites: whose kernels changed; what codes they had before are dropped.
      codes: name inside the block -> its integers; a method may have seen a kernel of several axes as a matrix.
      bits: of the codes; may be traced.
    """
    leaves = {name: paths.subtree(params, name) for name in codes or {}}
    codes = {name: with_shape(codes[name], leaf.shape) for name, leaf in leaves.items()}
    floats = expanded_or(leaves, codes, dict.fromkeys(codes, bits))
    changed = {paths.join(path, site, "kernel") for site in sites}
    kept = {name: quantized for name, quantized in state.codes.items() if name not in changed}
    found = {paths.join(path, name): quantized for name, quantized in codes.items()}
    leaves = {paths.join(path, name): leaf for name, leaf in paths.named_leaves(paths.nest(floats, params)).items()}
    params = paths.map_named(lambda name, leaf: leaves.get(name, leaf), state.params)
    return state._replace(params=params, codes=kept | found)


def unless_none(bits, transform: Transform) -> Transform:
    """``transform``, but parameters and statistics stay bit for bit where ``bits``, traced or not, are none."""

    def apply(state: State, topology: Any = None) -> State:
        if isinstance(bits, int):
            return state if bits == grids.NO_BITS else transform.apply(state, topology)
        done = transform.apply(state, topology)
        choose = lambda new, old: jnp.where(grids.is_quantized(bits), new, old)
        params, statistics = (
            jax.tree.map(choose, new, old)
            for new, old in ((done.params, state.params), (done.statistics, state.statistics))
        )
        return done._replace(params=params, statistics=statistics)

    none = isinstance(bits, int) and bits == grids.NO_BITS
    return Transform(transform.check, apply, _unmarked if none else transform.mark)


def quantize(
    transform: Transform, params: PyTree, statistics: PyTree | None = None, topology: Any = None
) -> dict[str, PyTree]:
    """Checks the input, then applies ``transform``: ``{'params': ..., 'quant': ...}``.

    The result has the structure of Linen variables: quantized parameters as ordinary floats, and
    the activation quantizers that ``linen.quantized_apply`` and ``quantized_apply`` honour. Under ``jit`` and ``grad``
    values are unknown: what ``check`` would say of them (NaN, infinity, a site that was never called) is not said.
    What is rounded is not marked so: a second call on its parameters rounds again, onto other grids. Put everything in
    one ``chain``, or keep the ``State`` of ``quantize_state`` and go on with ``transform.apply``.

    Raises:
      ValueError: as ``Transform.check``.
    """
    state = quantize_state(transform, params, statistics, topology)
    return {"params": state.params, "quant": state.quant}


def quantize_state(
    transform: Transform, params: PyTree, statistics: PyTree | None = None, topology: Any = None
) -> State:
    """``quantize`` with all that is known afterwards: the integers too, which ``pack`` stores.

    Raises:
      ValueError: as ``Transform.check``.
    """
    state = State(params, {}, statistics)
    transform.check(state, topology)
    return transform.apply(state, topology)
