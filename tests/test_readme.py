"""What the README shows must run."""

import re
from pathlib import Path

from configs import train_wall, wall
from wmq_jax.quantized import parse_variant

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_the_snippet_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    exec(compile(code, "README.md", "exec"), {})
    assert 0 < float(capsys.readouterr().out) < 1


def test_ci_runs_the_readmes_test_line():
    lines = re.findall(r"^pip install .*&& python -m pytest$", TEXT, re.M)
    assert len(lines) == 1
    assert "grep -m1 '^pip install .*&& python -m pytest$' README.md" in (ROOT / ".ci" / "run").read_text()


def has_field(config, name):
    for field in name.split("."):
        if field not in config:
            return False
        config = config[field]
    return True


def test_settings_that_it_names_exist():
    sweep, training = TEXT.split("## Train a model")
    training, rest = training.split("\n## ", 1)
    for text, config in ((sweep + rest, wall.get_config("small")), (training, train_wall.get_config("small"))):
        names = set(re.findall(r"--config\.([\w.]+)=", text)) - {"path", "checkpoint"}
        assert names
        assert [name for name in names if not has_field(config, name)] == []


def test_variants_that_it_names_exist():
    for text in re.findall(r"--config\.variants='([^']*)'", TEXT):
        for word in text.split():
            parse_variant(word)


def test_files_that_it_links_exist():
    for target in re.findall(r"\]\(([\w./]+)\)", TEXT):
        assert (ROOT / target).exists(), target
