"""What is said of refused files is one printable line, whatever is in them."""

import random
import re
import zipfile

import numpy as np
import pytest

from tests.golden.conftest import golden_path
from tests.io.test_torch_fuzz import mutated
from wmq_jax.checkpoints.hydra import encoder_feature, model_config, read_hydra
from wmq_jax.checkpoints.official import from_torch, weights
from wmq_jax.checkpoints.official_run import load_official
from wmq_jax.data import open_dataset
from wmq_jax.io import save_torch
from wmq_jax.models import official_config

EVIL = "\x1b[2J\r\n\u202e" + "x" * 100_000
LONGEST = 1000


def refusal(call, *arguments, longest=LONGEST):
    """The message with which a call refuses its arguments, checked; None if it takes them."""
    try:
        call(*arguments)
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
        assert message.isprintable() and len(message) <= longest, message[:2000]
        return message
    return None


@pytest.fixture(scope="module")
def run():
    """The recorded run: its settings and its checkpoint."""
    (settings,) = golden_path("checkpoint").glob("outputs/*/hydra.yaml")
    (checkpoint,) = settings.parent.glob("checkpoints/*.pth")
    return settings.read_text(), checkpoint.read_bytes()


def write_run(folder, settings, checkpoint):
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "hydra.yaml").write_bytes(settings if isinstance(settings, bytes) else settings.encode())
    (folder / "checkpoints" / "model_latest.pth").write_bytes(checkpoint)
    return folder


def read_settings(text):
    """What a conversion does with settings."""
    settings = read_hydra(text, "hydra.yaml")
    encoder_feature(settings)
    model_config(settings, official_config("wall").encoder, 2, 10)


def test_damaged_settings(run):
    text, draw, refused = run[0], random.Random(0), 0
    for _ in range(600):
        refused += refusal(read_settings, mutated(text.encode(), draw).decode("latin-1")) is not None
    assert refused > 100


@pytest.mark.parametrize("field", ["DinoV2Encoder", "dinov2_vits14", "ViTPredictor", "VQVAE", "x_norm_patchtokens"])
def test_settings_with_hostile_strings(run, field):
    evil = '"' + EVIL.encode("unicode_escape").decode() + '_reg"'
    assert refusal(read_settings, re.sub(rf"[\w.]*{field}", lambda _: evil, run[0])) is not None


VALUES = ["!!binary AAAA", "[" + "a, " * 9000 + "]", "0x" + "f" * 90000, '"\\e[2J"', "!<%s> 1"]


@pytest.mark.parametrize("value", VALUES, ids=["bytes", "list", "integer", "escape", "tag"])
def test_settings_with_hostile_values(run, value):
    message = refusal(read_settings, run[0].replace("depth: 2", f"depth: {value.replace('%s', 'tag:' + 'y' * 90000)}"))
    assert message is not None


def test_a_damaged_run(run, tmp_path):
    """As a whole: settings, pickle and storages."""
    draw, refused = random.Random(1), 0
    for _ in range(60):
        settings, checkpoint = run[0], mutated(run[1], draw)
        refused += refusal(load_official, write_run(tmp_path / "run", settings, checkpoint)) is not None
    assert refused > 20


def test_modules_with_hostile_names(run, tmp_path):
    save_torch(tmp_path / "a.pth", {EVIL: {EVIL: np.zeros(1, np.float32)}} | {f"{EVIL}{n}": 0 for n in range(99)})
    message = refusal(
        load_official, write_run(tmp_path / "run", run[0], (tmp_path / "a.pth").read_bytes()), longest=4000
    )
    assert "has no predictor" in message and "and 80 more" in message


def test_weights_with_hostile_names():
    """Each is escaped; what the model lacks is named to the last weight, what is too much up to as many."""
    state = {f"predictor.{n}{EVIL}": np.zeros(1) for n in range(999)}
    config = official_config("wall")
    message = refusal(from_torch, state, config, longest=150_000)
    missing = weights(config)
    assert f"missing ({len(missing)}): " in message and all(weight.name in message for weight in missing)
    assert "surplus (999): " in message and message.endswith("and 499 more.")


def test_archives_with_hostile_names(tmp_path):
    """Of folders, of epochs, and of nothing that is looked for."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for n in range(99):
            file.writestr(f"{n}{EVIL[:9000]}/hydra.yaml", "a: 1")
            file.writestr(f"run/checkpoints/model_{n}{'y' * 9000}.pth", "")
        file.writestr("run/hydra.yaml", "a: 1")
    assert "and 80 more" in refusal(load_official, tmp_path / "a.zip", longest=4000)
    assert "and 79 more" in refusal(load_official, tmp_path / "a.zip" / "run", longest=4000)


def test_damaged_archives(tmp_path):
    with open_dataset(golden_path("dataset_wall")).place.open("states.pth") as file:
        states = file.read()
    path = tmp_path / "wall_single.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("states", "actions", "door_locations", "wall_locations"):
            file.writestr(f"wall_single/{name}.pth", states)
    data, draw, refused = path.read_bytes(), random.Random(2), 0
    for _ in range(500):
        path.write_bytes(mutated(data, draw))
        refused += refusal(open_dataset, path) is not None
    assert refused > 100
