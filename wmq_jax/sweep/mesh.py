"""The mesh of devices that cells are spread over."""

import jax
import numpy as np

CELLS = "cells"


def cell_mesh(devices: int = 0) -> jax.sharding.Mesh:
    """A one-dimensional mesh over this process's devices (0: all of them), along which cells are spread.

    Processes of a pod take different cells and never talk to each other while planning, so the mesh is local.

    Raises:
      ValueError: there are fewer devices.
    """
    local = jax.local_devices()
    if not 0 <= devices <= len(local):
        raise ValueError(f"engine.devices must be 0..{len(local)} (what this process has), not {devices}")
    chosen = np.array(local[: devices or len(local)])
    return jax.sharding.Mesh(chosen, (CELLS,), axis_types=(jax.sharding.AxisType.Auto,))
