"""The methods of the study by name, as transforms of one module of DINO-WM.

Whatever is tuned here is tuned for all variants of a method, so that a name says what was done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import optax

from wmq_jax import quant

# The released study's strength of smoothing, and its only scaled pair: LayerNorm -> fc1. Otherwise AWQ is the original:
# queries and keys are spared from clipping, and searches round to the grid that is used in the end.
ALPHA = 0.5
AWQ_SCALED = ".*fc1"
# The released study runs OmniQuant without training, since its training fails; trained as repaired it earns its name.
OMNIQUANT_EPOCHS = 20


def adam(transform_rate: float = 5e-3, clipping_rate: float = 1e-2) -> optax.GradientTransformation:
    """OmniQuant's optimizer: one rate for scales and shifts, one for clipping factors."""
    groups = {"transform": transform_rate, "clipping": clipping_rate}
    rules = {name: optax.adamw(rate, weight_decay=0.0) for name, rate in groups.items()}
    return optax.multi_transform(rules, {name: name for name in groups})


# One object, so that all variants share what is compiled.
_ADAM = adam()


class Method(NamedTuple):
    """A way to quantize the weights of a module.

    Attributes:
      title: for tables and plots.
      transform: ``(bits, group_size, token_bits, rules) -> transform``; ``token_bits`` are those of activations that
        are quantized per token (None if they are not), ``rules`` match the kernels.
      statistics: it needs calibration statistics.
      block_inputs: it needs sampled inputs of blocks.
      act_range: what static activation quantizers beside it cover; see ``quant.ActivationSpec``.
      scaled: the pairs that it scales by ``quant.awq``'s pattern; a scale that no producer takes is stored beside its
        kernel. None: it keeps none there.
    """

    title: str
    transform: Callable[[int, int | None, int | None, Sequence[str]], quant.Transform]
    statistics: bool = False
    block_inputs: bool = False
    act_range: str = "observed"
    scaled: str | None = None


METHODS: Mapping[str, Method] = {
    "rtn": Method("", lambda bits, group, token_bits, rules: quant.rtn(bits, group, rules=rules)),
    "omse": Method(
        "OMSE", lambda bits, group, token_bits, rules: quant.omse(bits, group, rules=rules), act_range="omse"
    ),
    "smoothquant": Method(
        "SmoothQuant",
        lambda bits, group, token_bits, rules: quant.chain(
            quant.smoothquant(ALPHA), quant.rtn(bits, group, rules=rules)
        ),
        statistics=True,
    ),
    "awq": Method(
        "AWQ",
        lambda bits, group, token_bits, rules: quant.awq(bits, group, scaled=AWQ_SCALED),
        statistics=True,
        block_inputs=True,
        scaled=AWQ_SCALED,
    ),
    "omniquant": Method(
        "OmniQuant",
        lambda bits, group, token_bits, rules: quant.omniquant(
            bits, group, act_bits=token_bits, epochs=OMNIQUANT_EPOCHS, optimizer=_ADAM
        ),
        statistics=True,
        block_inputs=True,
    ),
}
