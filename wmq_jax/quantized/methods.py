"""The methods of the study by name, as transforms of one module of DINO-WM.

Whatever is tuned here is tuned for all variants of a table, so that a name says what was done.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import optax

from wmq_jax import quant

if TYPE_CHECKING:  # whose methods are named here
    from wmq_jax.quantized.variants import ModuleSpec

MAX_EPOCHS = 10_000


@dataclasses.dataclass(frozen=True)
class MethodSettings:
    """What the names of methods leave open; the group `methods` of a config.

    Attributes:
      smoothquant_alpha: share of the activations in SmoothQuant's scales, 0..1; 0.5 is the study's.
      awq_scaled: regular expression over the first consumer of each pair that AWQ scales; `.*fc1` is the study's,
        `.*` the original AWQ. Queries and keys are spared from clipping, and searches round to the grid that is used in
        the end, as in the original.
      omniquant_alpha: as smoothquant_alpha, of what OmniQuant's scales begin with.
      omniquant_epochs: passes over the sampled inputs. The released study runs 0, since its training fails; trained as
        repaired it earns its name.
      omniquant_batch: samples a step.
      omniquant_transform_rate, omniquant_clipping_rate: Adam's rates of scales and shifts, and of clipping factors.
      released: quantizers with the quirks of the study's code, to compare with its numbers. Groups are cut from the
        flattened matrix, which their size must divide; scales are at least 2^-23 (OMSE and trained OmniQuant: 1e-5);
        ranges of activations are as observed, not extended to 0; AWQ clips queries and keys too, searches with an
        asymmetric grid, compares outputs of the MLP (the predictor's with its LayerNorm twice), and rounds to the grids
        of the unscaled weights; OmniQuant keeps what training ends with. The study trains none:
        `omniquant_epochs` of 0.

    Raises:
      ValueError: a value is of another type or out of range; it is named.
    """

    smoothquant_alpha: float = 0.5
    awq_scaled: str = ".*fc1"
    omniquant_alpha: float = 0.5
    omniquant_epochs: int = 20
    omniquant_batch: int = 4
    omniquant_transform_rate: float = 5e-3
    omniquant_clipping_rate: float = 1e-2
    released: bool = False

    @property
    def layout(self) -> str:
        """How groups are cut from a kernel; see ``quant.WeightSpec``."""
        return "flat" if self.released else "padded"

    def __post_init__(self):
        for name, low, high in (
            ("smoothquant_alpha", 0, 1),
            ("omniquant_alpha", 0, 1),
            ("omniquant_transform_rate", 0, math.inf),
            ("omniquant_clipping_rate", 0, math.inf),
        ):
            value = getattr(self, name)
            if type(value) not in (int, float) or not low <= value <= high or math.isinf(value):
                text = f"a number of {low} to {high}" if high == 1 else "a number of 0 or more"
                raise ValueError(f"methods.{name} must be {text}, not {value!r}")
        for name, low in (("omniquant_epochs", 0), ("omniquant_batch", 1)):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= MAX_EPOCHS:
                raise ValueError(f"methods.{name} must be a whole number of {low} to {MAX_EPOCHS}, not {value!r}")
        if type(self.released) is not bool:
            raise ValueError(f"methods.released must be true or false, not {self.released!r}")
        try:
            re.compile(self.awq_scaled)
        except (re.error, TypeError):
            raise ValueError(f"methods.awq_scaled must be a regular expression, not {self.awq_scaled!r}") from None


@functools.cache  # one object for equal rates, so that all variants share what is compiled
def _adam(transform_rate: float, clipping_rate: float) -> optax.GradientTransformation:
    """OmniQuant's optimizer: one rate for scales and shifts, one for clipping factors."""
    groups = {"transform": transform_rate, "clipping": clipping_rate}
    rules = {name: optax.adamw(rate, weight_decay=0.0) for name, rate in groups.items()}
    return optax.multi_transform(rules, {name: name for name in groups})


class Method(NamedTuple):
    """A way to quantize the weights of a module.

    Attributes:
      title: for tables and plots.
      transform: ``(spec, rules, settings) -> transform`` of a module's weights; ``rules`` match their kernels.
      statistics: it needs calibration statistics.
      block_inputs: it needs sampled inputs of blocks.
      act_range: what static activation quantizers beside it cover; see ``quant.ActivationSpec``.
      scaled: of the settings, the pattern of pairs that ``quant.awq`` scales; a scale that no producer takes is stored
        beside its kernel. By default it keeps none there.
    """

    title: str
    transform: Callable[[ModuleSpec, Sequence[str], MethodSettings], quant.Transform]
    statistics: bool = False
    block_inputs: bool = False
    act_range: str = "observed"
    scaled: Callable[[MethodSettings], str | None] = lambda settings: None


def _rtn(spec: ModuleSpec, rules: Sequence[str], settings: MethodSettings) -> quant.Transform:
    return _per_kernel(quant.rtn, spec, rules, settings)


def _omse(spec: ModuleSpec, rules: Sequence[str], settings: MethodSettings) -> quant.Transform:
    return _per_kernel(quant.omse, spec, rules, settings)


def _per_kernel(
    method: Callable[..., quant.Transform], spec: ModuleSpec, rules: Sequence[str], settings: MethodSettings
) -> quant.Transform:
    grouping = spec.group_size, settings.layout
    return method(spec.weight_bits, *grouping, rules=rules, released_limits=settings.released)


def _smoothquant(spec: ModuleSpec, rules: Sequence[str], settings: MethodSettings) -> quant.Transform:
    return quant.chain(quant.smoothquant(settings.smoothquant_alpha), _rtn(spec, rules, settings))


def _awq(spec: ModuleSpec, rules: Sequence[str], settings: MethodSettings) -> quant.Transform:
    released = settings.released
    return quant.awq(
        spec.weight_bits,
        spec.group_size,
        settings.layout,
        scaled=settings.awq_scaled,
        clip_queries_keys=released,
        grid_fn=quant.released_absmax_grid if released else quant.absmax_grid,
        search_grid=quant.released_range_grid if released else None,
        stale_grids=released,
        strided=released,
    )


def _omniquant(spec: ModuleSpec, rules: Sequence[str], settings: MethodSettings) -> quant.Transform:
    return quant.omniquant(
        spec.weight_bits,
        spec.group_size,
        settings.layout,
        act_bits=spec.token_bits,
        alpha=settings.omniquant_alpha,
        epochs=settings.omniquant_epochs,
        batch=settings.omniquant_batch,
        optimizer=_adam(settings.omniquant_transform_rate, settings.omniquant_clipping_rate),
        released=settings.released,
    )


METHODS: Mapping[str, Method] = {
    "rtn": Method("", _rtn),
    "omse": Method("OMSE", _omse, act_range="omse"),
    "smoothquant": Method("SmoothQuant", _smoothquant, statistics=True),
    "awq": Method("AWQ", _awq, statistics=True, block_inputs=True, scaled=lambda settings: settings.awq_scaled),
    "omniquant": Method("OmniQuant", _omniquant, statistics=True, block_inputs=True),
}
