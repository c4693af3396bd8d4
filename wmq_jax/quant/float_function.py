"""Whether the re-scalings that a topology states keep what a block computes in floating point: tried, on its inputs.

Scales that are powers of two change exponents alone, so a block that they do not change gives the very same numbers.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from wmq_jax.quant import calibration, paths
from wmq_jax.quant.block_inputs import sampled_inputs
from wmq_jax.quant.equalization import Pairs, rescale
from wmq_jax.quant.matrices import as_matrices
from wmq_jax.quant.topology import Block, Pair, Stack, Topology
from wmq_jax.quant.transform import State, block_params

PyTree = Any

SAMPLES = 2
# Relative to the largest output. Devices that sum in another order each time are off by less.
_TOLERANCE = 1e-4


def check_float_function(state: State, topology: Topology, pairs: Pairs) -> None:
    """Tries every pair of every kind of block on the host; without sampled inputs, or with traced values, nothing is.

    Args:
      state, topology: of the model, which passed ``check_topology``.
      pairs: ``block -> pairs`` that are going to be re-scaled.

    Raises:
      ValueError: naming the first pair whose re-scaling changes what its block computes: it lacks a consumer, or is not
        linear between its ends.
    """
    seen = {} if state.statistics is None else calibration.block_statistics(state.statistics)
    for stack in topology.stacks:
        known = stack and stack[0][0] in seen and paths.is_known(seen[stack[0][0]].inputs)
        if known and all(map(paths.is_known, jax.tree.leaves(state.params))):
            with jax.ensure_compile_time_eval():  # what is known may be looked at while something else is traced
                _check_stack(state, stack, pairs)


def _check_stack(state: State, stack: Stack, pairs: Pairs) -> None:
    x, tried = sampled_inputs(state.statistics, stack)[0][:SAMPLES], set()
    for place, (path, block) in enumerate(stack):
        if all(later in tried for _, later in stack[place:]):
            return
        view, part = as_matrices(block, block_params(state, path))
        output = _output(view, part, x)
        for pair in pairs(block) if block not in tried else ():
            if pair.producer is not None and _changes(view, part, x, output, pair):
                raise ValueError(
                    f"re-scaling '{pair.producer}' and {', '.join(map(repr, pair.consumers))} changes what block "
                    f"'{path}' computes: the pair lacks a consumer, or is not linear between its ends"
                )
        tried.add(block)
        if not isinstance(output, jax.Array):
            return  # what a block after it is called with is not known
        x = output


def _changes(block: Block, params: PyTree, x: jax.Array, output: PyTree, pair: Pair) -> bool:
    rows = paths.subtree(params, pair.consumers[0])["kernel"].shape[0]
    scale = np.exp2(np.random.default_rng(0).integers(-2, 3, rows)).astype(np.float32)
    moved = _output(block, rescale(params, pair, scale), x)

    def differ(a: jax.Array, b: jax.Array) -> bool:
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        return bool(np.abs(a - b).max() > _TOLERANCE * np.abs(b).max())

    return any(map(differ, jax.tree.leaves(moved), jax.tree.leaves(output)))


@functools.partial(jax.jit, static_argnames="block")
def _output(block: Block, params: PyTree, x: jax.Array) -> PyTree:
    return block.apply(params, x)
