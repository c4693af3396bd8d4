"""Sampled inputs of blocks, and what passes their sites: the data of methods that look at a block's output."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from wmq_jax.quant import calibration, paths
from wmq_jax.quant.matrices import as_matrices
from wmq_jax.quant.taps import thread
from wmq_jax.quant.topology import Block, Stack, Topology
from wmq_jax.quant.transform import State

PyTree = Any


def capture(block: Block, params: PyTree, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The block's output, and site -> its input."""
    return thread(block.apply, lambda name, seen, value: (value, value))({}, params, x)


def sampled_inputs(statistics: PyTree, stack: Stack) -> tuple[jax.Array, jax.Array]:
    """Inputs (n, L, ...) of a stack's first block, and their mask (n, L)."""
    sample = calibration.block_statistics(statistics)[stack[0][0]]
    return sample.inputs, sample.mask()


def mean_over(mask: jax.Array, x: jax.Array) -> jax.Array:
    """The mean (...,) of x (n, L, ...) over the inputs that count."""
    return jnp.tensordot(mask, x, 2) / jnp.maximum(mask.sum(), 1)


def check_block_inputs(state: State, topology: Topology, method: str) -> None:
    """Checks on the host that every stack has sampled inputs, that kernels are finite matrices and fit what is tapped.

    Raises:
      ValueError: naming the block or the site.
    """
    seen = {} if state.statistics is None else calibration.block_statistics(state.statistics)
    for path in topology.first_blocks():
        if path not in seen:
            raise ValueError(f"{method} needs sampled inputs of block '{path}'; observe with blocks=[...]")
        calibration.check_statistics({path: seen[path]})
    leaves = paths.named_leaves(state.params)
    kernels = [f"{path}/{site}/kernel" for path, block in topology.blocks() for site in block.sites]
    paths.check_finite("weight", {name: leaves[name] for name in kernels})
    for stack in topology.stacks:
        _check_channels(state.params, stack, seen[stack[0][0]].inputs, method)


def _check_channels(params: PyTree, stack: Stack, x: jax.Array, method: str) -> None:
    """Checks that every site of a stack is tapped, and sees as many channels as its kernel has input rows."""
    checked = set()
    for path, block in stack:
        if block in checked:
            continue
        checked.add(block)
        view, part = as_matrices(block, paths.subtree(params, path))
        # What the first block gives has the shape of what it takes, or the stack could not go on.
        _, inputs = jax.eval_shape(lambda part, x: capture(view, part, x), part, x)
        for site in block.sites:
            if site not in inputs:
                raise ValueError(f"block '{path}' has no tap '{site}'; its taps are {', '.join(inputs) or 'none'}")
            rows, shape = paths.subtree(part, site)["kernel"].shape[0], inputs[site].shape
            if shape != (*x.shape[:-1], rows):
                raise ValueError(
                    f"{method} cannot treat site '{path}/{site}': its kernel has {rows} inputs, but what passes it has "
                    f"shape {shape} where the block's input has {x.shape}"
                )
