"""Activation quantization and calibration of any Flax NNX model, without editing it.

    apply, params = nnx.functional(model)
    statistics = quant.calibrate(quant.observe(apply), {"params": params}, batches)
    variables = quant.quantize(transform, params, statistics)
    quant.quantized_apply(apply)(variables, x)

A copy of the model has a tap (``quant.tap``) at the input of every Linear, LinearGeneral, Einsum and convolution, named
by its path ('blocks/0/attention/query'); a module that the model holds twice is one site, named by its first path.
Everything else is as for hand-written functions. Parameters are nested dictionaries under the paths of the model, so
that path rules, topologies and packed storage see what they see of a Linen model.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Iterable
from typing import Any

import jax
from flax import nnx

from wmq_jax.quant import paths
from wmq_jax.quant.taps import tap, with_channels

PyTree = Any

INTERCEPTED = (nnx.Linear, nnx.LinearGeneral, nnx.Einsum, nnx.Conv, nnx.ConvTranspose)


@dataclasses.dataclass(frozen=True)
class Apply:
    """``apply(params, *args, **kwargs)``: a call of a model that holds these parameters; pure.

    What the model changes while it runs (running means, counters of random streams) is dropped: put the model into
    evaluation mode first. Models of one graph without other state are equal functions, so that blocks of one shape
    share what is compiled for them.

    Attributes:
      graph: of the model with taps.
      shapes: the state of its parameters, shapes in place of arrays.
      rest: all other state.
      method: what is called.
    """

    graph: nnx.GraphDef
    shapes: nnx.State = dataclasses.field(compare=False)
    rest: nnx.State = dataclasses.field(compare=False)
    method: str = "__call__"
    _rest: tuple[int, ...] = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "_rest", tuple(map(id, jax.tree.leaves(self.rest))))

    def __call__(self, params: PyTree, *args, **kwargs) -> Any:
        """The method's result.

        Raises:
          ValueError: ``params`` lack one of the model's parameters; it is named.
        """
        leaves = paths.named_leaves(params)
        missing = [name for name in paths.named_leaves(self.shapes) if name not in leaves]
        if missing:
            raise ValueError(f"the parameters lack '{missing[0]}', which the model has")
        params = paths.map_named(lambda name, _: leaves[name], self.shapes)
        # Other state in variables of its own: this call may lie in another trace than the last.
        model = nnx.merge(self.graph, params, jax.tree.map(lambda leaf: leaf, self.rest))
        return getattr(model, self.method)(*args, **kwargs)


def functional(model: nnx.Module, method: str = "__call__", blocks: Iterable[str] = ()) -> tuple[Apply, PyTree]:
    """``(apply, params)``: the model as a function with taps, and its parameters by name.

    Args:
      model: it is not changed.
      method: what ``apply`` calls.
      blocks: paths of modules ('blocks/0') whose first argument is a tap too; ``quant.observe(apply, blocks=...)``
        samples it whole, for methods that look at blocks.

    Raises:
      ValueError: a block's path is no module of the model.
    """
    model = nnx.clone(model)
    modules = {"/".join(map(str, path)): module for path, module in nnx.iter_modules(model)}
    blocks = frozenset(blocks)
    unknown = sorted(blocks - set(modules))
    if unknown:
        raise ValueError(f"the model has no module '{unknown[0]}'; its modules are {', '.join(filter(None, modules))}")
    for path, module in modules.items():
        layer = next((kind for kind in type(module).__mro__ if kind in INTERCEPTED), None)
        if path in blocks or layer is not None:
            module.__class__ = _tapped(type(module), None if path in blocks else layer)
            module.tap_name = path
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    return Apply(graph, shapes, rest, method), paths.nest(paths.named_leaves(params))


def with_params(model: nnx.Module, params: PyTree) -> nnx.Module:
    """A copy of ``model`` that holds ``params``, by name as of ``functional``: an ordinary model, to run or to save."""
    graph, old, rest = nnx.split(nnx.clone(model), nnx.Param, ...)
    leaves = paths.named_leaves(params)
    return nnx.merge(graph, paths.map_named(lambda name, _: leaves[name], old), rest)


@functools.cache
def _tapped(kind: type[nnx.Module], layer: type[nnx.Module] | None = None) -> type[nnx.Module]:
    """A subclass with a tap at its first argument: states and attributes stay as they are.

    Args:
      kind: the class of a module.
      layer: of its bases, the one whose call meets the kernel; ``kind`` may do something to its input before.
    """
    if layer is not None and kind is not layer:
        # Next to `kind` in the order of its bases stands the tap, which its `super().__call__` then comes by.
        return type(f"Tapped{kind.__name__}", (kind, _tapped(layer, layer)), {})
    first = list(inspect.signature(kind.__call__).parameters)[1]

    def call(self, *args, **kwargs):
        axis = self.axis if isinstance(self, nnx.LinearGeneral) else -1
        change = with_channels(lambda x: tap(x, self.tap_name), axis)
        if args:
            return kind.__call__(self, change(args[0]), *args[1:], **kwargs)
        return kind.__call__(self, **{**kwargs, first: change(kwargs[first])})

    return type(f"Tapped{kind.__name__}", (kind,), {"__call__": call})
