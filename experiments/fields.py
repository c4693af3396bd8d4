"""The fields of a config that each program reads; a config without one of them is another program's."""


def _in(group: str, names: str) -> tuple[str, ...]:
    return tuple(f"{group}.{name}" for name in names.split())


# Of whatever opens a published run.
_OFFICIAL = _in("official", "backbone epoch encoder_heads sha256")
# Of whatever plans with the study's planner.
_PLANNING = (
    *("name", "checkpoint", "dataset", "env.name", "calibration_source"),
    *_OFFICIAL,
    *_in("methods", "smoothquant_alpha awq_scaled omniquant_alpha omniquant_epochs omniquant_batch"),
    *_in("methods", "omniquant_transform_rate omniquant_clipping_rate released"),
    *_in("planner", "optimizer horizons executed iterations seeds samples elites steps init_std check_every"),
    *_in("planner", "learning_rate step_noise objective alpha base"),
    *_in("episodes", "count base_seed goal_source goal_horizon"),
    *_in("calibration", "episodes iterations samples seed horizon"),
    *_in("engine", "tile tiles_per_call devices"),
)

SWEEP = ("variants", "references", "pictures", "engine.noise_floor_tile", *_PLANNING)
QUANTIZE = ("variant", "held_out", *_PLANNING)
# Groups of settings that have defaults name what they lack themselves.
TRAIN = (
    *("name", "seed", "dataset", "env.name", "model.encoder", "model.predictor", "model.frameskip"),
    *_in("init", "checkpoint predictor decoder"),
    *_OFFICIAL,
    *_in("data", "train validation walk"),
    *("encoder", "predictor.shard", "decoder", "validation.rollouts", "validation.planner"),
)
# The rest depends on the kind.
BENCH = ("kind", "only")
