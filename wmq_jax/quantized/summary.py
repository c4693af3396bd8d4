"""What quantization did to a model: figures of every site, errors of every block, sizes.

Errors of blocks are compared with those of round-to-nearest at the same bits, on the same inputs, so that the
comparison is paired and says what a method bought.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from wmq_jax import quant
from wmq_jax.models import WorldModelConfig
from wmq_jax.quant import paths
from wmq_jax.quantized.structure import MODULES, sites, topology
from wmq_jax.quantized.variants import ModuleSpec, VariantSpec

PyTree = Any

_RESAMPLES = 4000


class Estimate(NamedTuple):
    """A geometric mean over inputs with its 95 % interval."""

    mean: float
    low: float
    high: float


def geometric_mean(values: np.ndarray) -> Estimate:
    """The geometric mean of positive values, its interval by a bootstrap over them (percentiles, fixed seed)."""
    logs = np.log(np.maximum(values, np.finfo(np.float32).tiny))
    drawn = np.random.RandomState(0).randint(len(logs), size=(_RESAMPLES, len(logs)))
    low, high = np.percentile(logs[drawn].mean(1), [2.5, 97.5])
    return Estimate(*(float(np.exp(x)) for x in (logs.mean(), low, high)))


def plain_rounding(spec: VariantSpec) -> VariantSpec:
    """The same bits, groups and activations by round-to-nearest."""

    def plain(part: ModuleSpec) -> ModuleSpec:
        return part if part.method is None else dataclasses.replace(part, method="rtn")

    return VariantSpec(**{module: plain(getattr(spec, module)) for module in MODULES})


def block_errors(
    config: WorldModelConfig, params: PyTree, variant: quant.State, inputs: PyTree
) -> dict[str, np.ndarray]:
    """Block -> relative squared errors (n,) of its output, one for each input that was kept.

    Every block is looked at alone: it gets what the float blocks before it give, so errors do not add up.

    Args:
      config, params: the model, in full precision.
      variant: of ``build_variant``.
      inputs: statistics with samples of the inputs of first blocks, which no search has seen.
    """
    seen, errors = quant.block_statistics(inputs), {}
    for stack in topology(config).stacks:
        sample = seen[stack[0][0]]
        kept = np.flatnonzero(np.asarray(sample.priority))
        x, mask = sample.inputs[kept], sample.mask()[kept]
        for path, block in stack:
            own = (paths.subtree(params, path), paths.subtree(variant.params, path))
            quantizers = {site: paths.subtree(variant.quant, f"{path}/{site}/input") for site in block.sites}
            x, found = _block_error(*own, quantizers, x, mask, block)
            errors[path] = np.asarray(found)
    return errors


@functools.partial(jax.jit, static_argnames="block")
def _block_error(params, quantized, quantizers, x, mask, block: quant.Block) -> tuple[jax.Array, jax.Array]:
    """The float block's output, and the relative squared error (n,) of the quantized one's."""
    exact = block.apply(params, x)
    quantize = lambda site, _, value: (quant.fake_quant(value, quantizers[site]), None)
    output, _ = quant.thread(block.apply, quantize)({}, quantized, x)
    weight = mask.reshape(mask.shape + (1,) * (exact.ndim - mask.ndim))
    total = lambda values: (weight * values**2).reshape(len(values), -1).sum(1)
    return exact, total(output - exact) / total(exact)


def summarize_blocks(
    spec: VariantSpec, found: dict[str, np.ndarray], plain: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """One entry a block of a quantized module: its error, round-to-nearest's, and their paired ratio.

    Args:
      spec: the variant.
      found, plain: of ``block_errors``, of the variant and of ``plain_rounding``.
    """
    quantized = [path for path in found if getattr(spec, path.partition("/")[0]) != ModuleSpec()]
    return [
        {
            "block": path,
            "inputs": len(found[path]),
            "error": geometric_mean(found[path])._asdict(),
            "rtn": geometric_mean(plain[path])._asdict(),
            "ratio": geometric_mean(found[path] / plain[path])._asdict(),
        }
        for path in quantized
    ]


def summarize_sites(config: WorldModelConfig, spec: VariantSpec, variant: quant.State) -> list[dict[str, Any]]:
    """One entry a site: bits, groups, range of scales, ratio of signal to noise, bytes, activation quantizer.

    ``sqnr_db`` compares the kernel with what was rounded, re-scaled where the method re-scales; None without noise.
    """
    entries = []
    for module in MODULES:
        part: ModuleSpec = getattr(spec, module)
        for site in sites(config)[module]:
            kernel = paths.subtree(variant.params, f"{site}/kernel")
            entry = {"site": site, "bits": part.weight_bits, "group_size": part.group_size}
            entry |= {"scale": None, "sqnr_db": None, "bytes": kernel.nbytes, "float_bytes": kernel.nbytes}
            codes = variant.codes.get(f"{site}/kernel")
            if codes is not None:
                scale, sqnr = np.asarray(codes.grid.scale), codes.sqnr
                entry["scale"] = [float(scale.min()), float(scale.max())]
                entry["sqnr_db"] = sqnr if math.isfinite(sqnr) else None
                entry["bytes"] = quant.packed_nbytes(codes)
            quantizer = paths.subtree(variant.quant, f"{site}/input")
            entries.append({**entry, "activations": _describe_quantizer(quantizer, part)})
    return entries


def summarize_sizes(params: PyTree, variant: quant.State) -> dict[str, dict[str, int]]:
    """Bytes by part of the model and in all, as stored (integers packed) and in floating point.

    ``planning`` is all but the decoder, as sweeps count; static activation quantizers have a scale and a zero point.

    Args:
      params: the model in floating point.
      variant: of ``build_variant``; its activation quantizers count.
    """
    sizes = {name: {"bytes": 0, "float_bytes": 0} for name in sorted(params)}
    stored = lambda name, leaf: quant.packed_nbytes(variant.codes[name]) if name in variant.codes else leaf.nbytes
    for name, leaf in paths.named_leaves(variant.params).items():
        sizes[name.partition("/")[0]]["bytes"] += stored(name, leaf)
    for name, leaf in paths.named_leaves(params).items():
        sizes[name.partition("/")[0]]["float_bytes"] += leaf.nbytes
    named = paths.named_leaves(variant.quant, is_leaf=lambda node: isinstance(node, quant.Quantizer))
    for name, quantizer in named.items():
        sizes[name.partition("/")[0]]["bytes"] += 8 * int(quantizer.mode == quant.STATIC)
    together = lambda names: {kind: sum(sizes[name][kind] for name in names) for kind in ("bytes", "float_bytes")}
    names = list(sizes)
    return {**sizes, "planning": together([n for n in names if n != "decoder"]), "total": together(names)}


def _describe_quantizer(quantizer: quant.Quantizer, part: ModuleSpec) -> dict[str, Any] | None:
    if quantizer.mode == quant.OFF:
        return None
    described = {"bits": part.act_bits, "granularity": part.act_granularity}
    if quantizer.mode == quant.STATIC:
        described |= {"scale": float(quantizer.scale), "zero_point": int(quantizer.zero_point)}
    return described
