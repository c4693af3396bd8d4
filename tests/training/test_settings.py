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
        ("data.train", 0, "data.train must be 1 or more"),
        ("data.walk.steps", 12, "multiple of model.frameskip 5"),
        ("data.walk.gaussian", 0.9, "shares"),
        ("encoder.chunk", 3, "encoder.chunk 3 must divide"),
        ("encoder.batch", 5, "encoder.batch must be even"),
        ("encoder.blurs", (2.0, -1.0), "encoder.blurs must be positive"),
        ("encoder.blurs", (float("nan"),), "encoder.blurs must be positive"),
        ("encoder.warmup", 9, "encoder.warmup 9 must be less than encoder.steps 4"),
        ("data.walk.smoothness", (0.3, 1.5), r"smoothness must be a range \(low, high\) within 0..1"),
        ("data.walk.scale", (4.0,), "scale must be a range"),
        ("data.walk.speed", (1.0, float("nan")), "speed must be a range"),
        ("seed", 2**70, "seed must be 0..4294967295"),
        ("name", "", "name must not be empty"),
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
