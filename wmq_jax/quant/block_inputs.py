"""Sampled inputs of blocks, and what passes their sites: the data of methods that look at a block's output."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from wmq_jax.quant import calibration, paths
from wmq_jax.quant.topology import Block, Stack, Topology
from wmq_jax.quant.transform import State

PyTree = Any


def capture(block: Block, params: PyTree, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The block's output, and site -> its input."""
    inputs: dict[str, jax.Array] = {}

    def tap(name, value):
        inputs[name] = value
        return value

    return block.apply(params, x, tap), inputs


def sampled_inputs(statistics: PyTree, stack: Stack) -> tuple[jax.Array, jax.Array]:
    """Inputs (n, L, ...) of a stack's first block, and their mask (n, L)."""
    sample = calibration.block_statistics(statistics)[stack[0][0]]
    return sample.inputs, sample.mask()


def mean_over(mask: jax.Array, x: jax.Array) -> jax.Array:
    """The mean (...,) of x (n, L, ...) over the inputs that count."""
    return jnp.tensordot(mask, x, 2) / jnp.maximum(mask.sum(), 1)


def check_block_inputs(state: State, topology: Topology, method: str) -> None:
    """Checks on the host that every stack has sampled inputs, and that the blocks' Dense layers are finite matrices.

    Raises:
      ValueError: naming the block or the site.
    """
    seen = {} if state.statistics is None else calibration.block_statistics(state.statistics)
    for path in topology.first_blocks():
        if path not in seen:
            raise ValueError(f"{method} needs sampled inputs of block '{path}'; observe with blocks=[...]")
        calibration.check_statistics({path: seen[path]})
    leaves = paths.named_leaves(state.params)
    kernels = {f"{path}/{site}/kernel" for path, block in topology.blocks() for site in block.sites}
    for name in sorted(kernels):
        if leaves[name].ndim != 2:
            raise ValueError(f"{method} takes kernels of two axes; '{name}' has shape {tuple(leaves[name].shape)}")
    paths.check_finite("weight", {name: leaf for name, leaf in leaves.items() if name in kernels})
