"""Round-to-nearest weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from wmq_jax.quant import paths, weights
from wmq_jax.quant.rules import Rule, match_rules
from wmq_jax.quant.transform import State, Transform

KERNELS = "(.*/)?kernel"


def rtn(
    bits,
    group_size: int | None = None,
    layout: str = "padded",
    output_axes: tuple[int, ...] = (-1,),
    rules: Sequence[Rule] = (KERNELS,),
) -> Transform:
    """Rounds weights to the nearest code of a symmetric grid per output channel or per group.

    The scale is ``max|w| / ((2**bits - 1) / 2)``; see ``weights.absmax_grid``.

    Args:
      bits: 2..15, or None, 16 or 32 for none; may be traced.
      group_size, layout, output_axes: see ``weights.WeightSpec``.
      rules: ordered rules over the names of parameters ('encoder/blocks_0/attn/qkv/kernel');
        their settings are the fields of ``WeightSpec``. Default: every leaf called 'kernel'.
    """
    default = weights.WeightSpec(bits, group_size, layout, output_axes)

    def specs(params) -> dict[str, weights.WeightSpec]:
        matched = match_rules(rules, paths.named_leaves(params), default)
        return {name: spec for name, spec in matched.items() if spec is not None}

    def check(state: State, topology: Any = None) -> None:
        del topology
        leaves = paths.named_leaves(state.params)
        chosen = specs(state.params)
        for name, spec in chosen.items():
            if not jnp.issubdtype(jnp.result_type(leaves[name]), jnp.floating):
                raise ValueError(f"weight '{name}' is {jnp.result_type(leaves[name])}, not floating point")
            _check_groups(name, leaves[name], spec)
        paths.check_finite("weight", {name: leaves[name] for name in chosen})

    def apply(state: State, topology: Any = None) -> State:
        del topology
        chosen = specs(state.params)

        def quantize(name, leaf):
            return weights.fake_quant_weight(leaf, chosen[name]) if name in chosen else leaf

        return state._replace(params=paths.map_named(quantize, state.params))

    return Transform(check, apply)


def _check_groups(name: str, leaf, spec: weights.WeightSpec) -> None:
    try:
        weights.group_shape(leaf.shape, spec)
    except ValueError as error:
        raise ValueError(f"weight '{name}': {error}") from None
