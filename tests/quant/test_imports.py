"""`import wmq_jax.quant` pulls in nothing but jax and numpy."""

import json
import subprocess
import sys
from pathlib import Path

import wmq_jax.quant

ROOT = Path(__file__).parents[2]


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in memory after ``statement`` in a fresh interpreter."""
    code = f"{statement}; import sys, json; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return set(json.loads(output.splitlines()[-1]))


def test_importing_quant_loads_only_jax_and_numpy():
    surplus = loaded_by("import wmq_jax.quant") - loaded_by("import jax, numpy") - set(sys.stdlib_module_names)
    assert surplus == {"wmq_jax"}


def test_exports_are_sorted_and_exist():
    assert wmq_jax.quant.__all__ == sorted(wmq_jax.quant.__all__)
    assert all(hasattr(wmq_jax.quant, name) for name in wmq_jax.quant.__all__)
