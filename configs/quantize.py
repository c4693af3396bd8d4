"""A quantized checkpoint and what it cost.

    python -m experiments.quantize --config=configs/quantize.py:small --config.variant=awq:w4g32

quantizes the bundled Wall model, calibrated on what the planner of `configs/wall.py:small` considers, so that the
result is that sweep's variant bit for bit.

    python -m experiments.quantize --config=configs/quantize.py --config.checkpoint=models/wall \\
        --config.dataset=wall_single.zip --config.calibration_source=dataset

is for models of the official size, with the planner of the study, or with real episodes instead of a planner. A
published run can be given as it is, with `official.backbone` beside it (see `configs/wall.py`).
"""

import ml_collections

from configs import wall

MODES = ("study", "small")


def get_config(mode: str = "study") -> ml_collections.ConfigDict:
    """The configuration of a mode: 'study' or 'small', whose planners are those of `configs/wall.py`."""
    if mode not in MODES:
        raise ValueError(f"configs/quantize.py has the modes {', '.join(MODES)}, not {mode!r}")
    config = wall.get_config(mode)
    config.name = f"quantize-{mode}"
    for name in ("variants", "references", "pictures"):
        del config[name]
    config.variant = "w4g32"  # one, in the grammar of a sweep's variants
    config.held_out = 32  # calibration episodes for the errors of blocks, which no method looks at; 0: no such errors
    config.episodes.count = 1  # nothing is evaluated; base_seed counts for the calibration episodes
    return config
