"""Environments by name."""

import dataclasses

from wmq_jax.envs.base import Environment
from wmq_jax.envs.wall import Wall

_ENVIRONMENTS = {"wall": Wall}


def env_names() -> tuple[str, ...]:
    """The names that `make_env` accepts."""
    return tuple(sorted(_ENVIRONMENTS))


def make_env(name: str, **options) -> Environment:
    """Builds an environment.

    Args:
      name: one of `env_names()`.
      **options: the fields of the environment's class, such as `door_y` and `image_size` of `Wall`.

    Raises:
      ValueError: the name, an option or an option's value is not accepted.
    """
    if name not in _ENVIRONMENTS:
        raise ValueError(f"unknown environment {name!r}; accepted: {', '.join(env_names())}")
    factory = _ENVIRONMENTS[name]
    fields = [field.name for field in dataclasses.fields(factory)]
    unknown = sorted(set(options) - set(fields))
    if unknown:
        raise ValueError(f"environment {name!r} has no option {', '.join(unknown)}; accepted: {', '.join(fields)}")
    return factory(**options)
