"""Environments behind one protocol of pure functions."""

from wmq_jax.envs.base import Environment, EnvSpec, Observation, execute
from wmq_jax.envs.host import on_device
from wmq_jax.envs.manifest import Manifest, dataset_manifest, make_manifest
from wmq_jax.envs.registry import env_names, make_env, register_env
from wmq_jax.envs.wall import Wall

__all__ = [
    "EnvSpec",
    "Environment",
    "Manifest",
    "Observation",
    "Wall",
    "dataset_manifest",
    "env_names",
    "execute",
    "make_env",
    "make_manifest",
    "on_device",
    "register_env",
]
