"""Options of XLA that its versions may lack."""

from unittest import mock

import jax.numpy as jnp

from wmq_jax.training import compilation


def test_an_option_that_xla_lacks_is_left_out():
    known = compilation._known_options.__wrapped__
    assert known() == compilation._CPU_OPTIONS, "the versions that are tested have it"
    with mock.patch.dict(compilation._CPU_OPTIONS, {"xla_cpu_no_such_option": ""}):
        assert known() == {}
    assert compilation.jit_step(lambda x: 2 * x)(jnp.float32(3)) == 6
