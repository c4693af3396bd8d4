"""Convolutions as matrix products are the convolutions they stand in for, in value and gradient."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from wmq_jax.models import DecoderConfig
from wmq_jax.models.decoder import make_decoder
from wmq_jax.training.convolution import convolve_by_matmul

pytestmark = pytest.mark.quick

X = np.random.default_rng(1).normal(size=(2, 5, 7, 3)).astype(np.float32)


def result(module, params, x, swapped):
    """Output, and gradients of its mean square with respect to parameters and input."""

    def loss(params, x):
        with convolve_by_matmul(swapped):
            y = module.apply(params, x)
        y = y[0] if isinstance(y, tuple) else y
        return (y**2).mean(), y

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)


def check(module, x):
    """Compares both computations; returns whether any convolution is left in the swapped one."""
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: random.normal(size=p.shape).astype(np.float32) / 3, module.init(jax.random.key(0), x)
    )
    plain, swapped = (result(module, params, x, on) for on in (False, True))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(swapped), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1.0, float(np.abs(a).max())))
    return "conv_general_dilated" in str(jax.make_jaxpr(lambda x: result(module, params, x, True))(x))


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv(4, (3, 3), padding=1),
        nn.Conv(4, (1, 1)),
        nn.Conv(4, (3, 3), padding="VALID", use_bias=False),
        nn.Conv(4, (5, 5), padding=[(2, 2), (2, 2)]),
        nn.ConvTranspose(4, (4, 4), strides=(2, 2), padding=[(2, 2)] * 2, transpose_kernel=True),
        nn.ConvTranspose(4, (3, 3), strides=(3, 3), padding=[(2, 2)] * 2, transpose_kernel=True),
        nn.ConvTranspose(4, (6, 6), strides=(2, 2), padding=[(3, 3)] * 2, transpose_kernel=True, use_bias=False),
    ],
)
def test_layers_that_are_swapped(module):
    assert not check(module, X)


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv(4, (3, 3), strides=2, padding=1),
        nn.Conv(4, (3, 3), padding="SAME"),
        nn.Conv(3, (3, 3), padding=1, feature_group_count=3),
        nn.Conv(4, (3, 3), padding=2, kernel_dilation=2),
        nn.ConvTranspose(4, (4, 4), strides=(2, 2)),
        nn.ConvTranspose(4, (5, 5), strides=(3, 3), padding=[(3, 3)] * 2, transpose_kernel=True),
    ],
)
def test_layers_of_other_kinds_are_left_alone(module):
    assert check(module, X)


@pytest.mark.slow
def test_the_whole_decoder():
    module = make_decoder(DecoderConfig(channel=8, n_res_block=1, n_res_channel=4), width=6)
    assert not check(module, np.random.default_rng(2).normal(size=(2, 4, 6)).astype(np.float32))
