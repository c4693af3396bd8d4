"""Settings of official runs: read as data alone, complete, and named where they are not."""

import pytest

from tests.models.tiny import tiny_config
from wmq_jax.checkpoints.hydra import encoder_feature, hydra_settings, model_config, portion, read_hydra, write_hydra
from wmq_jax.data import Portion
from wmq_jax.models import DecoderConfig, PredictorConfig, ViTConfig, official_config

CLASS_TOKEN = ViTConfig(width=8, depth=1, heads=2, mlp_dim=16, table_grid=3, feature="x_norm_clstoken")
CONFIGS = {
    "published wall": official_config("wall"),
    "published pusht": official_config("pusht"),
    "no decoder": tiny_config(),
    "extra tokens": tiny_config(0),
    "another head width": tiny_config(
        predictor=PredictorConfig(depth=1, heads=3, dim_head=5, mlp_dim=7, emb_dropout=0.5)
    ),
    "transposed convolutions": tiny_config(
        decoder=DecoderConfig(kind="transposed_conv", depth=4, output_size=64), encoder=CLASS_TOKEN
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back(name):
    config = CONFIGS[name]
    settings = read_hydra(write_hydra(hydra_settings(config, "dinov2_vits14", "wall")), "x")
    encoder = config.encoder
    assert encoder_feature(settings) == encoder.feature
    assert model_config(settings, encoder, config.proprio_dim, config.action_dim) == config


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: s.pop("num_hist"), "num_hist must be a int, but is missing"),
        (lambda s: s.update(num_hist=True), "num_hist must be a int, but is True"),
        (lambda s: s["predictor"].update(depth="six"), "predictor.depth must be a int, but is 'six'"),
        (
            lambda s: s["predictor"].update(_target_="os.system"),
            "predictor._target_ names system; accepted: ViTPredictor",
        ),
        (
            lambda s: s["decoder"].update(_target_="a.B"),
            "decoder._target_ names B; accepted: VQVAE, TransposedConvDecoder",
        ),
        (lambda s: s["encoder"].update(name="dinov2_vits14_reg"), "names the backbone dinov2_vits14_reg.*0 register"),
        (lambda s: s.update(has_predictor=False), "no predictor"),
        (lambda s: s.update(img_size=8), "image_size must be at least 16"),
        (lambda s: s.update(env=3, predictor=[1]), "predictor._target_ must be a str"),
    ],
)
def test_what_does_not_fit_is_named(change, words):
    config = official_config("wall")
    settings = hydra_settings(config, "dinov2_vits14", "wall")
    change(settings)
    with pytest.raises(ValueError, match=words):
        model_config(settings, config.encoder, config.proprio_dim, config.action_dim)


@pytest.mark.parametrize(
    "dataset, expected",
    [
        ({"n_rollout": 18685, "split_ratio": 0.8}, Portion(18685, 0.8)),
        ({"n_rollout": None}, Portion()),
        ({"n_rollout": 0, "split_ratio": 1}, Portion(None, 1)),
        (None, Portion()),
    ],
)
def test_what_a_run_takes_of_its_data_set(dataset, expected):
    assert portion({"env": {"name": "wall", "dataset": dataset}}) == expected


@pytest.mark.parametrize(
    "dataset, words",
    [
        ({"n_rollout": -1}, "env.dataset: n_rollout must be a whole number of 1 or more"),
        ({"n_rollout": "all"}, "env.dataset.n_rollout must be a int, but is 'all'"),
        ({"split_ratio": 2}, "env.dataset: split_ratio must be a number from 0 to 1, not 2"),
        ({"split_ratio": float("nan")}, "env.dataset.split_ratio is nan"),
    ],
)
def test_what_no_run_can_take_is_named(dataset, words):
    with pytest.raises(ValueError, match=f"hydra.yaml: {words}"):
        portion({"env": {"dataset": dataset}})


def test_another_encoder_is_named():
    with pytest.raises(ValueError, match="encoder._target_ names R3M; accepted: DinoV2Encoder"):
        encoder_feature({"encoder": {"_target_": "models.encoder.r3m.R3M"}})


@pytest.mark.parametrize(
    "text, words",
    [
        ("a: !!python/object/apply:os.system ['touch pwned']", "no plain YAML"),
        ("a: &x [1]\nb: [*x, *x]", "aliases"),
        ("a: [1", "no plain YAML"),
        ("- 1", "no YAML mapping"),
        ("a: !!bool maybe", "no plain YAML"),
        ('a: !!int ""', "no plain YAML"),
        ("a: !!timestamp abc", "no plain YAML"),
        ("[" * 5000, "no plain YAML"),
        ("a: " + "x" * 2_000_000, "more than 65536 characters"),
    ],
)
def test_yaml_that_is_refused(text, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"run/hydra.yaml.*{words}") as error:
        read_hydra(text, "run/hydra.yaml")
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tag", ["", "!!int ", "!!float "])
def test_numbers_in_base_60_stay_text(tag):
    """PyYAML's way to read them takes the square of their parts."""
    for value in ("1:30", "1:30.5", ":".join(["1"] * 30_000)):
        assert read_hydra(f"a: {tag}{value}", "x") == {"a": value}
    assert read_hydra("a: [1, -0x10, 1.5, 1e+3, .inf]", "x") == {"a": [1, -16, 1.5, "1e+3", float("inf")]}
