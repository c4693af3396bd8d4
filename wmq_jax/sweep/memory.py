"""How much memory a sweep needs, estimated before anything is compiled, and the tile that fits."""

import os
from pathlib import Path
from typing import NamedTuple

import jax

from wmq_jax.models import WorldModelConfig
from wmq_jax.planning import CEMConfig, GDConfig, MPCConfig
from wmq_jax.runtime.container import free_bytes

FLOAT = 4  # bytes
# A token's simultaneous activations in a pre-norm block: the residual, its norm, q, k, v and attention output, and the
# MLP's two hidden arrays. Measured against XLA's own figures by a test.
RESIDUAL_COPIES, HEAD_COPIES, HIDDEN_COPIES = 4, 5, 2
# Of the plans: the noise, the plans and their elites.
PLAN_COPIES = 3
# An accelerator is kept busy by about this many tokens at a time.
BUSY_TOKENS = 2**18
MAX_TILE = 64


def num_samples(config: MPCConfig) -> int:
    """Futures imagined together for one cell."""
    return config.planner.samples if isinstance(config.planner, CEMConfig) else 1


class Weights(NamedTuple):
    """The stacked table: number of variants, and bytes of one."""

    variants: int
    bytes_each: int


def _block_bytes(tokens: int, width: int, inner: int, hidden: int, heads: int) -> int:
    """Simultaneous activations of one sample in a pre-norm block, in bytes."""
    per_token = RESIDUAL_COPIES * width + HEAD_COPIES * inner + HIDDEN_COPIES * hidden
    return FLOAT * (tokens * per_token + 2 * heads * tokens**2)


def cell_bytes(model: WorldModelConfig, config: MPCConfig, keep_all: bool, references: bool = False) -> int:
    """Estimated working memory of one cell, in bytes: one block's activations of all samples and the frames that are
    kept.

    Gradient descent keeps every block of every step for the way back. With the simulator as a reference, pictures of
    all samples pass the encoder. Beside that are the plans and the proposals of the optimiser, which count where there
    are many.
    """
    predictor, encoder = model.predictor, model.encoder
    inner = predictor.heads * predictor.dim_head
    block = _block_bytes(
        model.num_hist * model.tokens_per_frame, model.predictor_dim, inner, predictor.mlp_dim, predictor.heads
    )
    if isinstance(config.planner, GDConfig):
        block, keep_all = block * predictor.depth * config.horizon, True
    if references:
        tokens = model.num_patches + 1 + encoder.registers
        pixels = FLOAT * 3 * model.image_size**2
        block = max(block, pixels + _block_bytes(tokens, encoder.width, encoder.width, encoder.mlp_dim, encoder.heads))
    frames = FLOAT * (config.horizon + 1) * model.tokens_per_frame * model.predictor_dim if keep_all else 0
    plans = FLOAT * PLAN_COPIES * config.horizon * model.action_dim
    return num_samples(config) * (block + frames + plans) + 2 * record_bytes(model, config)


def record_bytes(model: WorldModelConfig, config: MPCConfig) -> int:
    """What a call takes in and gives back for one cell, in bytes: nearly all of it proposals and actions."""
    return FLOAT * (2 * config.planner.steps + 3) * config.horizon * (model.action_dim + model.proprio_dim)


def available_bytes() -> int:
    """Memory a device of this process can still hand out: the accelerator's limit, or its share of the host's."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return _host_bytes() // max(1, jax.local_device_count())


def _host_bytes() -> int:
    """Memory of the host that can be had without swapping (where it does not say, all), within a container's limit."""
    return int(min(_machine_bytes(), free_bytes()))


def _machine_bytes() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        if "MemAvailable" in fields:
            return 1024 * int(fields["MemAvailable"].split()[0])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def choose_tile(
    model: WorldModelConfig,
    config: MPCConfig,
    weights: Weights,
    keep_all: bool,
    references: bool = False,
    requested: int = 0,
    tiles: int = 1,
) -> tuple[int, int]:
    """The tile and the estimated peak per device, in bytes.

    Args:
      model: sizes of the model.
      config: sizes of the plans.
      weights: the stacked variants.
      keep_all: whether the objective reads all imagined frames.
      references: whether the true simulator is planned with, too.
      requested: the tile asked for; 0 chooses one cell on CPU and, elsewhere, what keeps the device busy and fits.
      tiles: tiles of a device in one call, which are handed over together.

    Raises:
      ValueError: it does not fit; the message names the setting that changes it.
    """
    if requested < 0:
        raise ValueError(f"engine tile must be 0 (automatic) or more, not {requested}")
    budget = available_bytes()
    one = cell_bytes(model, config, keep_all, references)
    # The table twice, while quantized variants replace the copies that it was compiled with, and the variant a tile
    # works with.
    table = (2 * weights.variants + 1) * weights.bytes_each
    peak = lambda tile: table + tile * (one + tiles * record_bytes(model, config))
    tile = requested
    if tile == 0:
        tokens = num_samples(config) * model.num_hist * model.tokens_per_frame
        on_cpu = jax.local_devices()[0].platform == "cpu"
        tile = 1 if on_cpu else min(MAX_TILE, max(1, BUSY_TOKENS // tokens))
        while tile > 1 and peak(tile) > budget:
            tile //= 2
    if peak(tile) > budget:
        raise ValueError(
            f"a tile of {tile} needs about {peak(tile) / 2**30:.1f} GiB a device and {budget / 2**30:.1f} GiB are "
            "free; lower --config.engine.tile, --config.engine.tiles_per_call, samples, steps or horizons of "
            "--config.planner, or the number of --config.variants"
        )
    return tile, peak(tile)
