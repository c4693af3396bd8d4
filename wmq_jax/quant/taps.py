"""Taps: named places of a function, the identity until a transformed function does something there.

``tap(x, name)`` is an equation of the traced program that compiles to nothing. ``thread`` traces a function and runs
its program with a handler at every tap, also inside what jit, vmap, grad, scan, cond, while and checkpoint made of it.
Nothing is active globally: a compiled function cannot keep a handler, nor miss one, and threads do not see each other.
Every way to state a site (a tap in a hand-written function, a Linen or an NNX module) becomes this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

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
        parameter 'kernel'. A name that is used twice is one site. In a scan (and a loop whose length is known), each
        iteration has a statistic and a quantizer of its own.

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


def thread(function: Callable[..., PyTree], handler: Handler) -> Callable[..., tuple[PyTree, dict[str, PyTree]]]:
    """``function`` with ``handler`` at its taps: ``run(states, *args, **kwargs) -> (result, new states)``.

    States are name -> pytree. Sites in a scan have them with a leading axis of its length; one that is a scalar is
    shared by all iterations. Zeros must stand for "nothing yet", as in statistics. Arrays among the arguments are
    traced; everything else is left as it is. Inner jits that hold taps are inlined: jit the whole.

    Raises (``run``):
      ValueError: a state's name is no tap of the function, or a tap lies where it cannot be reached; it is named.
    """

    def run(states: Mapping[str, PyTree], *args, **kwargs):
        leaves, tree = jax.tree.flatten((args, kwargs))
        traced = [isinstance(leaf, (jax.Array, np.ndarray, np.generic)) for leaf in leaves]

        def of_arrays(*arrays):
            remaining = iter(arrays)
            merged = [next(remaining) if is_array else leaf for leaf, is_array in zip(leaves, traced)]
            args, kwargs = jax.tree.unflatten(tree, merged)
            return function(*args, **kwargs)

        arrays = [leaf for leaf, is_array in zip(leaves, traced) if is_array]
        program, shapes = jax.make_jaxpr(of_arrays, return_shape=True)(*arrays)
        names = _names(program)
        unknown = [name for name in states if name not in names]
        if unknown:
            raise ValueError(f"the function has no tap '{unknown[0]}'; its taps are {', '.join(names) or 'none'}")
        result, states = _runner(program, handler)(dict(states), *arrays)
        return jax.tree.unflatten(jax.tree.structure(shapes), result), states

    return run


def _runner(program, handler: Handler) -> Callable[..., tuple[list, dict[str, PyTree]]]:
    """``(states, *inputs) -> (outputs, new states)`` of a program."""
    # Programs of checkpoint are open in some versions of jax: they have no constants.
    jaxpr, consts = getattr(program, "jaxpr", program), getattr(program, "consts", ())

    def run(states, *inputs):
        states = dict(states)
        values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))
        read = lambda atom: atom.val if isinstance(atom, core.Literal) else values[atom]
        for equation in jaxpr.eqns:
            out = _equation(equation, [read(atom) for atom in equation.invars], states, handler)
            values.update(zip(equation.outvars, out, strict=True))
        return [read(atom) for atom in jaxpr.outvars], states

    return run


def _equation(equation, inputs: list, states: dict[str, PyTree], handler: Handler) -> list:
    """The outputs of one equation; ``states`` is updated."""
    if equation.primitive is _tap:
        name = equation.params["name"]
        out, states[name] = handler(name, states.get(name), *inputs)
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
    out, changed = rule(equation.params, inputs, {name: states.get(name) for name in names}, handler)
    states.update(changed)
    return out


def _jit(params, inputs, states, handler):
    return _runner(params["jaxpr"], handler)(states, *inputs)


def _checkpoint(params, inputs, states, handler):
    run = _runner(params["jaxpr"], handler)
    return jax.checkpoint(run, prevent_cse=params["prevent_cse"], policy=params["policy"])(states, *inputs)


def _scan(params, inputs, states, handler):
    run = _runner(params["jaxpr"], handler)
    # jax 0.12 keeps the numbers of constants and carries as a tree.
    parts = params["ft_in"].unpack() if "ft_in" in params else None
    first, carries = map(len, parts[:2]) if parts else (params["num_consts"], params["num_carry"])
    last = first + carries

    def step(carry, one):
        xs, states = one
        out, states = run(states, *inputs[:first], *carry, *xs)
        return out[:carries], (out[carries:], states)

    length = params["length"]
    for name, state in states.items():
        found = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(state) if jnp.ndim(leaf)} - {length}
        if found:
            raise ValueError(f"tap '{name}' lies in a scan of {length} iterations, but its state is of {min(found)}")
    states = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (length,)) if jnp.ndim(leaf) == 0 else leaf, states)
    settings = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, (ys, states) = jax.lax.scan(step, inputs[first:last], (inputs[last:], states), **settings)
    return [*carry, *ys], states


def _while(params, inputs, states, handler):
    condition, body = params["cond_jaxpr"], params["body_jaxpr"]
    hidden = _names(condition)
    if hidden:
        raise ValueError(f"tap '{hidden[0]}' lies in the condition of a while loop, where it cannot be reached")
    first, last = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    test = _runner(condition, handler)
    run = _runner(body, handler)
    states = _filled(states, run, inputs[first:])
    return jax.lax.while_loop(
        lambda carry: test({}, *inputs[:first], *carry[0])[0][0],
        lambda carry: run(carry[1], *inputs[first:last], *carry[0]),
        (inputs[last:], states),
    )


def _cond(params, inputs, states, handler):
    index, *operands = inputs
    branches = [_runner(branch, handler) for branch in params["branches"]]
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


def _names(program) -> list[str]:
    """Names of the taps of a program, in the order in which they come."""
    names = {}
    for equation in getattr(program, "jaxpr", program).eqns:
        if equation.primitive is _tap:
            names[equation.params["name"]] = None
        for inner in _inner(equation):
            names |= dict.fromkeys(_names(inner))
    return list(names)


def _inner(equation) -> Iterator[Any]:
    """Programs that an equation holds."""
    for value in equation.params.values():
        several = value if isinstance(value, (tuple, list)) else (value,)
        yield from (one for one in several if isinstance(one, (core.ClosedJaxpr, core.Jaxpr)))
