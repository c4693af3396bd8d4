"""Where quantization meets DINO-WM: variants, the sites of the model, the stacked table of variants.

A *site* is a Dense of the transformer blocks, named by its module path ('encoder/blocks_0/attn/qkv'): its kernel is quantized
as a weight, its input as an activation. Everything else stays in floating point (norms, softmax, patch embedding,
position tables, biases, LayerScale, the proprioception and action encoders).
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wmq_jax import quant
from wmq_jax.models import WorldModel, WorldModelConfig
from wmq_jax.models.dinov2 import Block as DinoBlock
from wmq_jax.models.dinov2 import Mlp
from wmq_jax.models.predictor import FeedForward
from wmq_jax.models.predictor import Layer as PredictorLayer
from wmq_jax.quant import linen, paths

PyTree = Any

MODULES = ("encoder", "predictor")
GRANULARITIES = ("tensor", "token")
GRAMMAR = (
    "'fp', or [method:]wB[gG][aB[-tensor|-token]] for both modules ('w4', 'w4g32', 'w8a8-token'), or encoder=<spec>, "
    "predictor=<spec> or both with a comma between"
)

# (bits, group_size, rules) -> transform of the weights of one module.
METHODS: Mapping[str, Callable[..., quant.Transform]] = {
    "rtn": lambda bits, group_size, rules: quant.rtn(bits, group_size, rules=rules),
}

_SPEC = re.compile(
    r"(?:(?P<method>[a-z]\w*):)?w(?P<weight>\d+)(?:g(?P<group>\d+))?(?:a(?P<act>\d+)(?:-(?P<gran>\w+))?)?"
)


@dataclasses.dataclass(frozen=True)
class ModuleSpec:
    """How one module is quantized; the default is full precision.

    Attributes:
      weight_bits: 2..15, or None for floating point (16 and 32 become None).
      group_size: input values that share a weight scale; None: one scale an output channel.
      act_bits: bits of the inputs of its sites, as ``weight_bits``.
      act_granularity: 'tensor' (static, needs calibration) or 'token' (dynamic); None without ``act_bits``.
      method: of the weights, a key of ``METHODS``; None without ``weight_bits``.
    """

    weight_bits: int | None = None
    group_size: int | None = None
    act_bits: int | None = None
    act_granularity: str | None = None
    method: str | None = None

    def __post_init__(self):
        for field in ("weight_bits", "act_bits"):
            bits = quant.canonical_bits(getattr(self, field))
            object.__setattr__(self, field, None if bits == quant.NO_BITS else bits)
        if self.weight_bits is None and (self.group_size is not None or self.method is not None):
            raise ValueError("a group size or a method needs weight bits below 16")
        if self.weight_bits is not None:
            if self.method is None:
                object.__setattr__(self, "method", "rtn")
            if self.method not in METHODS:
                raise ValueError(f"there is no method '{self.method}'; the methods are {', '.join(sorted(METHODS))}")
        quant.WeightSpec(self.weight_bits, self.group_size)
        if self.act_bits is None and self.act_granularity is not None:
            raise ValueError("an activation granularity needs activation bits below 16")
        if self.act_bits is not None:
            if self.act_granularity is None:
                object.__setattr__(self, "act_granularity", "tensor")
            if self.act_granularity not in GRANULARITIES:
                raise ValueError(f"activations are quantized per tensor or token, not per {self.act_granularity}")

    @property
    def text(self) -> str:
        """The canonical form in the grammar of ``parse_variant``."""
        if self == ModuleSpec():
            return "fp"
        method = "" if self.method in (None, "rtn") else f"{self.method}:"
        group = "" if self.group_size is None else f"g{self.group_size}"
        act = "" if self.act_bits is None else f"a{self.act_bits}-{self.act_granularity}"
        return f"{method}w{self.weight_bits or quant.NO_BITS}{group}{act}"

    @property
    def name(self) -> str:
        """For tables and plots: 'W4 g32', 'W8A8 per-token', 'FP32'."""
        if self == ModuleSpec():
            return "FP32"
        words = [] if self.method in (None, "rtn") else [self.method.upper()]
        words.append(f"W{self.weight_bits or quant.NO_BITS}" + (f"A{self.act_bits}" if self.act_bits else ""))
        if self.group_size is not None:
            words.append(f"g{self.group_size}")
        if self.act_granularity is not None:
            words.append(f"per-{self.act_granularity}")
        return " ".join(words)


@dataclasses.dataclass(frozen=True)
class VariantSpec:
    """One quantized copy of a world model."""

    encoder: ModuleSpec = ModuleSpec()
    predictor: ModuleSpec = ModuleSpec()

    @property
    def text(self) -> str:
        """The canonical form in the grammar of ``parse_variant``."""
        return self._join("text", "{}={}", ",")

    @property
    def name(self) -> str:
        """For tables and plots: 'FP32', 'W4 g32', 'encoder W4', 'encoder W8, predictor W4'."""
        return self._join("name", "{} {}", ", ")

    def to_json(self) -> dict[str, Any]:
        """Name, canonical text and the settings of both modules, as plain values."""
        modules = {module: dataclasses.asdict(getattr(self, module)) for module in MODULES}
        return {"name": self.name, "spec": self.text, **modules}

    def _join(self, attribute: str, one: str, separator: str) -> str:
        if self.encoder == self.predictor:
            return getattr(self.encoder, attribute)
        parts = {module: getattr(self, module) for module in MODULES}
        quantized = {module: spec for module, spec in parts.items() if spec != ModuleSpec()}
        return separator.join(one.format(module, getattr(spec, attribute)) for module, spec in quantized.items())


def parse_variant(text: str) -> VariantSpec:
    """The variant that ``text`` describes; ``GRAMMAR`` says how.

    Activations are quantized per tensor unless '-token' is written; 16 or 32 bits mean none.

    Raises:
      ValueError: ``text`` is not in the grammar, or its numbers are out of range; it is quoted.
    """
    try:
        if "=" not in text:
            return VariantSpec(*[_parse_module(text)] * len(MODULES))
        parts = [part.partition("=") for part in text.split(",")]
        modules = [module.strip() for module, _, _ in parts]
        if len(set(modules)) != len(modules) or not set(modules) <= set(MODULES):
            raise ValueError(f"it must name {' and '.join(MODULES)} at most once each")
        return VariantSpec(**{module: _parse_module(spec) for module, (_, _, spec) in zip(modules, parts)})
    except ValueError as error:
        raise ValueError(f"variant '{text}': {error}") from None


def _parse_module(text: str) -> ModuleSpec:
    text = text.strip().lower()
    if text == "fp":
        return ModuleSpec()
    match = _SPEC.fullmatch(text)
    if match is None:
        raise ValueError(f"expected {GRAMMAR}")
    number = {key: int(value) for key, value in match.groupdict().items() if value and value.isdigit()}
    return ModuleSpec(number["weight"], number.get("group"), number.get("act"), match["gran"], match["method"])


def sites(config: WorldModelConfig) -> dict[str, tuple[str, ...]]:
    """Names of the quantized sites of each module, in the order in which they run."""
    encoder = ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")
    predictor = ("attn/to_qkv", *(("attn/to_out",) if _has_projection(config) else ()), "ff/fc1", "ff/fc2")
    return {
        "encoder": tuple(f"encoder/blocks_{i}/{name}" for i in range(config.encoder.depth) for name in encoder),
        "predictor": tuple(f"predictor/layers_{i}/{name}" for i in range(config.predictor.depth) for name in predictor),
    }


def site_rules(config: WorldModelConfig, module: str, leaf: str = "") -> tuple[str, ...]:
    """Rules that match the sites of ``module``, or their parameters called ``leaf``."""
    suffix = f"/{leaf}" if leaf else ""
    return tuple(re.escape(site + suffix) for site in sites(config)[module])


def topology(config: WorldModelConfig, released_search: bool = False) -> quant.Topology:
    """The blocks of encoder and predictor: LayerNorm -> qkv, LayerNorm -> fc1, values -> projection, GELU -> fc2.

    Args:
      config: the model.
      released_search: AWQ compares outputs of the MLP, evaluated on the input of fc1, instead of the block's. In the predictor,
        whose MLP begins with the LayerNorm, that applies the LayerNorm twice (a defect of the released code).
    """
    encoder, predictor = config.encoder, config.predictor
    width = config.predictor_dim
    inner = predictor.heads * predictor.dim_head
    blocks = {
        "encoder": _transformer_block(
            linen.ModuleApply(DinoBlock(encoder)),
            norms=("norm1", "norm2"),
            attention=("attn/qkv", "attn/proj"),
            mlp=("mlp/fc1", "mlp/fc2"),
            inner=encoder.width,
            part=quant.Part("mlp", linen.ModuleApply(Mlp(encoder.width, encoder.mlp_dim))) if released_search else None,
        ),
        "predictor": _transformer_block(
            linen.ModuleApply(PredictorLayer(predictor, width, config.tokens_per_frame), output=0),
            norms=("attn/norm", "ff/norm"),
            attention=("attn/to_qkv", "attn/to_out" if _has_projection(config) else None),
            mlp=("ff/fc1", "ff/fc2"),
            inner=inner,
            part=quant.Part("ff", linen.ModuleApply(FeedForward(predictor, width))) if released_search else None,
        ),
    }
    paths_of = {
        "encoder": [f"encoder/blocks_{i}" for i in range(encoder.depth)],
        "predictor": [f"predictor/layers_{i}" for i in range(predictor.depth)],
    }
    return quant.Topology(tuple(tuple((path, blocks[module]) for path in paths_of[module]) for module in MODULES))


def _transformer_block(apply, norms, attention, mlp, inner: int, part) -> quant.Block:
    """A pre-norm transformer block whose fused qkv has ``inner`` outputs for each of queries, keys and values."""
    (qkv, projection), (fc1, fc2) = attention, mlp
    pairs = [quant.Pair(norms[0], (qkv,))]
    if projection is not None:
        # Attention's output is a weighted mean of values, channel by channel.
        pairs.append(quant.Pair(qkv, (projection,), quant.LINEAR, first=2 * inner))
    pairs += [quant.Pair(norms[1], (fc1,), part=part), quant.Pair(None, (fc2,), part=None)]
    sites_in_order = tuple(site for site in (qkv, projection, fc1, fc2) if site is not None)
    return quant.Block(apply, sites_in_order, tuple(pairs), queries_keys=((qkv, 2 * inner),))


def _has_projection(config: WorldModelConfig) -> bool:
    """A single head of full width has no output projection."""
    return config.predictor.heads > 1 or config.predictor.dim_head != config.predictor_dim


def with_qkv_bias(config: WorldModelConfig, params: PyTree) -> tuple[WorldModelConfig, PyTree]:
    """The same function with a bias in the predictor's to_qkv, zeros where there was none.

    OmniQuant's shift needs that bias; all variants of a table have it then.
    """
    inner = 3 * config.predictor.heads * config.predictor.dim_head
    layers = [f"predictor/layers_{i}/attn/to_qkv" for i in range(config.predictor.depth)]
    missing = [layer for layer in layers if "bias" not in paths.subtree(params, layer)]
    biases = {f"{layer}/bias": np.zeros(inner, np.float32) for layer in missing}
    return config.replace(predictor=config.predictor.replace(qkv_bias=True)), paths.nest(biases, params)


def needs_statistics(spec: VariantSpec) -> bool:
    """Whether a variant has static activation quantizers, which need calibration."""
    return any(getattr(spec, module).act_granularity == "tensor" for module in MODULES)


def observe(config: WorldModelConfig, tokens: int = 128, sequences: int = 32) -> Callable[..., PyTree]:
    """What a calibration pass keeps of a rollout, for ``quant.calibrate``: all that any method here needs.

    Args:
      config: the model.
      tokens: sampled at every site, for the search of OMSE.
      sequences: inputs sampled of the first block of encoder and predictor, for AWQ and OmniQuant; 0: none.
    """
    blocks = topology(config).first_blocks() if sequences else ()
    return linen.observe(
        WorldModel(config), "rollout", quant.channel_ranges(tokens), blocks, quant.sequences(sequences)
    )


def calibrate(
    model: WorldModel, variables: PyTree, batches: Iterable[tuple], statistics: PyTree | None = None
) -> PyTree:
    """Statistics of every site, and samples of block inputs, over plain rollouts; see ``observe``.

    Args:
      model: the world model.
      variables: its variables, not quantized.
      batches: arguments of ``WorldModel.rollout``: images (B, n, H, W, 3), proprioception (B, n, p), actions (B, n + m, A).
      statistics: continue from these.
    """
    return quant.calibrate(observe(model.config), variables, batches, statistics)


def quantized_apply(model: WorldModel, straight_through: bool = False) -> Callable[..., Any]:
    """``model.apply`` that honours ``variables['quant']``.

    Args:
      model: the world model.
      straight_through: let gradients pass the rounding of activations, for planners that descend them.
    """
    rounding = quant.straight_through_round if straight_through else jnp.round
    return linen.quantized_apply(model, rounding=rounding)


def check_variants(
    config: WorldModelConfig, params: PyTree, specs: Sequence[VariantSpec], statistics: PyTree | None = None
) -> None:
    """Checks on the host that the variants can be built.

    ``statistics`` are checked if they are given; what needs them and lacks them is found by ``build_variants``.

    Raises:
      ValueError: a kernel is missing or holds NaN or infinity, or the statistics of a site are missing or do; it is named.
    """
    if not specs:
        raise ValueError("there are no variants to build")
    leaves = paths.named_leaves(params)
    names = [site for module in MODULES for site in sites(config)[module]]
    missing = [site for site in names if f"{site}/kernel" not in leaves]
    if missing:
        raise ValueError(f"the parameters lack '{missing[0]}/kernel', which this model configuration has")
    paths.check_finite("weight", leaves)
    if statistics is not None:
        seen = quant.site_statistics(statistics)
        unseen = [site for site in names if site not in seen]
        if unseen:
            raise ValueError(f"the calibration statistics lack site '{unseen[0]}'")
        quant.check_statistics({site: seen[site] for site in names})


def build_variants(
    config: WorldModelConfig, params: PyTree, specs: Sequence[VariantSpec], statistics: PyTree | None = None
) -> dict[str, PyTree]:
    """All variants in one table, ``{'params': ..., 'quant': ...}`` with a leading axis V on every array.

    Every row has the structure of the model's variables: quantized weights as floats, and a quantizer for every site (off where
    the variant has none), so one compiled program takes any row. Bits and granularity are data: what is compiled
    depends on the shapes of kernels and on group sizes, not on the number of variants or on their bits.

    Args:
      config, params: the model, in full precision.
      specs: V variants.
      statistics: of ``calibrate``; needed by static activation quantizers.

    Raises:
      ValueError: as ``check_variants``; or statistics are needed and None.
    """
    check_variants(config, params, specs, statistics)
    if statistics is None:
        static = [spec.text for spec in specs if needs_statistics(spec)]
        if static:
            raise ValueError(f"variant '{static[0]}' quantizes activations per tensor and needs calibration statistics")
    # Without statistics no quantizer is static, and the ranges only give shapes.
    nothing = (np.float32(0), np.float32(0))
    seen = {} if statistics is None else quant.site_statistics(statistics)

    @functools.cache
    def weights(module: str, method: str | None, bits: int | None, group_size: int | None) -> PyTree:
        if method is None:
            return params[module]
        transform = METHODS[method](bits, group_size, site_rules(config, module, "kernel"))
        state = quant.State({module: params[module]}, {}, None)
        return transform.apply(state).params[module]

    def row(spec: VariantSpec) -> dict[str, PyTree]:
        parts, quantizers = {}, {}
        for module in MODULES:
            part: ModuleSpec = getattr(spec, module)
            parts[module] = weights(module, part.method, part.weight_bits, part.group_size)
            ranges = {site: seen[site].range() if seen else nothing for site in sites(config)[module]}
            per_token = part.act_granularity == "token"
            bits = quant.NO_BITS if part.act_bits is None else part.act_bits
            quantizers |= _quantizers(ranges, jnp.int32(bits), per_token)
        quant_tree = paths.nest({f"{site}/input": quantizer for site, quantizer in quantizers.items()})
        return {"params": {**params, **parts}, "quant": quant_tree}

    # Stacked on the host: what is compiled here must not depend on the number of variants.
    return jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *map(row, specs)))


@jax.jit
def _quantizers(ranges: dict[str, tuple[jax.Array, jax.Array]], bits: jax.Array, per_token: jax.Array) -> dict[str, quant.Quantizer]:
    """Site -> quantizer, per token or on the range of the site; off for ``NO_BITS``."""
    dynamic = quant.per_token_quantizer(bits)

    def choose(seen: tuple[jax.Array, jax.Array]) -> quant.Quantizer:
        static = quant.static_quantizer(*seen, bits)
        return jax.tree.map(functools.partial(jnp.where, per_token), dynamic, static)

    return {site: choose(seen) for site, seen in ranges.items()}


def size_bytes(config: WorldModelConfig, params: PyTree, spec: VariantSpec) -> int:
    """Bytes that a variant takes when its integers are packed.

    Counts, for every quantized kernel, ``bits`` a weight (rounded up to whole bytes) and a float32 scale a group; for every
    static activation quantizer a float32 scale and zero point; everything else in ``params`` at its own size (leave the decoder out of
    ``params`` for what planning needs). Round-to-nearest grids are symmetric: their weights have no zero points.
    """
    leaves = paths.named_leaves(params)
    total = sum(leaf.nbytes for leaf in leaves.values())
    for module in MODULES:
        part: ModuleSpec = getattr(spec, module)
        for site in sites(config)[module]:
            kernel = leaves[f"{site}/kernel"]
            if part.weight_bits is not None:
                rows, groups, _ = quant.group_shape(kernel.shape, quant.WeightSpec(None, part.group_size))
                total += -(-kernel.size * part.weight_bits // 8) + 4 * rows * groups - kernel.nbytes
            if part.act_granularity == "tensor":
                total += 8
    return total
