"""Sampled inputs of blocks, and what passes their sites: the data of methods that look at a block's output."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from wmq_jax.quant import calibration, paths
from wmq_jax.quant.matrices import as_matrices
from wmq_jax.quant.statistics import Sequences
from wmq_jax.quant.taps import thread
from wmq_jax.quant.topology import Block, Stack, Topology
from wmq_jax.quant.transform import State, block_params
from wmq_jax.quant.weights import WeightSpec, check_groups

PyTree = Any


def capture(block: Block, params: PyTree, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The block's output, and site -> its input."""
    return thread(block.apply, lambda name, seen, value: (value, value))({}, params, x)


def sampled_inputs(statistics: PyTree, stack: Stack) -> tuple[jax.Array, jax.Array]:
    """Inputs (n, ..., C) of a stack's first block, and (n, ...): 1 where a token counts.

    Whatever axes there are between samples and channels, a token is what lies along the last one.
    """
    sample = calibration.block_statistics(statistics)[stack[0][0]]
    inputs = _filled_up(sample)
    # Of samples that are one token each, the axis whose length is known is that of the channels.
    mask = sample.mask() if sample.inputs.ndim > 2 else sample.mask()[:, 0]
    leading = inputs.shape[:-1]
    return inputs, jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (len(leading) - mask.ndim)), leading)


def _filled_up(sample: Sequences) -> jax.Array:
    """The inputs, with the first sequence in empty places and each one's last token after its end.

    Zeros there would be no input that the block ever sees, and what it makes of them may be no number.
    """
    kept = sample.priority > 0
    place = lambda leaf: jnp.where(kept.reshape(kept.shape + (1,) * (leaf.ndim - 1)), leaf, leaf[:1])
    inputs, length = place(sample.inputs), place(sample.length)
    tokens = jnp.minimum(jnp.arange(inputs.shape[1]), jnp.maximum(length, 1)[:, None] - 1)
    return jax.vmap(lambda sequence, order: sequence[order])(inputs, tokens)


def check_outputs(path: str, outputs: jax.Array) -> None:
    """Checks on the host that a block gives finite numbers for its sampled inputs; a tracer passes.

    Raises:
      ValueError: naming the block.
    """
    paths.check_finite("output of block", {path: outputs})


def mean_over(mask: jax.Array, x: jax.Array) -> jax.Array:
    """The mean (C,) of x (n, ..., C) over the tokens that count, those of ``mask`` (n, ...)."""
    return jnp.tensordot(mask, x, mask.ndim) / jnp.maximum(mask.sum(), 1)


def check_block_inputs(state: State, topology: Topology, method: str, spec: WeightSpec) -> None:
    """Checks on the host that every stack has sampled inputs, and that kernels fit their groups and what is tapped.

    Raises:
      ValueError: naming the block or the site.
    """
    seen = {} if state.statistics is None else calibration.block_statistics(state.statistics)
    for path in topology.first_blocks():
        if path not in seen:
            raise ValueError(f"{method} needs sampled inputs of block '{path}'; observe with blocks=[...]")
        calibration.check_statistics({path: seen[path]})
    for stack in topology.stacks:
        if stack:
            _check_channels(state, stack, seen[stack[0][0]].inputs, method, spec)


def _check_channels(state: State, stack: Stack, x: jax.Array, method: str, spec: WeightSpec) -> None:
    """Checks that every site of a stack is tapped, and sees as many channels as its kernel has input rows."""
    checked = set()
    for path, block in stack:
        if block in checked:
            continue
        checked.add(block)
        view, part = as_matrices(block, block_params(state, path))
        # What the first block gives has the shape of what it takes, or the stack could not go on.
        out, inputs = jax.eval_shape(lambda part, x: capture(view, part, x), part, x)
        if not hasattr(out, "shape"):
            raise ValueError(
                f"block '{path}' must give an array, not a {type(out).__name__}; ModuleApply(module, output=0) gives "
                "the first of several"
            )
        for site in block.sites:
            check_groups(paths.join(path, site, "kernel"), paths.subtree(part, site)["kernel"].shape, spec)
            if site not in inputs:
                raise ValueError(f"block '{path}' has no tap '{site}'; its taps are {', '.join(inputs) or 'none'}")
            rows, shape = paths.subtree(part, site)["kernel"].shape[0], inputs[site].shape
            if shape != (*x.shape[:-1], rows):
                raise ValueError(
                    f"{method} cannot treat site '{paths.join(path, site)}': its kernel has {rows} inputs, but what "
                    f"passes it has shape {shape} where the block's input has {x.shape}"
                )
