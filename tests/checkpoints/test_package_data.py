"""The bundled model travels with the package."""

import tomllib
from pathlib import Path

import wmq_jax
from wmq_jax.checkpoints.native import bundled_model_path, load_model

PACKAGE = Path(wmq_jax.__file__).parent


def test_every_file_of_the_bundled_model_is_package_data():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    (pattern,) = project["tool"]["setuptools"]["package-data"]["wmq_jax"]
    shipped = {path for path in PACKAGE.glob(pattern) if path.is_file()}
    files = {path for path in Path(bundled_model_path()).rglob("*") if path.is_file()}
    assert files and files <= shipped
    assert sum(path.stat().st_size for path in files) <= 4 * 2**20


def test_the_bundled_model_is_whole():
    assert load_model(bundled_model_path()).normalizer is not None
