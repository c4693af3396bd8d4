"""Post-training quantization as composable transforms over any pytree of parameters.

Nothing here needs more than jax and numpy. ``wmq_jax.quant.linen`` adapts Flax Linen models and is
imported on request.
"""

from wmq_jax.quant.activations import ActivationSpec, dynamic_activations, kernel_sites, static_activations
from wmq_jax.quant.calibration import calibrate, check_statistics, merge_statistics, site_statistics
from wmq_jax.quant.grid import (
    MAX_BITS,
    MIN_BITS,
    NO_BITS,
    Grid,
    canonical_bits,
    decode,
    encode,
    exact_divide,
    levels,
    signed_limits,
    straight_through_round,
    unsigned_limits,
)
from wmq_jax.quant.observers import Observer, Range, minmax
from wmq_jax.quant.quantizer import (
    OFF,
    PER_TOKEN,
    STATIC,
    Quantizer,
    fake_quant,
    no_quantizer,
    per_token_quantizer,
    static_quantizer,
)
from wmq_jax.quant.round_to_nearest import rtn
from wmq_jax.quant.rules import Rule, match_rules
from wmq_jax.quant.transform import State, Transform, chain, quantize
from wmq_jax.quant.weights import WeightSpec, absmax_grid, fake_quant_weight, from_groups, group_shape, to_groups

__all__ = [
    "ActivationSpec",
    "Grid",
    "MAX_BITS",
    "MIN_BITS",
    "NO_BITS",
    "OFF",
    "Observer",
    "PER_TOKEN",
    "Quantizer",
    "Range",
    "Rule",
    "STATIC",
    "State",
    "Transform",
    "WeightSpec",
    "absmax_grid",
    "calibrate",
    "canonical_bits",
    "chain",
    "check_statistics",
    "decode",
    "dynamic_activations",
    "encode",
    "exact_divide",
    "fake_quant",
    "fake_quant_weight",
    "from_groups",
    "group_shape",
    "kernel_sites",
    "levels",
    "match_rules",
    "merge_statistics",
    "minmax",
    "no_quantizer",
    "per_token_quantizer",
    "quantize",
    "rtn",
    "signed_limits",
    "site_statistics",
    "static_activations",
    "static_quantizer",
    "straight_through_round",
    "to_groups",
    "unsigned_limits",
]
