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
    """Accuracy on the test images by bits of weights and activations: 'float', '8', '4', '3'; by AWQ: 'awq 8', ..."""
    digits, model = data.load(seed), ViT()
    params = jax.jit(model.init)(jax.random.key(seed), digits.images[:1])["params"]
    params = data.train(lambda params, x: model.apply({"params": params}, x), params, digits, seed)

    # Everything that quantization takes. Kernels of queries, keys and values have two output axes: heads and theirs.
    heads = ("attention/query", "attention/key", "attention/value")
    sites = (*heads, "attention/out", "fc1", "fc2")
    norms = (quant.Pair("norm1", heads), quant.Pair("norm2", ("fc1",)))  # whose gain may take a scale of what reads it
    axes = (*((site, 1) for site in heads), ("attention/out", 2))  # of the kernels that are inputs
    block = quant.Block(linen.ModuleApply(Block()), sites, norms, input_axes=axes)
    topology = quant.Topology(((("block_0", block), ("block_1", block)),))

    ranges, samples = quant.channel_ranges(tokens=512), quant.sequences(128)
    observe = linen.observe(model, None, ranges, topology.first_blocks(), samples)
    statistics = quant.calibrate(observe, {"params": params}, [(digits.images[:128],)])
    apply = jax.jit(linen.quantized_apply(model))  # compiled once: bits are data
    last = {"output_axes": (-1,)}
    rules = [(".*/(query|key|value)/kernel", {"output_axes": (-2, -1)}), (".*/kernel", last)]

    def accuracy(weights, bits):
        transform = quant.chain(weights, quant.static_activations(bits, range="omse"))
        return data.accuracy(apply(quant.quantize(transform, params, statistics, topology), digits.test_images), digits)

    def awq(bits):  # of the blocks; what is outside them is rounded
        return quant.chain(quant.awq(bits), quant.rtn(bits, rules=[("(patches|head)/kernel", last)]))

    plain = {name: accuracy(quant.rtn(bits, rules=rules), bits) for name, bits in data.WIDTHS.items()}
    return plain | {f"awq {name}": accuracy(awq(bits), bits) for name, bits in data.WIDTHS.items() if bits}


if __name__ == "__main__":
    data.main(run)
