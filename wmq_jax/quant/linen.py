"""Activation quantization and calibration of any Flax Linen model, without editing it.

The input of every Dense, DenseGeneral, Einsum and convolution is intercepted, in a subclass where its ``__call__``
comes to Flax's own; a subclass that does without is no site. The axes that a DenseGeneral contracts (the heads of an
output projection), wherever they are, are one: its channels. The quantizer lives in the collection 'quant' at the
module's own path, as variable 'input'; statistics live in 'stats', those of a block's input as variable 'block-input'.
Collections, not names, keep layers apart. A lifted transform that does not carry them (``nn.scan`` with
``variable_axes={'params': 0}``, ``nn.RNN``) hides them from the modules inside; what is hidden becomes a tap of the
same name (``quant.tap``), and each iteration of a scan has a statistic and a quantizer of its own, steps of time as
well as layers. With ``variable_axes={'params': 0, 'quant': 0, 'stats': 0}`` the collections are used there too.

The context must be entered *inside* the function that is jitted: a function compiled before
ignores it, and one compiled within it keeps it. ``quantized_apply`` and ``observe`` see to that for ``nn.jit`` inside a
model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.core import tracers
from flax.core.scope import DenyList, union_filters

from wmq_jax.quant import calibration, functions, paths
from wmq_jax.quant.activations import kernel_sites
from wmq_jax.quant.calibration import BLOCK, INPUT
from wmq_jax.quant.grid import Rounding
from wmq_jax.quant.observers import Observer, default_observers
from wmq_jax.quant.quantizer import Quantizer, fake_quant_at, is_quantizer
from wmq_jax.quant.statistics import is_statistic
from wmq_jax.quant.taps import tap, thread, with_channels

QUANT = "quant"
STATS = "stats"
# (name, input) -> what the module goes on with
Hidden = Callable[[str, Any], Any]

INTERCEPTED = (nn.Dense, nn.DenseGeneral, nn.Einsum, nn.Conv, nn.ConvLocal, nn.ConvTranspose)


@contextlib.contextmanager
def quantize_inputs(rounding: Rounding = jnp.round, hidden: Hidden | None = None) -> Iterator[None]:
    """Within it, every intercepted module with a quantizer gets its input fake-quantized.

    It does not know which quantizers there are; ``quantized_apply`` refuses one that finds no site.

    Args:
      rounding: ``straight_through_round`` where gradients are wanted.
      hidden: what is done with the input of a module that sees no quantizer (default: nothing).
    """

    def quantize(module: nn.Module, x):
        if module.has_variable(QUANT, INPUT):
            return fake_quant_at(_name(module), x, module.get_variable(QUANT, INPUT), rounding)
        return x if hidden is None else hidden(_name(module), x)

    with nn.intercept_methods(_on_input(quantize)):
        yield


@contextlib.contextmanager
def observe_inputs(observer: Observer, hidden: Hidden | None = None) -> Iterator[None]:
    """Within it, 'stats' gathers the statistics of every intercepted input.

    'stats' must be mutable in the ``apply`` that runs inside; where it is not, ``hidden`` gets the name of the
    statistic and the input (default: nothing is gathered).
    """
    with nn.intercept_methods(_on_input(lambda module, x: _update(module, INPUT, observer, x, hidden))):
        yield


@contextlib.contextmanager
def observe_blocks(observer: Observer, blocks: Iterable[str], hidden: Hidden | None = None) -> Iterator[None]:
    """Within it, 'stats' gathers the first argument of the calls of the modules at these paths ('encoder/blocks_0').

    ``hidden`` is as in ``observe_inputs``.
    """
    chosen = frozenset(blocks)

    def intercept(next_function, args, kwargs, context):
        if _name(context.module) in chosen and _is_outermost(context):
            update = lambda x: _update(context.module, BLOCK, observer, x, hidden)
            if args:
                args = (update(args[0]), *args[1:])
            else:
                first = next(iter(inspect.signature(context.module.__call__).parameters))
                kwargs = {**kwargs, first: update(kwargs[first])}
        return next_function(*args, **kwargs)

    with nn.intercept_methods(intercept):
        yield


def quantized_apply(model: nn.Module, rounding: Rounding = jnp.round) -> Callable[..., Any]:
    """``model.apply`` that honours the quantizers in ``variables['quant']``.

    A call may need a part of the model only (``method=``): quantizers of kernels that it does not come by wait.

    Raises (the result, while it is traced):
      ValueError: a quantizer is of no Dense, DenseGeneral, Einsum or convolution of the model, or one of a single
        layer meets a scan or vmap that carries 'quant'; it is named.
    """

    def apply(variables, *args, **kwargs):
        quantizers = _quantizers(variables)
        entered, hidden = {}, set()

        def run(variables, *args, **kwargs):
            with quantize_inputs(rounding, beside), nn.intercept_methods(_entered(entered)):
                return _apply_anew(model, variables, *args, **kwargs)

        def beside(name, x):
            if name not in quantizers:
                return x
            hidden.add(name)
            return tap(x, name)

        try:
            out = run(variables, *args, **kwargs)
        except IndexError as error:
            # Flax's, which takes a slice of every variable that a lifted transform carries along an axis; or the
            # model's own, which it has without quantizers too.
            _apply_anew(model, {name: part for name, part in variables.items() if name != QUANT}, *args, **kwargs)
            scalars = [name for name, quantizer in quantizers.items() if not jnp.ndim(quantizer.mode)]
            if not scalars:
                raise
            raise ValueError(
                f"the quantizer of site '{scalars[0]}', or another, has no axis for the scan or vmap that carries "
                "'quant'; give bits as an array, one for each layer"
            ) from error
        _check_used(quantizers, entered, variables)
        if not hidden:
            return out
        # Taps have no effect by themselves. Under jit, what the first run computed is dropped.
        named = {paths.join(name, INPUT): quantizers[name] for name in hidden}
        apply_taps = functions.quantized_apply(run, rounding)
        return apply_taps({"params": variables, QUANT: paths.nest(named)}, *args, **kwargs)

    return apply


def observe(
    model: nn.Module,
    method: str | Callable[..., Any] | None = None,
    observer: Observer | None = None,
    blocks: Iterable[str] = (),
    block_observer: Observer | None = None,
    shared: Iterable[str] = (),
) -> Callable[..., Any]:
    """An ``observe`` function for ``calibrate``: one call of ``model`` on one batch.

    Args:
      model: the model; ``variables`` are those of its ``apply``.
      method: the method that batches are arguments of (None: ``__call__``), by its name or as a function
        ``(module, *batch)``; ``lambda module, x: module(x, train=False)`` fixes what is no array.
      observer: what to keep of sites (default: ``minmax()``, beside ``blocks`` ``channel_ranges()``, which can follow
        the re-scalings of methods that look at blocks).
      blocks: paths of the modules whose inputs are sampled whole.
      block_observer: how (default: ``sequences(32)``).
      shared: regular expressions over sites (whole names) in a scan that hides the collections from them: they have one
        statistic for all its iterations, such as steps of time, and so one quantizer.

    Raises (the result):
      ValueError: the model calls nothing that can be observed or none of the ``blocks`` at a path, a site is called in
        a scan that hides the collections and outside of it, or the variables have no 'params'.
    """
    blocks = tuple(blocks)
    observer, block_observer = default_observers(observer, block_observer, blocks)

    def update(variables, statistics, *batch):
        calibration.params_of(variables)
        if statistics is not None:
            variables = {**variables, STATS: statistics}
        hidden = set()

        def run(variables, *batch):
            with observe_inputs(observer, beside), observe_blocks(block_observer, blocks, beside):
                return _apply_anew(model, variables, *batch, method=method, mutable=[STATS])[1].get(STATS, {})

        def beside(name, x):
            hidden.add(name)
            return tap(x, name)

        def record(name, seen, x):
            chosen = block_observer if name.rpartition("/")[2] == BLOCK else observer
            return x, calibration.updated(chosen, seen, x, name)

        updated = run(variables, *batch)
        _check_seen(updated, hidden, blocks)
        if not hidden:
            return updated
        # As in quantized_apply, what the first run computed is dropped.
        named = paths.named_leaves({} if statistics is None else statistics, is_leaf=is_statistic)
        states = {name: named.pop(name) for name in hidden if name in named}
        variables = {**variables, STATS: paths.nest(named)}
        of_site = [f"{pattern}/{INPUT}" for pattern in shared]
        updated, states = thread(run, record, of_site)(states, variables, *batch)
        _check_apart(updated, states)
        return paths.nest(states, updated)

    return update


_TRACES = itertools.count()


def _apply_anew(model: nn.Module, variables: Any, *args: Any, mutable: Any = False, **kwargs: Any) -> Any:
    """``model.apply``, for which ``nn.jit`` inside the model traces anew: what it remembers knows no interception.

    What may be mutated is part of what ``nn.jit`` remembers a function by; a collection that is never there makes
    that different, and nothing else.
    """
    unused = f"{QUANT}_trace_{next(_TRACES)}"
    if mutable is True:
        return model.apply(variables, *args, mutable=DenyList(unused), **kwargs)
    out, changed = model.apply(variables, *args, mutable=union_filters(mutable, unused), **kwargs)
    return out if mutable is False else (out, changed)


def _check_apart(updated: Any, states: Iterable[str]) -> None:
    """Checks that no statistic is gathered both in the collection and at a tap: one would replace the other."""
    gathered = paths.named_leaves(updated, is_leaf=is_statistic)
    for name in states:
        if name in gathered:
            raise ValueError(
                f"site '{name.rpartition('/')[0]}' is called inside a transform that hides 'stats' from it, and "
                "outside of it; quant.observe(linen.ModuleApply(model)) sees both as one"
            )


def _check_seen(updated: Any, hidden: set[str], blocks: Iterable[str]) -> None:
    if not updated and not hidden:
        raise ValueError(
            "the model calls no Dense, DenseGeneral, Einsum, Conv or named block: nothing to observe; what passes a "
            "quant.tap(x, name) inside it, quant.observe(linen.ModuleApply(model)) sees"
        )
    seen = set(calibration.block_statistics(updated)) | {name.rpartition("/")[0] for name in hidden}
    missing = [name for name in blocks if name not in seen]
    if missing:
        raise ValueError(f"the model calls no module at '{missing[0]}', whose input was to be sampled")


@dataclasses.dataclass(frozen=True)
class ModuleApply:
    """A Flax module as the function of a block or a part: see ``quant.topology.BlockApply``.

    Attributes:
      module: the block, unbound. Equal modules are equal functions.
      output: which element of a tuple it returns is the block's output; None if it returns an array.

    Raises:
      ValueError: the module is not hashable, as a static argument must be; the field is named.
    """

    module: nn.Module
    output: int | None = None

    def __post_init__(self):
        if not _is_hashable(self.module):
            fields = [f.name for f in dataclasses.fields(self.module) if not _is_hashable(getattr(self.module, f.name))]
            raise ValueError(
                f"{type(self.module).__name__} cannot be a block: its field {', '.join(fields)} is not hashable; write "
                "a list as a tuple, since searches are compiled once for equal modules"
            )

    def __call__(self, params: Any, x: Any) -> Any:
        """The module's output; every intercepted module's input is a tap of its path."""
        with nn.intercept_methods(_on_input(lambda module, x: tap(x, _name(module)))):
            out = self.module.apply({"params": params}, x)
        return out if self.output is None else out[self.output]


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _name(module: nn.Module) -> str:
    return "/".join(module.path)


def _update(module: nn.Module, name: str, observer: Observer, x: Any, hidden: Hidden | None) -> Any:
    """Shows ``x`` to the statistic ``name`` of ``module``, or to ``hidden`` where there can be none; ``x`` goes on."""
    if not (module.is_mutable_collection(STATS) and _is_reached(module)):
        return x if hidden is None else hidden(paths.join(_name(module), name), x)
    seen = module.get_variable(STATS, name) if module.has_variable(STATS, name) else None
    module.put_variable(STATS, name, calibration.updated(observer, seen, x, _name(module)))
    return x


def _is_reached(module: nn.Module) -> bool:
    """Whether variables can be written here: not within a transform of JAX's own, of which Flax knows nothing."""
    return module.scope.root.trace_level == tracers.current_trace()


def _quantizers(variables: Any) -> dict[str, Quantizer]:
    """Site -> its quantizer."""
    named = paths.named_leaves(variables.get(QUANT, {}), is_leaf=is_quantizer)
    return {name.rpartition("/")[0]: quantizer for name, quantizer in named.items()}


def _is_outermost(context: nn.module.InterceptorContext) -> bool:
    """Whether this is a module's ``__call__``, and none of a base class that its own makes."""
    own = type(context.module).__call__
    return context.method_name == "__call__" and context.orig_method.func in (own, getattr(own, "__wrapped__", own))


def _is_site(context: nn.module.InterceptorContext) -> bool:
    """Whether this is the call whose input meets the kernel: Flax's own, which that of a subclass may make later."""
    layer = isinstance(context.module, INTERCEPTED) and context.method_name == "__call__"
    return layer and context.orig_method.func.__module__.partition(".")[0] == "flax"


def _entered(modules: dict[str, bool]) -> Callable[..., Any]:
    """An interceptor that notes the name of every module that runs: True if its input may be quantized."""

    def intercept(next_function, args, kwargs, context):
        if context.method_name != "setup" and context.module.scope is not None:
            name = _name(context.module)
            modules[name] = modules.get(name, False) or _is_site(context)
        return next_function(*args, **kwargs)

    return intercept


def _check_used(quantizers: Iterable[str], entered: dict[str, bool], variables: Any) -> None:
    """Checks that each quantizer was used, or is of a kernel that the call did not come by.

    Raises:
      ValueError: naming the first that is neither.
    """
    unused = [name for name in quantizers if not entered.get(name, False)]
    if not unused:
        return
    kernels = kernel_sites(variables.get("params", {}))
    for name in unused:
        if name in entered or name not in kernels:
            sites = ", ".join(site for site, used in entered.items() if used) or "none"
            raise ValueError(
                f"nothing uses the quantizer of site '{name}', which is no Dense, DenseGeneral, Einsum or convolution "
                f"of the model; this call has {sites}"
            )


def _on_input(function: Callable[[nn.Module, Any], Any]) -> Callable[..., Any]:
    """An interceptor that puts ``function(module, x)`` in place of the input of a call.

    The axes that a DenseGeneral contracts are one in ``x``, the last: its channels.
    """

    def intercept(next_function, args, kwargs, context):
        if _is_site(context):
            module = context.module
            axis = module.axis if isinstance(module, nn.DenseGeneral) else -1
            change = with_channels(lambda x: function(module, x), axis)
            if args:
                args = (change(args[0]), *args[1:])
            else:
                kwargs = {**kwargs, "inputs": change(kwargs["inputs"])}
        return next_function(*args, **kwargs)

    return intercept
