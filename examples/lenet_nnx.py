"""A convolutional network in Flax NNX, quantized without editing it.

    python -m examples.lenet_nnx

After LeNet-5 of LeCun et al. (1998), for the 8 x 8 digits of scikit-learn: two convolutions with pooling, two dense
layers, 11 thousand parameters.
"""

from __future__ import annotations

import jax
from flax import nnx

from examples import digits as data
from wmq_jax import quant
from wmq_jax.quant import nnx as quant_nnx


class LeNet(nnx.Module):
    """Logits (B, 10) of images (B, 8, 8, 1)."""

    def __init__(self, rngs: nnx.Rngs):
        self.convolutions = nnx.List([nnx.Conv(1, 8, (3, 3), rngs=rngs), nnx.Conv(8, 16, (3, 3), rngs=rngs)])
        self.hidden = nnx.Linear(64, 128, rngs=rngs)
        self.head = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x):
        for convolution in self.convolutions:
            x = nnx.max_pool(nnx.relu(convolution(x)), (2, 2), strides=(2, 2))
        return self.head(nnx.relu(self.hidden(x.reshape(len(x), -1))))


def run(seed: int = 0) -> dict[str, float]:
    """Accuracy on the test images by bits of weights and activations: 'float', '8', '4', '3'."""
    digits = data.load(seed)
    model_apply, params = quant_nnx.functional(LeNet(nnx.Rngs(seed)))
    params = data.train(model_apply, params, digits, seed)

    # Everything that quantization takes.
    statistics = quant.calibrate(quant.observe(model_apply), {"params": params}, [(digits.images[:128],)])
    apply = jax.jit(quant.quantized_apply(model_apply))  # compiled once: bits are data

    def logits(bits):
        transform = quant.chain(quant.rtn(bits, output_axes=(-1,)), quant.static_activations(bits))
        return apply(quant.quantize(transform, params, statistics), digits.test_images)

    return {name: data.accuracy(logits(bits), digits) for name, bits in data.WIDTHS.items()}


if __name__ == "__main__":
    data.main(run)
