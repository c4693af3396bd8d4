"""Activation quantizers: static per-tensor grids from statistics, dynamic per-token ones."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wmq_jax.quant import calibration, paths
from wmq_jax.quant.grid import NO_BITS, canonical_bits
from wmq_jax.quant.omse import omse_range
from wmq_jax.quant.quantizer import (
    OFF,
    PER_TOKEN,
    STATIC,
    Quantizer,
    no_quantizer,
    per_token_quantizer,
    static_quantizer,
)
from wmq_jax.quant.rules import Rule, match_rules
from wmq_jax.quant.transform import State, Transform

EVERY_SITE = ".*"
RANGES = ("observed", "omse")


@dataclasses.dataclass(frozen=True)
class ActivationSpec:
    """How the input of a site is quantized.

    Attributes:
      bits: 2..15 or none (None, 16, 32); may be traced.
      include_zero: extend ranges to contain 0; False is the released behaviour (see
        ``static_quantizer`` and ``per_token_quantizer``).
      range: of a static quantizer: 'observed', as the statistic has it (smallest and largest value, their moving
        average, quantiles: the observer decides), or 'omse', the part of it that rounds the sampled tokens best
        (``omse_range``; needs ``channel_ranges`` with room for tokens).
    """

    bits: int | jax.Array | None
    include_zero: bool = True
    range: str = "observed"

    def __post_init__(self):
        canonical_bits(self.bits)
        if self.range not in RANGES:
            raise ValueError(f"range must be one of {', '.join(RANGES)}, not {self.range!r}")


def static_activations(
    bits,
    include_zero: bool = True,
    range: str = "observed",
    rules: Sequence[Rule] = (EVERY_SITE,),
    sites: Sequence[str] | None = None,
) -> Transform:
    """Per-tensor quantizers on the ranges that calibration saw.

    Args:
      bits, include_zero, range: see ``ActivationSpec``.
      rules: ordered rules over site names ('encoder/blocks_0/attn/qkv'); their settings are the
        fields of ``ActivationSpec``. Default: every site of the statistics.
      sites: the names to choose from, each of which calibration must have seen; default: those that it saw. What it
        could not see stays in floating point, such as the kernels of a recurrent cell, which are multiplied by no
        Dense; ``kernel_sites(params)`` names them, too.

    Raises:
      ValueError: ``sites`` is one string; (the transform) there are no statistics, or none of one of the ``sites``.
    """
    default, asked = ActivationSpec(bits, include_zero, range), _site_names(sites)

    def chosen(state: State) -> dict[str, tuple[ActivationSpec, Any]]:
        if state.statistics is None:
            raise ValueError("static activation quantizers need calibration statistics; got None")
        seen = calibration.site_statistics(state.statistics)
        unseen = [site for site in asked or () if site not in seen]
        if unseen:
            raise ValueError(
                f"calibration saw no site '{unseen[0]}', which was asked for; it saw {', '.join(seen) or 'nothing'}"
            )
        matched = match_rules(rules, seen if asked is None else asked, default)
        return {site: (spec, seen[site]) for site, spec in matched.items() if spec is not None}

    def check(state: State, topology: Any = None) -> None:
        del topology
        calibration.check_statistics({site: statistic for site, (_, statistic) in chosen(state).items()})
        for site, (spec, statistic) in chosen(state).items():
            priority = getattr(statistic, "priority", np.zeros(0))
            if spec.range == "omse" and paths.is_known(priority) and not np.asarray(priority).any():
                raise ValueError(
                    f"the statistic of site '{site}' has no tokens; observe with channel_ranges(tokens=...)"
                )

    def apply(state: State, topology: Any = None) -> State:
        del topology
        return _with_quantizers(
            state,
            {
                site: static_quantizer(*static_range(seen, spec), spec.bits, include_zero=spec.include_zero)
                for site, (spec, seen) in chosen(state).items()
            },
        )

    def mark(state: State, topology: Any = None) -> State:
        del topology
        return _with_quantizers(state, {site: _marked(spec.bits, STATIC) for site, (spec, _) in chosen(state).items()})

    return Transform(check, apply, mark)


def dynamic_activations(
    bits, include_zero: bool = True, rules: Sequence[Rule] = (EVERY_SITE,), sites: Sequence[str] | None = None
) -> Transform:
    """Per-token quantizers; they need no statistics.

    Args:
      bits, include_zero: see ``ActivationSpec``. An int32 array of bits makes a stack of
        quantizers, one for each scanned layer.
      rules: as in ``static_activations``.
      sites: the names to choose from; default: the owner of every parameter called 'kernel', and where there are
        statistics, what calibration saw. Of two layers that share one kernel, parameters name one.
    """
    default, asked = ActivationSpec(bits, include_zero), _site_names(sites)

    def chosen(state: State) -> dict[str, ActivationSpec]:
        names = asked
        if names is None:
            seen = {} if state.statistics is None else calibration.site_statistics(state.statistics)
            names = list(dict.fromkeys([*kernel_sites(state.params), *seen]))
        if not names:
            raise ValueError("no parameter is called 'kernel', whose owners are the sites; name them: sites=[...]")
        matched = match_rules(rules, names, default)
        return {site: spec for site, spec in matched.items() if spec is not None}

    def check(state: State, topology: Any = None) -> None:
        del topology
        chosen(state)

    def apply(state: State, topology: Any = None) -> State:
        del topology
        return _with_quantizers(
            state,
            {
                site: per_token_quantizer(spec.bits, include_zero=spec.include_zero)
                for site, spec in chosen(state).items()
            },
        )

    def mark(state: State, topology: Any = None) -> State:
        del topology
        return _with_quantizers(state, {site: _marked(spec.bits, PER_TOKEN) for site, spec in chosen(state).items()})

    return Transform(check, apply, mark)


def static_range(statistic: Any, spec: ActivationSpec) -> tuple[jax.Array, jax.Array]:
    """The smallest and the largest value that a static quantizer covers at a site with this statistic."""
    low, high = statistic.range()
    if spec.range == "observed":
        return low, high
    search = functools.partial(omse_range, include_zero=spec.include_zero)
    weights = (statistic.priority > 0).astype(jnp.float32)
    layers = statistic.count.shape
    if not layers:
        return search(low, high, spec.bits, statistic.tokens, weights)
    bits = jnp.broadcast_to(jnp.asarray(canonical_bits(spec.bits)), layers)  # scanned layers have tokens of their own
    for _ in layers:
        search = jax.vmap(search)
    return search(low, high, bits, statistic.tokens, weights)


def kernel_sites(params: Any) -> list[str]:
    """Names of the modules that own a parameter called 'kernel'."""
    names = (name.rpartition("/") for name in paths.named_leaves(params))
    return [owner for owner, _, leaf in names if leaf == "kernel"]


def _site_names(sites: Sequence[str] | None) -> tuple[str, ...] | None:
    if isinstance(sites, str):
        raise ValueError(f"sites must be names of sites, not the one string {sites!r}")
    return None if sites is None else tuple(sites)


def _marked(bits, mode: int) -> Quantizer:
    """A quantizer of which the mode alone counts: known also under ``jit``, if the bits are."""
    bits = canonical_bits(bits)
    quantized = np.asarray(bits) < NO_BITS if paths.is_known(bits) else False
    return no_quantizer()._replace(mode=np.where(quantized, mode, OFF))


def _with_quantizers(state: State, quantizers: dict[str, Quantizer]) -> State:
    """``state`` with these quantizers added; a later transform replaces an earlier one's."""
    flat = {paths.join(site, calibration.INPUT): quantizer for site, quantizer in quantizers.items()}
    return state._replace(quant=paths.nest(flat, state.quant))
