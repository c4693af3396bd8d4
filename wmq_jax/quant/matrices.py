"""Kernels of several input or output axes seen as matrices, for methods that look at blocks.

A DenseGeneral contracts some axes and makes others; scales, groups and searches only need (inputs, outputs). The view
is a block like any other, so no method knows of it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from wmq_jax.quant import paths
from wmq_jax.quant.topology import Block, BlockApply

PyTree = Any


@dataclasses.dataclass(frozen=True)
class ShapedApply:
    """A block's function on parameters some of which are given in another shape: see ``as_matrices``.

    Attributes:
      apply: the function.
      shapes: (name, shape) of the parameters that it takes otherwise.
    """

    apply: BlockApply
    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    def __call__(self, params: PyTree, x: jax.Array) -> jax.Array:
        """The output of ``apply`` on the parameters in its shapes."""
        leaves = paths.named_leaves(params)
        return self.apply(paths.nest({name: leaves[name].reshape(shape) for name, shape in self.shapes}, params), x)

    def under(self, path: str, apply: BlockApply) -> ShapedApply:
        """The same for the function of a part at ``path``."""
        prefix = path and f"{path}/"
        inside = ((name.removeprefix(prefix), shape) for name, shape in self.shapes if name.startswith(prefix))
        return ShapedApply(apply, tuple(inside))


def as_matrices(block: Block, params: PyTree) -> tuple[Block, PyTree]:
    """The block with every site's kernel as (inputs, outputs) and its bias as (outputs,): the same function.

    A block whose kernels are matrices comes back as it is. ``reshape_like`` undoes it for the parameters.
    """
    changed = {}
    for site in block.sites:
        dense = paths.subtree(params, site)
        if dense["kernel"].ndim > 2:
            inputs = math.prod(dense["kernel"].shape[: block.input_axes_of(site)])
            changed[f"{site}/kernel"] = dense["kernel"].reshape(inputs, -1)
            if "bias" in dense:
                changed[f"{site}/bias"] = dense["bias"].reshape(-1)
    if not changed:
        return block, params
    leaves = paths.named_leaves(params)
    view = ShapedApply(block.apply, tuple((name, leaves[name].shape) for name in changed))
    pairs = tuple(
        pair
        if pair.part is None
        else dataclasses.replace(
            pair, part=dataclasses.replace(pair.part, apply=view.under(pair.part.path, pair.part.apply))
        )
        for pair in block.pairs
    )
    return dataclasses.replace(block, apply=view, pairs=pairs), paths.nest(changed, params)


def reshape_like(params: PyTree, original: PyTree) -> PyTree:
    """``params`` in the shapes of ``original``, a tree of the same structure."""
    return jax.tree.map(lambda leaf, like: leaf.reshape(like.shape), params, original)
