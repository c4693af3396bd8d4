"""Post-training quantization as composable transforms over any pytree of parameters.

Nothing here needs more than jax and numpy. ``wmq_jax.quant.linen`` and ``wmq_jax.quant.nnx`` adapt Flax models and
are imported on request.
"""

from wmq_jax.quant.activations import (
    ActivationSpec,
    dynamic_activations,
    kernel_sites,
    static_activations,
    static_range,
)
from wmq_jax.quant.awq import AWQSpec, awq, awq_block
from wmq_jax.quant.calibration import (
    block_statistics,
    calibrate,
    check_statistics,
    merge_statistics,
    site_statistics,
    statistics_from_arrays,
    statistics_to_arrays,
)
from wmq_jax.quant.equalization import rescale, rescale_statistics, smoothing_scale
from wmq_jax.quant.functions import observe, quantized_apply
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
from wmq_jax.quant.learned_clipping import INITIAL_FACTOR, lwc_grid
from wmq_jax.quant.observers import Observer, channel_ranges, ema, minmax, percentile, sequences
from wmq_jax.quant.omniquant import OmniQuantSpec, omniquant, omniquant_block
from wmq_jax.quant.omse import ClippingSearch, omse, omse_grid, omse_range, released_omse_grid
from wmq_jax.quant.packing import PackedKernel, expand_kernel, pack_kernel
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
from wmq_jax.quant.smoothquant import smoothquant
from wmq_jax.quant.statistics import AverageRange, ChannelRange, Range, Sequences
from wmq_jax.quant.taps import tap, thread
from wmq_jax.quant.topology import LINEAR, NORM, Block, Pair, Part, Topology
from wmq_jax.quant.transform import State, Transform, chain, quantize
from wmq_jax.quant.weights import (
    RELEASED_SCALE_LIMITS,
    RangeGrid,
    WeightSpec,
    absmax_grid,
    fake_quant_weight,
    from_groups,
    group_shape,
    range_grid,
    released_range_grid,
    round_to_grids,
    to_groups,
)

__all__ = [
    "AWQSpec",
    "ActivationSpec",
    "AverageRange",
    "Block",
    "ChannelRange",
    "ClippingSearch",
    "Grid",
    "INITIAL_FACTOR",
    "LINEAR",
    "MAX_BITS",
    "MIN_BITS",
    "NORM",
    "NO_BITS",
    "OFF",
    "Observer",
    "OmniQuantSpec",
    "PER_TOKEN",
    "PackedKernel",
    "Pair",
    "Part",
    "Quantizer",
    "RELEASED_SCALE_LIMITS",
    "Range",
    "RangeGrid",
    "Rule",
    "STATIC",
    "Sequences",
    "State",
    "Topology",
    "Transform",
    "WeightSpec",
    "absmax_grid",
    "awq",
    "awq_block",
    "block_statistics",
    "calibrate",
    "canonical_bits",
    "chain",
    "channel_ranges",
    "check_statistics",
    "decode",
    "dynamic_activations",
    "ema",
    "encode",
    "exact_divide",
    "expand_kernel",
    "fake_quant",
    "fake_quant_weight",
    "from_groups",
    "group_shape",
    "kernel_sites",
    "levels",
    "lwc_grid",
    "match_rules",
    "merge_statistics",
    "minmax",
    "no_quantizer",
    "observe",
    "omniquant",
    "omniquant_block",
    "omse",
    "omse_grid",
    "omse_range",
    "pack_kernel",
    "per_token_quantizer",
    "percentile",
    "quantize",
    "quantized_apply",
    "range_grid",
    "released_omse_grid",
    "released_range_grid",
    "rescale",
    "rescale_statistics",
    "round_to_grids",
    "rtn",
    "sequences",
    "signed_limits",
    "site_statistics",
    "smoothing_scale",
    "smoothquant",
    "static_activations",
    "static_quantizer",
    "static_range",
    "statistics_from_arrays",
    "statistics_to_arrays",
    "straight_through_round",
    "tap",
    "thread",
    "to_groups",
    "unsigned_limits",
]
