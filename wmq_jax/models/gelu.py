"""The activation of both transformers."""

import math

import jax


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x Phi(x), of every element, through erf as PyTorch computes it; shape and dtype are those of `x`.

    It is within two ulp of x of `jax.nn.gelu` without approximation, which goes through erfc. That keeps the relative
    accuracy of the far tail, where x Phi(x) is nothing beside x, and takes XLA's CPU backend 2.6 times as long.
    """
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))
