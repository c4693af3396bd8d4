"""What the README shows must run."""

import re
from pathlib import Path

from configs import wall
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


def test_settings_that_it_names_exist():
    config = wall.get_config("small")
    names = set(re.findall(r"--config\.([\w.]+)=", TEXT)) - {"path"}
    assert names
    for name in names:
        holder = config
        for field in name.split("."):
            assert field in holder, name
            holder = holder[field]


def test_variants_that_it_names_exist():
    for text in re.findall(r"--config\.variants='([^']*)'", TEXT):
        for word in text.split():
            parse_variant(word)


def test_files_that_it_links_exist():
    for target in re.findall(r"\]\(([\w./]+)\)", TEXT):
        assert (ROOT / target).exists(), target
