"""How much memory a sweep needs, estimated before anything is compiled, and the tile that fits."""

import os

import jax

from wmq_jax.models import WorldModelConfig
from wmq_jax.planning import CEMConfig, MPCConfig

FLOAT = 4  # bytes
# A token's simultaneous activations in a pre-norm block: the residual, its norm, q, k, v and attention output, and the MLP's two
# hidden arrays. Measured against XLA's own figures by a test.
RESIDUAL_COPIES, HEAD_COPIES, HIDDEN_COPIES = 4, 5, 2
# An accelerator is kept busy by about this many tokens at a time.
BUSY_TOKENS = 2**18
MAX_TILE = 64


def num_samples(config: MPCConfig) -> int:
    """Futures imagined together for one cell."""
    return config.planner.samples if isinstance(config.planner, CEMConfig) else 1


def cell_bytes(model: WorldModelConfig, config: MPCConfig, keep_all: bool) -> int:
    """Estimated working memory of one cell, in bytes: one block's activations of all samples and the frames that are kept."""
    predictor = model.predictor
    tokens = model.num_hist * model.tokens_per_frame
    inner = predictor.heads * predictor.dim_head
    per_token = RESIDUAL_COPIES * model.predictor_dim + HEAD_COPIES * inner + HIDDEN_COPIES * predictor.mlp_dim
    attention = 2 * predictor.heads * tokens**2
    frames = (config.horizon + 1) * model.tokens_per_frame * model.predictor_dim if keep_all else 0
    return FLOAT * num_samples(config) * (tokens * per_token + attention + frames)


def available_bytes() -> int:
    """Memory that a device of this process can still hand out: the accelerator's limit, or its share of the host's free memory."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return free // max(1, jax.local_device_count())


def choose_tile(
    model: WorldModelConfig, config: MPCConfig, table_bytes: int, keep_all: bool, requested: int = 0
) -> tuple[int, int]:
    """The tile and the estimated peak per device, in bytes.

    Args:
      model: sizes of the model.
      config: sizes of the plans.
      table_bytes: the stacked variants.
      keep_all: whether the objective reads all imagined frames.
      requested: the tile asked for; 0 chooses one cell on CPU and, elsewhere, what keeps the device busy and fits.

    Raises:
      ValueError: it does not fit; the message names the setting that changes it.
    """
    budget = available_bytes()
    one = cell_bytes(model, config, keep_all)
    # The tile's own variant is copied out of the table.
    peak = lambda tile: table_bytes + tile * one
    if requested < 0:
        raise ValueError(f"engine tile must be 0 (automatic) or more, not {requested}")
    tile = requested
    if tile == 0:
        tokens = num_samples(config) * model.num_hist * model.tokens_per_frame
        on_cpu = jax.local_devices()[0].platform == "cpu"
        tile = 1 if on_cpu else min(MAX_TILE, max(1, BUSY_TOKENS // tokens))
        while tile > 1 and peak(tile) > budget:
            tile //= 2
    if peak(tile) > budget:
        raise ValueError(
            f"a tile of {tile} needs about {peak(tile) / 2**30:.1f} GiB a device and {budget / 2**30:.1f} GiB are free; "
            "lower --config.engine.tile, --config.planner.samples or the number of --config.variants"
        )
    return tile, peak(tile)
