"""Transforms that quantize kernels one at a time, each on the grids of its own groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp

from wmq_jax.quant import paths, weights
from wmq_jax.quant.grid import NO_BITS, canonical_bits
from wmq_jax.quant.rules import Rule, match_rules
from wmq_jax.quant.transform import State, Transform, mark_codes

KERNELS = "(.*/)?kernel"


def per_kernel(default: weights.WeightSpec, grid_fn: weights.GridFn, rules: Sequence[Rule] = (KERNELS,)) -> Transform:
    """Replaces every kernel that the rules choose by its values on the grids of ``grid_fn``.

    Args:
      default: settings of a rule that states none.
      grid_fn: ``(groups, bits) -> Grid``, hashable (see ``weights.GridFn``).
      rules: ordered rules over the names of parameters ('encoder/blocks_0/attn/qkv/kernel');
        their settings are the fields of ``WeightSpec``. Default: every leaf called 'kernel'.

    Raises:
      ValueError: from ``check``: NaN, infinity, integers, groups that do not fit, or a kernel that an earlier transform
        of the chain rounds. It is named.
    """

    def specs(params) -> dict[str, weights.WeightSpec]:
        matched = match_rules(rules, paths.named_leaves(params), default)
        return {name: spec for name, spec in matched.items() if spec is not None}

    def rounded(params) -> dict[str, weights.WeightSpec]:
        return {name: spec for name, spec in specs(params).items() if not _known_none(spec)}

    def check(state: State, topology: Any = None) -> None:
        del topology
        leaves = paths.named_leaves(state.params)
        chosen = specs(state.params)
        for name, spec in chosen.items():
            if not jnp.issubdtype(jnp.result_type(leaves[name]), jnp.floating):
                raise ValueError(f"weight '{name}' is {jnp.result_type(leaves[name])}, not floating point")
            if jnp.result_type(leaves[name]).itemsize < 2:
                raise ValueError(f"weight '{name}' is {jnp.result_type(leaves[name])}; quantize what it was made of")
            weights.check_groups(name, leaves[name].shape, spec)
        paths.check_finite("weight", {name: leaves[name] for name in chosen})
        _check_first(state, rounded(state.params))

    def apply(state: State, topology: Any = None) -> State:
        del topology
        leaves = paths.named_leaves(state.params)
        chosen = rounded(state.params)
        _check_first(state, chosen)
        kernels = {name: leaves[name] for name in chosen}
        codes = weights.quantize_kernels(kernels, chosen, grid_fn)
        bits = {name: canonical_bits(spec.bits) for name, spec in chosen.items()}
        floats = weights.expanded_or(kernels, codes, bits)
        params = paths.map_named(lambda name, leaf: floats.get(name, leaf), state.params)
        return state._replace(params=params, codes=state.codes | codes)

    def mark(state: State, topology: Any = None) -> State:
        del topology
        return mark_codes(state, rounded(state.params))

    return Transform(check, apply, mark)


def _known_none(spec: weights.WeightSpec) -> bool:
    """Whether no quantization is asked for; traced bits may always ask for some."""
    bits = canonical_bits(spec.bits)
    return isinstance(bits, int) and bits == NO_BITS


def _check_first(state: State, names: Iterable[str]) -> None:
    """Rounding what is rounded adds its errors up, and would be compared with rounded weights afterwards."""
    for name in names:
        if name in state.codes:
            raise ValueError(
                f"weight '{name}' is rounded already by a transform before this one: let the rules of one of the two "
                "leave it alone (smoothquant, or awq with rounded=False, go before another rounding)"
            )
