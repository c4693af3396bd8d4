"""A Vision Transformer in Flax Linen, quantized without editing it.

    python -m examples.vit_linen

ViT of Dosovitskiy et al. (2021) on 2 x 2 patches of the 8 x 8 digits of scikit-learn: 16 tokens and a class token, 2
blocks of width 32 with 4 heads, 19 thousand parameters.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from examples import digits as data
from wmq_jax import quant
from wmq_jax.quant import linen

WIDTH = 32


class Block(nn.Module):
    """Pre-norm attention and an MLP."""

    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(num_heads=4, name="attention")(nn.LayerNorm(name="norm1")(x))
        hidden = nn.gelu(nn.Dense(2 * WIDTH, name="fc1")(nn.LayerNorm(name="norm2")(x)))
        return x + nn.Dense(WIDTH, name="fc2")(hidden)


class ViT(nn.Module):
    """Logits (B, 10) of images (B, 8, 8, 1)."""

    @nn.compact
    def __call__(self, images):
        tokens = nn.Conv(WIDTH, (2, 2), strides=2, name="patches")(images).reshape(len(images), -1, WIDTH)
        first = self.param("class_token", nn.initializers.normal(0.02), (1, 1, WIDTH))
        x = jnp.concatenate([jnp.tile(first, (len(images), 1, 1)), tokens], 1)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, x.shape[1], WIDTH))
        for i in range(2):
            x = Block(name=f"block_{i}")(x)
        return nn.Dense(10, name="head")(nn.LayerNorm(name="norm")(x[:, 0]))


def run(seed: int = 0) -> dict[str, float]:
    """Accuracy on the test images by bits of weights and activations: 'float', '8', '4', '3'."""
    digits, model = data.load(seed), ViT()
    params = jax.jit(model.init)(jax.random.key(seed), digits.images[:1])["params"]
    params = data.train(lambda params, x: model.apply({"params": params}, x), params, digits, seed)

    # Everything that quantization takes. Kernels of queries, keys and values have two output axes: heads and theirs.
    statistics = quant.calibrate(linen.observe(model), {"params": params}, [(digits.images[:128],)])
    apply = jax.jit(linen.quantized_apply(model))  # compiled once: bits are data
    rules = [(".*/(query|key|value)/kernel", {"output_axes": (-2, -1)}), ".*/kernel"]

    def logits(bits):
        transform = quant.chain(quant.rtn(bits, rules=rules), quant.static_activations(bits))
        return apply(quant.quantize(transform, params, statistics), digits.test_images)

    return {name: data.accuracy(logits(bits), digits) for name, bits in data.WIDTHS.items()}


if __name__ == "__main__":
    data.show(run())
