"""The recorded quantized networks: how they are calibrated, run and named, and how their outputs are compared."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.quick_jit import quick_jit
from wmq_jax import quant, quantized
from wmq_jax.models import WorldModel, WorldModelConfig, normalize_image
from wmq_jax.quant import linen, paths
from wmq_jax.quant.equalization import foldable, rescale

OUTPUTS = ("pred_T3", "pred_T1", "enc", "roll_visual", "roll_proprio")
# Rounding flips make the error of a quantized network heavy tailed: bounds on the relative L2 norm and the median.
REL_L2 = {name: 5e-2 if name.startswith("roll") else 1e-2 for name in OUTPUTS}
MEDIAN = 5e-3
# Relative bound on the damage done by quantization, a distance from the float outputs.
DAMAGE = 0.05
INPUT_OF = {
    "qact1": ("attn/qkv", "attn/to_qkv", "mlp/fc1", "ff/fc1"),
    "qact2": ("attn/proj", "attn/to_out", "mlp/fc2", "ff/fc2"),
}
# The released OMSE looks at the values of the last call alone, all of them (there is room enough).
RELEASED_OBSERVER = quant.channel_ranges(tokens=1000, last_call=True)


def images(u8):
    """Recorded channel-first images as the model takes them."""
    return normalize_image(jnp.asarray(np.moveaxis(u8, -3, -1)))


def our_name(name: str) -> str:
    """A recorded module or parameter of a block under our name, but for 'weight'."""
    name = re.sub(r"(encoder\.)?base_model\.blocks\.(\d+)", r"encoder/blocks_\2", name)
    name = re.sub(r"(predictor\.)?transformer\.layers\.(\d+)", r"predictor/layers_\2", name)
    name = name.replace("to_out.0", "to_out").replace("net.0", "norm").replace("net.1", "fc1").replace("net.4", "fc2")
    return name.replace(".", "/")


def our_parameter(name: str) -> str:
    """The recorded name of a parameter as ours: '.../norm1/scale', '.../fc1/kernel'."""
    owner, _, leaf = our_name(name).rpartition("/")
    if leaf == "bias":
        return f"{owner}/bias"
    return f"{owner}/{'scale' if 'norm' in owner.rpartition('/')[2] else 'kernel'}"


def our_site(name: str) -> tuple[str, bool]:
    """A recorded site as (our site, whether it is an activation)."""
    name = our_name(name)
    block, _, last = name.rpartition("/")
    if last not in INPUT_OF:
        return name, False
    part = block.rpartition("/")[2]
    candidates = [site for site in INPUT_OF[last] if site.startswith(f"{part}/")]
    if part == "attn":
        candidates = [site for site in candidates if site.startswith("attn/to_") == name.startswith("predictor")]
    return f"{block.removesuffix(part)}{candidates[0]}", True


class QuantizedNetwork:
    """The network of quant_model.npz and of the methods' recordings.

    Attributes:
      model, params, config: the float model.
    """

    def __init__(self, inputs: Mapping[str, Any], config: WorldModelConfig, params: Any):
        self._inputs, self.config, self.params = inputs, config, params
        self.model = WorldModel(config)
        self.calibrated = functools.cache(self._calibrated)
        self.run = self.runner(config)

    def rollouts(self) -> list[tuple]:
        """The arguments of the four calibration rollouts."""
        visual, proprio, actions = (self._inputs[f"calib/{name}"] for name in ("visual_u8", "proprio", "act"))
        return [(images(visual[i]), proprio[i], actions[i]) for i in range(len(visual))]

    def calibrate(self, params: Any, observer: quant.Observer) -> Any:
        """Statistics of the released calibration: in the last rollout only the first call of each site counts.

        The first call of a rollout encodes the observed frames and predicts once from them, which is a rollout
        with the actions of the observed frames alone.
        """
        *ordinary, (last_visual, last_proprio, last_actions) = self.rollouts()
        batches = [*ordinary, (last_visual, last_proprio, last_actions[:, : last_visual.shape[1]])]
        return quant.calibrate(_observe(self.model, observer), {"params": params}, batches)

    def _calibrated(self, observer: quant.Observer) -> Any:
        return self.calibrate(self.params, observer)

    def runner(self, config: WorldModelConfig):
        """A function of variables to the recorded outputs, compiled once."""
        apply = linen.quantized_apply(WorldModel(config))
        visual, proprio, actions = (self._inputs[f"eval/{name}"] for name in ("visual_u8", "proprio", "act"))
        z = self._inputs["eval/z"]
        z = z.reshape(z.shape[0], -1, config.tokens_per_frame, config.predictor_dim)

        @quick_jit
        def outputs(variables):
            rollout = apply(variables, images(visual), proprio, actions, method="rollout")
            predict = lambda z: apply(variables, z, method="predict").reshape(z.shape[0], -1, z.shape[-1])
            return {
                "pred_T3": predict(z),
                "pred_T1": predict(z[:, :1]),
                "enc": apply(variables, images(visual), proprio, method="encode_obs").visual[:, 0],
                "roll_visual": rollout.visual[:, -1],
                "roll_proprio": rollout.proprio,
            }

        return outputs

    def rules(self, leaf: str = "") -> list[str]:
        """Rules that match every site, or its parameter `leaf`."""
        return [rule for module in quantized.MODULES for rule in quantized.site_rules(self.config, module, leaf)]

    def no_quantizers(self) -> quant.Transform:
        """A quantizer that is off at every site, so that all cases share one compiled program."""
        every = [site for names in quantized.sites(self.config).values() for site in names]
        return quant.dynamic_activations(None, sites=every)


@functools.cache
def _observe(model, observer):
    """One function for all parameters: calibrating others compiles nothing."""
    return jax.jit(linen.observe(model, "rollout", observer))


def check_outputs(recording, case: str, outputs: Mapping[str, Any], compared) -> None:
    """Compares with the recorded outputs of a case."""
    for index, name in enumerate(OUTPUTS):
        wanted, output = recording.sub(f"{case}/{name}"), np.asarray(outputs[name])
        difference = np.abs(wanted.of(output).astype(np.float64) - wanted.values)
        relative = np.linalg.norm(difference) / np.linalg.norm(wanted.values)
        assert relative <= REL_L2[name] and np.median(difference) <= MEDIAN, (case, name, relative)
        compared(difference.size)
        if f"{case}/rel_err_vs_fp32" in recording and f"fp32/{name}" in recording:
            # The damage done by quantization is the recorded one, too.
            exact = recording[f"fp32/{name}"]
            damage = np.linalg.norm(output - exact) / np.linalg.norm(exact)
            recorded_damage = recording[f"{case}/rel_err_vs_fp32"][index]
            np.testing.assert_allclose(damage, recorded_damage, rtol=DAMAGE, err_msg=f"{case} {name}")
            compared(1)


def rescaled(config: WorldModelConfig, params: Any, scales: Mapping[str, np.ndarray]) -> Any:
    """The parameters with the given scales (name of a consumer's kernel -> scale) moved into it from its LayerNorm."""
    for path, block in quantized.topology(config).blocks():
        part = paths.subtree(params, path)
        for pair in foldable(block):
            name = f"{path}/{pair.consumers[0]}/kernel"
            part = rescale(part, pair, jnp.asarray(scales[name])) if name in scales else part
        params = paths.nest({path: part}, params)
    return params


def check_weight_sites(recording, case, codes: Mapping[str, quant.QuantizedKernel], compared) -> None:
    """Compares the grids of kernels with the recorded ones of a case; given arrays' scales agree to 1e-6."""
    for recorded in recording.names(f"{case}/site/"):
        site, is_activation = our_site(recorded)
        if not is_activation:
            grid, key = codes[f"{site}/kernel"].grid, f"{case}/site/{recorded}"
            scale = recording[f"{key}/scale"].ravel()
            np.testing.assert_allclose(np.ravel(grid.scale), scale, rtol=1e-6, err_msg=key)
            # A zero point that is not recorded is 0.
            zero = recording[f"{key}/zero_point"].ravel() if f"{key}/zero_point" in recording else 0
            np.testing.assert_array_equal(np.ravel(grid.zero_point), zero, err_msg=key)
            compared(scale.size)


def recorded_quantizers(recording, case, ours, compared):
    """The recorded activation quantizers, after a comparison with ours."""
    quantizers = paths.named_leaves(ours, is_leaf=lambda node: isinstance(node, quant.Quantizer))
    for recorded in recording.names(f"{case}/site/"):
        site, is_activation = our_site(recorded)
        if is_activation:
            name = f"{site}/input"
            scale, zero = (recording[f"{case}/site/{recorded}/{field}"].item() for field in ("scale", "zero_point"))
            np.testing.assert_allclose(quantizers[name].scale, scale, rtol=1e-5, err_msg=f"{case} {site}")
            assert quantizers[name].zero_point == zero, (case, site)
            quantizers[name] = quantizers[name]._replace(scale=jnp.float32(scale))
            compared(2)
    return paths.nest(quantizers)
