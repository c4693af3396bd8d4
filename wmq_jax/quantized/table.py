"""Many variants of a model in one stacked table, which one compiled program plans with."""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wmq_jax import quant
from wmq_jax.models import WorldModelConfig
from wmq_jax.quant import paths
from wmq_jax.quant.awq import check_scaled
from wmq_jax.quant.weights import check_groups
from wmq_jax.quantized.application import SEQUENCES, TOKENS
from wmq_jax.quantized.methods import METHODS, Method, MethodSettings
from wmq_jax.quantized.structure import MODULES, site_rules, sites, topology
from wmq_jax.quantized.variants import ModuleSpec, VariantSpec

PyTree = Any


def needs_statistics(spec: VariantSpec) -> bool:
    """Whether a variant needs calibration: static activation quantizers do, and some methods."""
    static = any(getattr(spec, module).act_granularity == "tensor" for module in MODULES)
    return static or any(method.statistics for _, method in _methods(spec))


def needed_samples(specs: Sequence[VariantSpec]) -> dict[str, int]:
    """Arguments of ``observe`` that collect no more than these variants need."""
    methods = [(method, getattr(spec, module)) for spec in specs for module, method in _methods(spec)]
    tokens = any(method.act_range == "omse" and part.act_granularity == "tensor" for method, part in methods)
    return {
        "tokens": TOKENS if tokens else 0,
        "sequences": SEQUENCES if any(method.block_inputs for method, _ in methods) else 0,
    }


def needs_qkv_bias(specs: Sequence[VariantSpec]) -> bool:
    """Whether a variant has a shift that only a bias of the predictor's to_qkv can take; see ``with_qkv_bias``."""
    return any(spec.predictor.method == "omniquant" for spec in specs)


def _grouping(spec: ModuleSpec, settings: MethodSettings) -> quant.WeightSpec:
    """What shares a scale in the kernels of a module, whatever their bits."""
    return quant.WeightSpec(None, spec.group_size, settings.layout)


def _methods(spec: VariantSpec) -> list[tuple[str, Method]]:
    """(module, its method) of the modules whose weights are quantized."""
    return [(module, METHODS[method]) for module in MODULES if (method := getattr(spec, module).method)]


def check_variants(
    config: WorldModelConfig,
    params: PyTree,
    specs: Sequence[VariantSpec],
    statistics: PyTree | None = None,
    settings: MethodSettings = MethodSettings(),
) -> None:
    """Checks on the host that the variants can be built.

    ``statistics`` are checked if they are given; what needs them and lacks them is found by ``build_variants``.

    Raises:
      ValueError: a kernel is missing, holds NaN or infinity, or cannot be cut into the groups of a variant, AWQ is to
        scale a pair that there is not, or the statistics of a site are missing, not finite, or of another width; it is
        named.
    """
    if not specs:
        raise ValueError("there are no variants to build")
    leaves = paths.named_leaves(params)
    names = [site for module in MODULES for site in sites(config)[module]]
    missing = [site for site in names if f"{site}/kernel" not in leaves]
    if missing:
        raise ValueError(f"the parameters lack '{missing[0]}/kernel', which this model configuration has")
    paths.check_finite("weight", leaves)
    for spec in specs:
        for module, method in _methods(spec):
            for site in sites(config)[module]:
                grouping = _grouping(getattr(spec, module), settings)
                check_groups(f"{site}/kernel", leaves[f"{site}/kernel"].shape, grouping)
            if (search := _awq_search(method, settings)) is not None:
                check_scaled(topology(config).restricted(module), search)
    if statistics is not None:
        seen = quant.site_statistics(statistics)
        unseen = [site for site in names if site not in seen]
        if unseen:
            raise ValueError(f"the calibration statistics lack site '{unseen[0]}'")
        quant.check_statistics({site: seen[site] for site in names})
        for site in names:
            width, channels = leaves[f"{site}/kernel"].shape[0], np.shape(seen[site].minimum)
            if isinstance(seen[site], quant.ChannelRange) and channels != (width,):
                raise ValueError(
                    f"the calibration statistics of site '{site}' have {channels[0]} channels, not {width}"
                )


def build_variants(
    config: WorldModelConfig,
    params: PyTree,
    specs: Sequence[VariantSpec],
    statistics: PyTree | None = None,
    settings: MethodSettings = MethodSettings(),
) -> dict[str, PyTree]:
    """All variants in one table, ``{'params': ..., 'quant': ...}`` with a leading axis V on every array.

    Every row has the structure of the model's variables: quantized weights as floats, and a quantizer for every site
    (off where the variant has none), so one compiled program takes any row. Bits and granularity are data: what is
    compiled depends on the shapes of kernels and blocks, and on methods and group sizes, not on the number of variants
    or on their bits. Rounding takes two programs a module and group size, one that rounds and one that expands.

    Args:
      config, params: the model, in full precision.
      specs: V variants.
      statistics: of ``calibrate``; needed by static activation quantizers.
      settings: of the methods, the same for all variants.

    Raises:
      ValueError: as ``check_variants``; or statistics are needed and None.
    """
    check_variants(config, params, specs, statistics, settings)
    _check_statistics_given(specs, statistics)

    # The integers are nobody's here.
    finished = _quantized_modules(config, params, specs, statistics, settings, lambda state: state._replace(codes={}))

    def row(spec: VariantSpec) -> dict[str, PyTree]:
        state = _assembled(config, params, spec, settings, finished)
        return {"params": state.params, "quant": state.quant}

    # Stacked on the host: what is compiled here must not depend on the number of variants.
    return jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *map(row, specs)))


def build_variant(
    config: WorldModelConfig,
    params: PyTree,
    spec: VariantSpec,
    statistics: PyTree | None = None,
    settings: MethodSettings = MethodSettings(),
) -> quant.State:
    """One variant with the integers behind it: ``params`` and ``quant`` are a row of ``build_variants`` bit for bit.

    ``statistics`` are those that hold for the quantized modules; arguments and errors as of ``build_variants``.
    """
    check_variants(config, params, [spec], statistics, settings)
    _check_statistics_given([spec], statistics)
    finished = _quantized_modules(config, params, [spec], statistics, settings)
    return jax.device_put(_assembled(config, params, spec, settings, finished))


def _check_statistics_given(specs: Sequence[VariantSpec], statistics: PyTree | None) -> None:
    wanting = [spec.text for spec in specs if needs_statistics(spec)] if statistics is None else []
    if wanting:
        raise ValueError(
            f"variant '{wanting[0]}' needs calibration statistics, as static activations, smoothquant, awq and "
            "omniquant do"
        )


def _assembled(
    config: WorldModelConfig,
    params: PyTree,
    spec: VariantSpec,
    settings: MethodSettings,
    finished: Mapping[tuple[str, ModuleSpec], quant.State],
) -> quant.State:
    """A variant of ``finished`` modules (by name and what decides their weights), with a quantizer for every site."""
    states, activations = {}, {}
    for module in MODULES:
        part: ModuleSpec = getattr(spec, module)
        states[module] = finished[module, part.weights_only()]
        bits = quant.NO_BITS if part.act_bits is None else part.act_bits
        ranges = _ranges(config, module, part, states[module].statistics, settings)
        activations[module] = ranges, np.int32(bits), part.act_granularity == "token"
    quantizers = _quantizers(activations, not settings.released)
    known = all(state.statistics is not None for state in states.values())
    return quant.State(
        params={**params, **{module: state.params[module] for module, state in states.items()}},
        quant=paths.nest({f"{site}/input": quantizer for site, quantizer in quantizers.items()}),
        statistics={module: state.statistics[module] for module, state in states.items()} if known else None,
        codes={name: codes for state in states.values() for name, codes in state.codes.items()},
    )


def _quantized_modules(
    config: WorldModelConfig,
    params: PyTree,
    specs: Sequence[VariantSpec],
    statistics: PyTree | None,
    settings: MethodSettings,
    keep: Callable[[quant.State], quant.State] = lambda state: state,
) -> dict[tuple[str, ModuleSpec], quant.State]:
    """What is kept of every module that the variants have, by its name and what decides its weights.

    On the host, so that a device holds one at a time beside the table. The modules know nothing of each other: each has
    a thread and, where there are several, a device of its own, which are the cores of a CPU as sweeps set it up.
    """
    devices = jax.local_devices()
    # What can be checked is, of all of them, before any search: its thread would go on beside an error.
    makers = {
        module: {part: _checked_module(config, params, statistics, settings, module, part) for part in parts}
        for module in MODULES
        for parts in [dict.fromkeys(getattr(spec, module).weights_only() for spec in specs)]
    }

    def work(number: int, module: str) -> dict[tuple[str, ModuleSpec], quant.State]:
        with jax.default_device(devices[number % len(devices)]):
            return {(module, part): jax.device_get(keep(make())) for part, make in makers[module].items()}

    pool = concurrent.futures.ThreadPoolExecutor(min(len(MODULES), len(devices)))
    try:
        found = [pool.submit(work, *task) for task in enumerate(MODULES)]
        return {key: state for part in found for key, state in part.result().items()}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # an interrupted search is not waited for


def _checked_module(
    config: WorldModelConfig,
    params: PyTree,
    statistics: PyTree | None,
    settings: MethodSettings,
    module: str,
    spec: ModuleSpec,
) -> Callable[[], quant.State]:
    """Gives a module with quantized weights, and the statistics of its sites afterwards; raises what its check says."""
    own = None if statistics is None else {module: statistics[module]}
    state = quant.State({module: params[module]}, {}, own)
    if spec.method is None:
        return lambda: state
    transform = METHODS[spec.method].transform(spec, site_rules(config, module, "kernel"), settings)
    part = topology(config, settings.released).restricted(module)
    transform.check(state, part)
    return functools.partial(transform.apply, state, part)


def _ranges(
    config: WorldModelConfig, module: str, spec: ModuleSpec, statistics: PyTree | None, settings: MethodSettings
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Site -> the range that a static quantizer covers; zeros, which only give shapes, where nothing was observed."""
    if statistics is None:
        return dict.fromkeys(sites(config)[module], (np.float32(0), np.float32(0)))
    seen = {site: quant.site_statistics(statistics)[site] for site in sites(config)[module]}
    method = METHODS[spec.method] if spec.method else None
    if method is None or spec.act_granularity != "tensor" or method.act_range == "observed":
        return _observed_ranges(seen)
    activation = quant.ActivationSpec(spec.act_bits, not settings.released, method.act_range)
    return {site: quant.static_range(statistic, activation) for site, statistic in seen.items()}


@jax.jit
def _observed_ranges(seen: dict[str, Any]) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Site -> the range of its statistic, of all sites in one program."""
    return {site: statistic.range() for site, statistic in seen.items()}


@functools.partial(jax.jit, static_argnames="include_zero")
def _quantizers(
    activations: dict[str, tuple[dict[str, tuple[jax.Array, jax.Array]], jax.Array, jax.Array]], include_zero: bool
) -> dict[str, quant.Quantizer]:
    """Site -> quantizer, per token or on the range of the site; off for ``NO_BITS``.

    Args:
      activations: module -> (site -> range, bits, whether per token); all of it is data of one program.
      include_zero: static; see ``quant.ActivationSpec``.
    """
    quantizers = {}
    for ranges, bits, per_token in activations.values():
        dynamic = quant.per_token_quantizer(bits, include_zero=include_zero)
        for site, seen in ranges.items():
            choose = functools.partial(jnp.where, per_token)
            static = quant.static_quantizer(*seen, bits, include_zero=include_zero)
            quantizers[site] = jax.tree.map(choose, dynamic, static)
    return quantizers


def size_bytes(
    config: WorldModelConfig, params: PyTree, spec: VariantSpec, settings: MethodSettings = MethodSettings()
) -> int:
    """Bytes that a variant takes when its integers are packed.

    Counts, for every quantized kernel, ``bits`` a weight (rounded up to whole bytes), a float32 scale a group, and one
    an input where a scale stays beside the kernel (``Q(W s) / s``); for every static activation quantizer a float32
    scale and zero point; everything else in ``params`` at its own size (leave the decoder out of ``params`` for what
    planning needs). The grids of all methods here are symmetric: weights
    have no zero points. A checkpoint of ``experiments.quantize`` stores just that.
    """
    leaves = paths.named_leaves(params)
    total = sum(leaf.nbytes for leaf in leaves.values())
    for module in MODULES:
        part: ModuleSpec = getattr(spec, module)
        beside = _scaled_beside(config, module, part, settings)
        for site in sites(config)[module]:
            kernel = leaves[f"{site}/kernel"]
            if part.weight_bits is not None:
                rows, groups, _ = quant.group_shape(kernel.shape, _grouping(part, settings))
                total += -(-kernel.size * part.weight_bits // 8) + 4 * rows * groups - kernel.nbytes
                total += 4 * kernel.shape[0] * (site in beside)
            if part.act_granularity == "tensor":
                total += 8
    return total


def _awq_search(method: Method, settings: MethodSettings) -> quant.AWQSpec | None:
    """Which pairs a method scales as AWQ does; None if it does not."""
    pattern = method.scaled(settings)
    return None if pattern is None else quant.AWQSpec(quant.WeightSpec(None), pattern)


def _scaled_beside(config: WorldModelConfig, module: str, spec: ModuleSpec, settings: MethodSettings) -> set[str]:
    """The sites of a module whose method keeps a scale of their inputs beside the kernel."""
    search = _awq_search(METHODS[spec.method], settings) if spec.method else None
    if search is None:
        return set()
    blocks = topology(config).restricted(module).blocks()
    pairs = [(path, pair) for path, block in blocks for pair in search.pairs(block) if pair.producer is None]
    return {f"{path}/{consumer}" for path, pair in pairs for consumer in pair.consumers}
