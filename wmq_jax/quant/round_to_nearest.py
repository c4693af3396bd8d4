"""Round-to-nearest weights."""

from __future__ import annotations

from collections.abc import Sequence

from wmq_jax.quant.per_kernel import KERNELS, per_kernel
from wmq_jax.quant.rules import Rule
from wmq_jax.quant.transform import Transform
from wmq_jax.quant.weights import WeightSpec, absmax_grid, released_absmax_grid


def rtn(
    bits,
    group_size: int | None = None,
    layout: str = "padded",
    output_axes: tuple[int, ...] | None = None,
    rules: Sequence[Rule] = (KERNELS,),
    released_limits: bool = False,
) -> Transform:
    """Rounds weights to the nearest code of a symmetric grid per output channel or per group.

    The scale is ``max|w| / ((2**bits - 1) / 2)``; see ``weights.AbsmaxGrid``.

    Args:
      bits: 2..15, or None, 16 or 32 for none; may be traced.
      group_size, layout, output_axes: see ``weights.WeightSpec``.
      rules: see ``per_kernel``.
      released_limits: keep scales at 2^-23 or above, as the released code does: weights below 6e-8 become 0.
    """
    grid_fn = released_absmax_grid if released_limits else absmax_grid
    return per_kernel(WeightSpec(bits, group_size, layout, output_axes), grid_fn, rules)
