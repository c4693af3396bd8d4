"""Where quantization meets DINO-WM: its sites and blocks, variants by name, the stacked table of variants."""

from wmq_jax.quantized.application import calibrate, observe, quantized_apply
from wmq_jax.quantized.methods import METHODS, MethodSettings
from wmq_jax.quantized.structure import MODULES, site_rules, sites, topology, with_qkv_bias
from wmq_jax.quantized.summary import (
    block_errors,
    plain_rounding,
    summarize_blocks,
    summarize_sites,
    summarize_sizes,
)
from wmq_jax.quantized.summary_text import format_summary
from wmq_jax.quantized.table import (
    build_variant,
    build_variants,
    check_variants,
    needed_samples,
    needs_qkv_bias,
    needs_statistics,
    size_bytes,
)
from wmq_jax.quantized.variants import GRANULARITIES, ModuleSpec, VariantSpec, parse_variant

__all__ = [
    "GRANULARITIES",
    "METHODS",
    "MethodSettings",
    "MODULES",
    "ModuleSpec",
    "VariantSpec",
    "block_errors",
    "build_variant",
    "build_variants",
    "calibrate",
    "check_variants",
    "format_summary",
    "needed_samples",
    "needs_qkv_bias",
    "needs_statistics",
    "observe",
    "parse_variant",
    "plain_rounding",
    "quantized_apply",
    "site_rules",
    "sites",
    "size_bytes",
    "summarize_blocks",
    "summarize_sites",
    "summarize_sizes",
    "topology",
    "with_qkv_bias",
]
