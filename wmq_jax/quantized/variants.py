"""The grammar of variants: 'w4', 'awq:w4g32', 'encoder=w8a8-token,predictor=omse:w3'."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from wmq_jax import quant
from wmq_jax.quantized.methods import METHODS
from wmq_jax.quantized.structure import MODULES

GRANULARITIES = ("tensor", "token")
GRAMMAR = (
    "'fp', or [method:]wB[gG][aB[-tensor|-token]] for both modules ('w4', 'awq:w4g32', 'w8a8-token'), or "
    "encoder=<spec>, predictor=<spec> or both with a comma between"
)

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
    def token_bits(self) -> int | None:
        """Bits of activations that are quantized per token, or None."""
        return self.act_bits if self.act_granularity == "token" else None

    def weights_only(self) -> ModuleSpec:
        """What decides the weights: variants that agree in it share them."""
        per_token = self.method == "omniquant" and self.act_granularity == "token"
        return self if per_token else dataclasses.replace(self, act_bits=None, act_granularity=None)

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
        words = [METHODS[self.method].title] if self.method not in (None, "rtn") else []
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
            raise ValueError(f"the modules that are quantized are {' and '.join(MODULES)}; each is named at most once")
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
