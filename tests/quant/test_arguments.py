"""What a user gets wrong in the arguments of observers and methods: one sentence each."""

import functools

import jax.numpy as jnp
import pytest

from wmq_jax import quant


def observed(x):
    """Statistics of a function that gives one name to two inputs."""
    observe = quant.observe(lambda params, x: quant.tap(quant.tap(x, "a").repeat(2, 1), "a"), quant.channel_ranges())
    return quant.calibrate(observe, {"params": {}}, [(x,)])


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: quant.percentile(99.9), "share must be above 0.5 and at most 1"),
        (lambda: quant.ema(0.0), "rate of a moving average must be above 0 and at most 1, not 0.0"),
        (lambda: quant.sequences(0), "room for 1 or more inputs, not 0"),
        (lambda: quant.omniquant(4, batch=0), "batch must be 1 or more samples, not 0"),
        (lambda: quant.omniquant(4, epochs=1.5), "takes epochs of 0, or more with an optimizer"),
        (lambda: quant.omniquant(4, alpha=3), "alpha must be 0..1, not 3"),
        *(
            (
                functools.partial(method, jnp.array([4, 8])),
                "bits of weights must be one number, not .*; vmap over several",
            )
            for method in (quant.rtn, quant.omse, quant.awq, quant.omniquant)
        ),
        (lambda: observed(jnp.zeros((0, 2))), r"a batch has an empty array, of shape \(0, 2\)"),
        (lambda: observed(jnp.ones((3, 2))), "site 'a' has inputs of 2 and of 4 channels; give each its own name"),
        (
            lambda: quant.quantize(quant.rtn(4), {"kernel": jnp.ones((2, 2), jnp.float8_e4m3fn)}),
            "weight 'kernel' is float8_e4m3fn; quantize what it was made of",
        ),
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
