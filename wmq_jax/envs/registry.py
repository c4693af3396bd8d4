"""Environments by name."""

import dataclasses
from collections.abc import Callable

from wmq_jax.envs.base import Environment
from wmq_jax.envs.host import on_device
from wmq_jax.envs.wall import Wall

_ENVIRONMENTS: dict[str, Callable[..., Environment]] = {"wall": Wall}


def register_env(name: str, factory: Callable[..., Environment]) -> None:
    """Makes an environment known to `make_env`, and so to configs (`env.name`).

    Args:
      name: its name.
      factory: a dataclass that is an `Environment`, on the device or on the host; its fields are the options, and
        `image_size` must be one of them.

    Raises:
      ValueError: the name is taken by another, or the factory is no such dataclass.
    """
    if _ENVIRONMENTS.get(name, factory) is not factory:
        raise ValueError(f"there is an environment {name!r} already")
    fields = dataclasses.fields(factory) if dataclasses.is_dataclass(factory) else ()
    if "image_size" not in [field.name for field in fields]:
        raise ValueError(f"environment {name!r} must be a dataclass with a field image_size")
    _ENVIRONMENTS[name] = factory


def env_names() -> tuple[str, ...]:
    """The names that `make_env` accepts."""
    return tuple(sorted(_ENVIRONMENTS))


def make_env(name: str, **options) -> Environment:
    """Builds an environment whose functions can be traced; a host simulator comes behind callbacks (`on_device`).

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
    return on_device(factory(**options))
