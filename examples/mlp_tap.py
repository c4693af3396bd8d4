"""A hand-written residual network, without any framework, quantized by its taps.

    python -m examples.mlp_tap

Six residual blocks of width 32 in a scan over stacked parameters: one place in the code, and yet every layer has
statistics, scales and bits of its own.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from examples import digits as data
from wmq_jax import quant

WIDTH, DEPTH = 32, 6


def initial(key: jax.Array) -> dict:
    """Parameters; those of the blocks are stacked."""
    keys = jax.random.split(key, 4)
    dense = lambda key, *shape: {"kernel": jax.random.normal(key, shape) / shape[-2] ** 0.5}
    blocks = {"up": dense(keys[0], DEPTH, WIDTH, WIDTH), "down": dense(keys[1], DEPTH, WIDTH, WIDTH)}
    return {"stem": dense(keys[2], 64, WIDTH), "blocks": blocks, "head": dense(keys[3], WIDTH, 10)}


def network(params: dict, images: jax.Array) -> jax.Array:
    """Logits (B, 10) of images (B, 8, 8, 1)."""

    def dense(params, x, name):
        return quant.tap(x, name) @ params["kernel"]

    def block(x, params):
        hidden = jax.nn.relu(dense(params["up"], jax.nn.standardize(x), "blocks/up"))
        return x + dense(params["down"], hidden, "blocks/down"), None

    x = dense(params["stem"], images.reshape(len(images), -1), "stem")
    x, _ = jax.lax.scan(block, x, params["blocks"])
    return dense(params["head"], jax.nn.standardize(x), "head")


def run(seed: int = 0) -> dict[str, float]:
    """Accuracy on the test images by bits of weights and activations: 'float', '8', '4', '3'."""
    digits = data.load(seed)
    params = data.train(network, initial(jax.random.key(seed)), digits, seed)

    # Everything that quantization takes. Kernels of the blocks have the layers as a first axis.
    statistics = quant.calibrate(quant.observe(network), {"params": params}, [(jnp.asarray(digits.images[:128]),)])
    apply = jax.jit(quant.quantized_apply(network))  # compiled once: bits are data
    rules = [("blocks/.*/kernel", {"output_axes": (0, -1)}), ".*/kernel"]

    def logits(bits):
        transform = quant.chain(quant.rtn(bits, rules=rules), quant.static_activations(bits))
        return apply(quant.quantize(transform, params, statistics), digits.test_images)

    return {name: data.accuracy(logits(bits), digits) for name, bits in data.WIDTHS.items()}


if __name__ == "__main__":
    data.main(run)
