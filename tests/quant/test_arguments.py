"""What a user gets wrong in the arguments of observers and methods: one sentence each."""

import jax.numpy as jnp
import pytest

from wmq_jax import quant


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: quant.percentile(99.9), "share must be above 0.5 and at most 1"),
        (lambda: quant.ema(0.0), "rate of a moving average must be above 0 and at most 1, not 0.0"),
        (lambda: quant.sequences(0), "room for 1 or more inputs, not 0"),
        (lambda: quant.omniquant(4, batch=0), "batch must be 1 or more samples, not 0"),
        (lambda: quant.omniquant(4, epochs=1.5), "takes epochs of 0, or more with an optimizer"),
        (lambda: quant.omniquant(4, alpha=3), "alpha must be 0..1, not 3"),
    ],
)
def test_arguments_are_checked(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_shift_needs_a_bias_in_its_producer():
    dense = {"kernel": jnp.eye(2)}
    with pytest.raises(ValueError, match="a shift needs a bias in its producer; 'norm' has none"):
        quant.rescale(
            {"norm": {"scale": jnp.ones(2)}, "fc": dense}, quant.Pair("norm", ("fc",)), jnp.ones(2), jnp.ones(2)
        )
