"""Every test sees two CPU devices and deterministic kernels, as a sweep on two cores does."""

from wmq_jax.sweep.devices import configure

configure(devices=2)
