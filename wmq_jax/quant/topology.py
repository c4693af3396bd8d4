"""What methods that look at more than one site need to know of a model: its blocks, and what feeds what inside them.

A user states it in a few lines; ``wmq_jax.quantized.topology`` is that of DINO-WM, and ``linen.ModuleApply`` makes a
block's function of a Flax module. Names inside a block are relative to it, so that blocks of one shape have equal
descriptions and share what is compiled for them.

Parameters have the names and the layout of Flax: kernels (inputs, outputs) are called 'kernel', what is added to their
products 'bias', and the gain and the offset of a LayerNorm 'scale' and 'bias'. Trees of other libraries (Haiku's 'w',
Equinox's transposed 'weight') are renamed first, which a block's function can undo.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from wmq_jax.quant import paths

PyTree = Any

# (parameters of the block, input (B, L, ...)) -> output. Pure, and hashable by value: it is a static argument. Every
# site is a tap (``quant.tap``) of its relative name.
BlockApply = Callable[[PyTree, jax.Array], jax.Array]

NORM = "norm"
LINEAR = "linear"


@dataclasses.dataclass(frozen=True)
class Part:
    """A module inside a block, as a function of one of its sites' input.

    Attributes:
      path: of its parameters in the block; '' for the whole block.
      apply: ``(its parameters, x) -> output``.
    """

    path: str
    apply: BlockApply


@dataclasses.dataclass(frozen=True)
class Pair:
    """A producer whose channels may be divided by what its consumers' input rows are multiplied with.

    Attributes:
      producer: name of a LayerNorm ('norm1'; parameters 'scale' and 'bias'), or of a Dense ('attn/qkv') if what lies
        between is positively homogeneous in every channel (nothing, ReLU, attention's weighted mean of values). None:
        nothing can be divided, and the scale stays beside the consumers' kernels.
      consumers: names of all sites that read the producer's output, and nothing else does.
      kind: 'norm' or 'linear', what the producer is.
      first: the producer's channel that feeds the consumers' channel 0 (values come last in a fused qkv).
      part: what a search compares instead of the block's output; see ``awq``.
    """

    producer: str | None
    consumers: tuple[str, ...]
    kind: str = NORM
    first: int = 0
    part: Part | None = None

    def __post_init__(self):
        object.__setattr__(self, "consumers", _tuple("a pair's consumers", self.consumers))


@dataclasses.dataclass(frozen=True)
class Block:
    """One block, without its place in the model.

    Attributes:
      apply: its function.
      sites: names of its sites in the order in which they run.
      pairs: in the order in which they are to be treated.
      queries_keys: (site, number of outputs): the first outputs of a site that only decide attention weights.
      input_axes: (site, number of leading axes of its kernel that are inputs), for kernels of more than two axes: 1 for
        the queries of a DenseGeneral (C, heads, head_dim), 2 for its output projection (heads, head_dim, C). The
        channels of what the site's tap sees are their product.
    """

    apply: BlockApply
    sites: tuple[str, ...]
    pairs: tuple[Pair, ...] = ()
    queries_keys: tuple[tuple[str, int], ...] = ()
    input_axes: tuple[tuple[str, int], ...] = ()

    def __post_init__(self):
        for name in ("sites", "pairs"):
            object.__setattr__(self, name, _tuple("a block's " + name, getattr(self, name)))
        for name in ("queries_keys", "input_axes"):
            object.__setattr__(self, name, tuple(tuple(entry) for entry in getattr(self, name)))

    def input_axes_of(self, site: str) -> int:
        """How many leading axes of a site's kernel are inputs; 1 unless stated."""
        return dict(self.input_axes).get(site, 1)


# Blocks that run one after the other, each on the output of the one before: (path, block).
Stack = tuple[tuple[str, Block], ...]


@dataclasses.dataclass(frozen=True)
class Topology:
    """The stacks of blocks of a model.

    Attributes:
      stacks: in the order in which they run. Calibration samples the input of each one's first block.
    """

    stacks: tuple[Stack, ...]

    def __post_init__(self):
        stacks = _tuple("a topology's stacks", self.stacks)
        if not all(_is_stack(stack) for stack in stacks):
            raise ValueError(
                "a topology is a tuple of stacks, a stack is one of (path, Block): (((path, block), ...),)"
            )
        object.__setattr__(self, "stacks", tuple(tuple(map(tuple, stack)) for stack in stacks))

    def blocks(self) -> list[tuple[str, Block]]:
        """All blocks with their paths."""
        return [entry for stack in self.stacks for entry in stack]

    def kernels(self) -> list[str]:
        """Names of the kernels of all sites."""
        return [paths.join(path, site, "kernel") for path, block in self.blocks() for site in block.sites]

    def first_blocks(self) -> list[str]:
        """Paths of the blocks whose inputs calibration samples."""
        return [stack[0][0] for stack in self.stacks if stack]

    def restricted(self, prefix: str) -> Topology:
        """The stacks whose first block lies under ``prefix``."""
        return Topology(tuple(stack for stack in self.stacks if stack and stack[0][0].startswith(f"{prefix}/")))


def _tuple(what: str, values: Any) -> tuple:
    """Lists count as tuples, which compiled functions can take as static arguments; a string is no list of names."""
    if not isinstance(values, (tuple, list)):
        raise ValueError(f"{what} are a tuple, not {values!r}")
    return tuple(values)


def _is_stack(stack: Any) -> bool:
    entries = stack if isinstance(stack, (tuple, list)) else [None]
    pairs = (isinstance(entry, (tuple, list)) and len(entry) == 2 for entry in entries)
    return all(pairs) and all(isinstance(path, str) and isinstance(block, Block) for path, block in entries)
