"""What a training configuration may not say, each in one sentence."""

import pytest

from wmq_jax import cli, training
from wmq_jax.models import PredictorConfig
from wmq_jax.training.optimizer import LearningRates


def set_field(config, path, value):
    *groups, field = path.split(".")
    for group in groups:
        config = config[group]
    config[field] = value


def test_the_config_file_is_accepted():
    settings = training.check_settings(cli.load_config("configs/train_wall.py:small").to_dict())
    assert settings.model.standardize_latents and settings.model.predictor.residual


def test_the_official_mode_has_the_official_rates_and_no_deviation():
    settings = training.check_settings(cli.load_config("configs/train_wall.py:official").to_dict())
    assert not settings.model.standardize_latents and not settings.model.predictor.residual
    predictor, decoder, rates = settings.predictor, settings.decoder, LearningRates()
    assert (predictor.optimizer, predictor.learning_rate, predictor.weight_decay) == ("adamw", rates.predictor, 0.01)
    assert (decoder.learning_rate, predictor.warmup, decoder.warmup) == (rates.decoder, 0, 0)
    assert (predictor.embeddings_learning_rate, predictor.schedule, decoder.schedule) == (
        rates.embeddings,
        "constant",
        "constant",
    )
    assert settings.model.predictor.dropout == PredictorConfig.dropout == 0.1


def test_a_model_is_validated_with_the_planner_it_ships_with():
    ours = cli.load_config("configs/train_wall.py:small").validation
    sweep = cli.load_config("configs/wall.py:small").planner
    assert all(sweep[name] == value for name, value in ours.planner.items())
    assert (ours.iterations, str(ours.horizon)) == (sweep.iterations, sweep.horizons)


@pytest.mark.parametrize(
    "path, value, words",
    [
        ("env.name", "maze", "unknown environment 'maze'"),
        ("env.door_y", 3, "door_y"),
        ("env.image_size", 224, "model.image_size 65"),
        ("model.num_hist", 9, "too short for clips of 10 frames"),
        ("model.action_dim", 4, "model.action_dim must be 2 and 10"),
        ("model.decoder", None, "model.decoder must be there"),
        ("model.encoder.heads", 3, "multiple of heads"),
        ("data.train", 0, "^data.train must be 1..10000000, not 0$"),
        ("data.train", 2**40, "^data.train must be 1..10000000, not 1099511627776$"),
        ("data.walk.steps", 4, "data.walk.steps 4 is too short for clips of 2 frames"),
        ("predictor.offsets", 6, "predictor.offsets must be 1 to model.frameskip, 5, not 6"),
        ("predictor.offsets", 0, "predictor.offsets must be 1..10000000, not 0"),
        ("data.walk.gaussian", 0.9, "together at most 1, not 0.9 and 0.25$"),
        ("data.walk.gaussian", float("nan"), "together at most 1, not nan and 0.25$"),
        ("data.walk.steered", float("nan"), "together at most 1, not 0.5 and nan$"),
        ("data.walk.scale", (0, 0), r"^walks: scale must reach above 0, not \(0, 0\)$"),
        ("data.walk.speed", (1.0, float("inf")), r"speed must be a range \(low, high\) within 0..1000"),
        ("data.walk.speed", ("a", "b"), r"^data.walk.speed must be numbers, not \('a', 'b'\)$"),
        ("model.encoder.interpolate_offset", float("nan"), "interpolate_offset must lie in .0, 1., got nan"),
        ("model.encoder.width", 2**31, "width must be a whole number in 1..65536, got 2147483648"),
        ("predictor.warmup", 2**31, "^predictor.warmup must be 0..10000000, not 2147483648$"),
        ("predictor.warmup", 15, "^predictor.warmup 15 must be less than the 15 steps of its rounds$"),
        ("validation.base_seed", 0, "^validation: base seed 0 would mix .* episodes; choose 4 or more$"),
        (
            "validation.base_seed",
            2**31 - 3,
            "^validation: base seed 2147483645 with 2 episodes leaves the seeds 0..2147",
        ),
        ("validation.base_seed", 2**62, "^validation: base seed 4611686018427387904 with 2 episodes leaves the seeds"),
        ("validation.horizon", 101, "^validation: planner horizon must be 1..100, not 101$"),
        ("validation.iterations", 2**31, "^validation.iterations must be 1..10000000, not 2147483648$"),
        ("validation.iterations", 1001, "^validation: planner iterations must be 1..1000, not 1001$"),
        ("encoder.chunk", 3, "encoder.chunk 3 must divide"),
        ("encoder.batch", 5, "encoder.batch must be even"),
        ("encoder.blurs", (2.0, -1.0), "encoder.blurs must be positive"),
        ("encoder.blurs", (float("nan"),), "encoder.blurs must be positive"),
        ("encoder.warmup", 9, "encoder.warmup 9 must be less than encoder.steps 4"),
        ("data.walk.smoothness", (0.3, 1.5), r"smoothness must be a range \(low, high\) within 0..1"),
        ("data.walk.scale", (4.0,), "scale must be a range"),
        ("data.walk.speed", (1.0, float("nan")), "speed must be a range"),
        ("seed", 2**70, "seed must be 0..4294967295"),
        *(("name", name, "^name must be letters, digits, ") for name in ("", "/etc/passwd", "../..", ".git", "a b")),
        ("encoder.grid", 6, "encoder.grid 6 must be a multiple"),
        ("encoder.slowness", -1.0, "encoder.slowness"),
        ("predictor.shard", 41, "more than data.train"),
        ("predictor.batch", 1000, "predictor.batch 1000 is more than the 40 clips"),
        ("predictor.optimizer", "sgd", "must be adamw or muon, not 'sgd'"),
        ("predictor.schedule", "linear", "predictor.schedule must be cosine or constant, not 'linear'"),
        ("decoder.schedule", "", "decoder.schedule must be cosine or constant"),
        ("predictor.embeddings_learning_rate", 1e-3, "embeddings_learning_rate is of adamw"),
        ("predictor.learning_rate", float("nan"), "predictor.learning_rate"),
        ("validation.rollouts", 7, "validation.rollouts"),
        ("validation.planner.elites", 1, "elites"),
    ],
)
def test_bad_values_are_named(tiny_config, path, value, words):
    env = tiny_config["env"]
    env.setdefault("image_size", 65)
    set_field(tiny_config, path, value)
    with pytest.raises(ValueError, match=words):
        training.check_settings(tiny_config)


def test_an_unknown_mode_is_named():
    with pytest.raises(ValueError, match="has the modes small, official, finetune, not 'huge'"):
        cli.load_config("configs/train_wall.py:huge")
