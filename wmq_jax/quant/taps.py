"""Taps: named places of a function, the identity until a transformed function does something there.

``tap(x, name)`` is an equation of the traced program that compiles to nothing. ``thread`` traces a function and runs
its program with a handler at every tap, also inside what jit, vmap, grad, scan, cond, while and checkpoint made of it.
Nothing is active globally: a compiled function cannot keep a handler, nor miss one, and threads do not see each other.
Every way to state a site (a tap in a hand-written function, a Linen or an NNX module) becomes this one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import ad, batching, mlir

PyTree = Any

# (name, state of the site or None, x) -> (what the function goes on with, new state of the site)
Handler = Callable[[str, PyTree, jax.Array], tuple[jax.Array, PyTree]]

_tap = core.Primitive("tap")
_tap.def_impl(lambda x, *, name: x)
_tap.def_abstract_eval(lambda x, *, name: x)
mlir.register_lowering(_tap, lambda context, x, *, name: [x])
ad.primitive_jvps[_tap] = lambda primals, tangents, *, name: (_tap.bind(*primals, name=name), tangents[0])


def _batch(values, axes, *, name):
    # In front: the last axis is the channels of a site.
    return _tap.bind(jnp.moveaxis(values[0], axes[0], 0), name=name), 0


batching.primitive_batchers[_tap] = _batch


def tap(x: jax.Array, name: str) -> jax.Array:
    """``x``, at a place called ``name``: the input of a weight that may be quantized.

    Differentiate the quantized function: one that takes gradients inside itself sees those of the tap, which are 1.

    Args:
      x: (..., C) floating-point array, C what the weight contracts.
      name: of the site ('block_0/fc1'); if a transform is to find the weight beside it, the path of what owns its
        parameter 'kernel'. A name that is used twice is one site. In a scan (and a loop whose length is known, and
        ``lax.map``), each iteration has a statistic and a quantizer of its own, as stacked layers need; ``shared``
        of ``observe`` says which have one for all, as steps of time and the elements of a batch do. A name that is
        used in a scan and outside of it is shared.

    Under ``vmap`` a branch becomes a choice between results: both see all inputs, and so do statistics.

    Raises:
      TypeError: ``name`` is no string.
    """
    if not isinstance(name, str):
        raise TypeError(f"tap(x, name) takes a string as name, not {name!r}")
    return _tap.bind(jnp.asarray(x), name=name)


def with_channels(function: Callable[[jax.Array], jax.Array], axis: int | Sequence[int]) -> Callable[..., jax.Array]:
    """``function`` of an input whose axes that are contracted together are one, the last: its channels.

    Args:
      function: keeps the shape.
      axis: what a layer contracts; several axes are joined in this order.
    """
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    last = tuple(range(-len(axes), 0))

    def apply(x):
        moved = jnp.moveaxis(x, axes, last)
        joined = moved.reshape(*moved.shape[: x.ndim - len(axes)], -1)
        return jnp.moveaxis(function(joined).reshape(moved.shape), last, axes)

    return apply


def thread(
    function: Callable[..., PyTree],
    handler: Handler,
    shared: Iterable[str] = (),
    waits: Callable[..., bool] = lambda name, *args: False,
) -> Callable[..., tuple[PyTree, dict[str, PyTree]]]:
    """``function`` with ``handler`` at its taps: ``run(states, *args, **kwargs) -> (result, new states)``.

    States are name -> pytree. Sites in a scan have them with a leading axis of its length, but for those that all
    iterations share: sites of the ``shared`` patterns, those that are met outside of that scan too, and those whose
    state is of scalars. Zeros must stand for "nothing yet", as in statistics. Arrays among the arguments are traced;
    everything else is left as it is. Inner jits that hold taps are inlined: jit the whole.

    Args:
      function, handler: see above.
      shared: regular expressions, which match whole names.
      waits: ``(name, *args)``, whether the state of a name that is no tap here may be given.

    Raises (``run``):
      ValueError: a state's name is no tap of the function and does not wait, or a tap lies where it cannot be reached;
        it is named.
    """
    patterns = [re.compile(pattern) for pattern in shared]

    def run(states: Mapping[str, PyTree], *args, **kwargs):
        leaves, tree = jax.tree.flatten((args, kwargs))
        traced = [isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves]

        def of_arrays(*arrays):
            remaining = iter(arrays)
            merged = [next(remaining) if is_array else leaf for leaf, is_array in zip(leaves, traced)]
            args, kwargs = jax.tree.unflatten(tree, merged)
            return function(*args, **kwargs)

        arrays = [leaf for leaf, is_array in zip(leaves, traced) if is_array]
        program, shapes = jax.make_jaxpr(of_arrays, return_shape=True)(*arrays)
        names = _names(program)
        unknown = [name for name in states if name not in names and not waits(name, *args)]
        if unknown:
            raise ValueError(f"the function has no tap '{unknown[0]}'; its taps are {', '.join(names) or 'none'}")
        common = {name for name, places in names.items() if len(places) > 1 or any(p.fullmatch(name) for p in patterns)}
        common |= {name for name, state in states.items() if _is_scalar(state)}
        result, states = _runner(program, _Handling(handler, frozenset(common)))(dict(states), *arrays)
        return jax.tree.unflatten(jax.tree.structure(shapes), result), states

    return run


class _Handling(NamedTuple):
    """What is done at taps, and the names of those whose state all iterations of a scan share."""

    handler: Handler
    shared: frozenset[str]


def _is_scalar(state: PyTree) -> bool:
    leaves = jax.tree.leaves(state)
    return bool(leaves) and not any(map(jnp.ndim, leaves))


def _runner(program, handling: _Handling) -> Callable[..., tuple[list, dict[str, PyTree]]]:
    """``(states, *inputs) -> (outputs, new states)`` of a program."""
    # Programs of checkpoint are open in some versions of jax: they have no constants.
    jaxpr, consts = getattr(program, "jaxpr", program), getattr(program, "consts", ())

    def run(states, *inputs):
        states = dict(states)
        values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))
        read = lambda atom: atom.val if isinstance(atom, core.Literal) else values[atom]
        for equation in jaxpr.eqns:
            out = _equation(equation, [read(atom) for atom in equation.invars], states, handling)
            values.update(zip(equation.outvars, out, strict=True))
        return [read(atom) for atom in jaxpr.outvars], states

    return run


def _equation(equation, inputs: list, states: dict[str, PyTree], handling: _Handling) -> list:
    """The outputs of one equation; ``states`` is updated."""
    if equation.primitive is _tap:
        name = equation.params["name"]
        out, states[name] = handling.handler(name, states.get(name), *inputs)
        return [out]
    names = [name for program in _inner(equation) for name in _names(program)]
    if not names:
        with equation.ctx.manager:
            out = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(equation.params))
        return out if equation.primitive.multiple_results else [out]
    rule = _RULES.get(equation.primitive.name)
    if rule is None:
        raise ValueError(
            f"tap '{names[0]}' lies inside a {equation.primitive.name}, where it cannot be reached; it may lie in jit, "
            f"scan, while_loop, cond, switch and checkpoint"
        )
    out, changed = rule(equation.params, inputs, {name: states.get(name) for name in names}, handling)
    states.update(changed)
    return out


def _jit(params, inputs, states, handling):
    return _runner(params["jaxpr"], handling)(states, *inputs)


def _checkpoint(params, inputs, states, handling):
    run = _runner(params["jaxpr"], handling)
    return jax.checkpoint(run, prevent_cse=params["prevent_cse"], policy=params["policy"])(states, *inputs)


def _scan(params, inputs, states, handling):
    run = _runner(params["jaxpr"], handling)
    # jax 0.12 keeps the numbers of constants and carries as a tree.
    parts = params["ft_in"].unpack() if "ft_in" in params else None
    first, carries = map(len, parts[:2]) if parts else (params["num_consts"], params["num_carry"])
    last = first + carries

    def step(carry, one):
        (carry, common), (xs, own) = carry, one
        out, states = run(common | own, *inputs[:first], *carry, *xs)
        common, own = _split(states, handling.shared)
        return (out[:carries], common), (out[carries:], own)

    length = params["length"]
    common, own = _split(states, handling.shared)
    for name, state in own.items():
        found = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(state) if jnp.ndim(leaf)} - {length}
        if found:
            raise ValueError(f"tap '{name}' lies in a scan of {length} iterations, but its state is of {min(found)}")
    own = jax.tree.map(lambda leaf: leaf if jnp.ndim(leaf) else jnp.broadcast_to(leaf, (length,)), own)
    if common:  # carried, so there must be one before the first iteration
        element = lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
        xs, one = jax.tree.map(element, (inputs[last:], own))
        filled = _filled(states | one, run, [*inputs[:last], *xs])
        common = {name: filled[name] for name in common}
    settings = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry = (inputs[first:last], common)
    (carry, common), (ys, own) = jax.lax.scan(step, carry, (inputs[last:], own), **settings)
    return [*carry, *ys], common | own


def _split(states: dict[str, PyTree], names: frozenset[str]) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
    """Those of these names, and the others."""
    chosen = {name: state for name, state in states.items() if name in names}
    return chosen, {name: state for name, state in states.items() if name not in names}


def _while(params, inputs, states, handling):
    condition, body = params["cond_jaxpr"], params["body_jaxpr"]
    hidden = list(_names(condition))
    if hidden:
        raise ValueError(f"tap '{hidden[0]}' lies in the condition of a while loop, where it cannot be reached")
    first, last = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    test = _runner(condition, handling)
    run = _runner(body, handling)
    states = _filled(states, run, inputs[first:])
    goes_on = lambda values: test({}, *inputs[:first], *values)[0][0]

    def step(carry):
        values, states = carry
        after, states = run(states, *inputs[first:last], *values)
        goes = goes_on(values)
        if goes.ndim:  # under vmap: elements that have ended wait for the others
            keep = lambda new, old: jnp.where(jnp.expand_dims(goes, range(goes.ndim, new.ndim)), new, old)
            after = list(map(keep, after, values))
        return after, states

    return jax.lax.while_loop(lambda carry: jnp.any(goes_on(carry[0])), step, (inputs[last:], states))


def _cond(params, inputs, states, handling):
    index, *operands = inputs
    branches = [_runner(branch, handling) for branch in params["branches"]]
    for branch in branches:
        states = _filled(states, branch, operands)
    return jax.lax.switch(jnp.asarray(index, jnp.int32), branches, states, *operands)


_RULES = {
    "jit": _jit,
    "pjit": _jit,
    "checkpoint": _checkpoint,
    "remat2": _checkpoint,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}


def _filled(states, run, inputs):
    """``states`` with zeros where there was none and ``run`` leaves one: loops and branches keep a structure."""
    _, after = jax.eval_shape(run, states, *inputs)
    zeros = lambda shapes: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return {name: zeros(after[name]) if state is None else state for name, state in states.items()}


def _names(program, place: tuple[int, ...] = ()) -> dict[str, set[tuple[int, ...]]]:
    """Names of the taps of a program, in the order in which they come -> lengths of the scans around each place."""
    names = {}
    for equation in getattr(program, "jaxpr", program).eqns:
        if equation.primitive is _tap:
            names.setdefault(equation.params["name"], set()).add(place)
        inside = (*place, equation.params["length"]) if equation.primitive.name == "scan" else place
        for inner in _inner(equation):
            for name, places in _names(inner, inside).items():
                names.setdefault(name, set()).update(places)
    return names


def _inner(equation) -> Iterator[Any]:
    """Programs that an equation holds."""
    for value in equation.params.values():
        several = value if isinstance(value, (tuple, list)) else (value,)
        yield from (one for one in several if isinstance(one, (core.ClosedJaxpr, core.Jaxpr)))
