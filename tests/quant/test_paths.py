"""Names of leaves: every leaf has one of its own, whatever holds it."""

import dataclasses
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmq_jax import quant
from wmq_jax.quant import paths


class Attention(NamedTuple):
    query: Any
    key: Any
    value: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Heads:
    query: Any
    value: Any


@pytest.mark.parametrize("make", [Attention, lambda query, key, value: Heads(query, value)], ids=["tuple", "dataclass"])
def test_a_field_called_value_keeps_its_name(make):
    kernel = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    tree = {"attention": make(kernel, kernel, kernel)}
    assert {"attention/query", "attention/value"} <= set(paths.named_leaves(tree))
    rounded = quant.quantize(quant.rtn(3, rules=[".*/value"]), tree)["params"]
    np.testing.assert_array_equal(rounded["attention"].query, kernel)
    assert len(np.unique(rounded["attention"].value)) < kernel.size


def test_boxes_add_no_name():
    params = {"fc": {"kernel": nn.Partitioned(jnp.ones((3, 2)), ("in", "out")), "bias": jnp.ones(2)}}
    assert list(paths.named_leaves(params)) == ["fc/bias", "fc/kernel"]


def test_two_leaves_of_one_name_are_refused():
    kernels = np.random.default_rng(0).normal(size=(2, 3, 3)).astype(np.float32)
    tree = {"enc/fc": {"kernel": kernels[0]}, "enc": {"fc": {"kernel": kernels[1]}}}
    message = "two leaves of the tree are called 'enc/fc/kernel': names are keys joined by '/'"
    with pytest.raises(ValueError, match=re.escape(message)):
        quant.quantize(quant.rtn(8), tree)
    with pytest.raises(ValueError, match=re.escape(message)):
        paths.map_named(lambda name, leaf: leaf, tree)


def test_a_name_under_a_value_is_refused():
    with pytest.raises(ValueError, match="'a/input/input' lies under a name that has a value of its own"):
        paths.nest({"a/input": 1.0, "a/input/input": 2.0})
