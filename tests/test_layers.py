"""The arrows between the layers of the package: imports may only point down."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From top to bottom; a module may import its own layer and those below it.
ORDER = (
    "examples",
    "experiments",
    "cli",
    "analysis",
    "sweep",
    "training",
    "planning",
    "envs",
    "checkpoints",
    "data",
    "quantized",
    "models",
    "quant",
    "runtime",
    "io",
)
# Layers that may import less than the order allows: what of our own and of other packages they see.
OWN_ONLY = {
    "examples": {"examples", "quant", "envs"},
    "analysis": {"analysis", "io"},
    "models": {"models"},
    "io": {"io"},
}
FOREIGN_ONLY = {"analysis": {"numpy", "matplotlib"}, "quant": {"jax", "numpy"}}
# Adapters of quant to frameworks, imported on request; the rest of quant may not import them.
ADAPTERS = {"wmq_jax/quant/linen.py": {"flax"}, "wmq_jax/quant/nnx.py": {"flax"}}


def layer_of(module: str) -> str | None:
    """The layer of a dotted module name; None for a foreign one, '' for the package itself."""
    top, *rest = module.split(".")
    if top == "wmq_jax":
        return rest[0] if rest else ""
    return top if top in ("examples", "experiments") else None


def imported(source: str, package: str) -> set[str]:
    """Dotted names of everything that ``source``, a module of ``package``, imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            # 'from wmq_jax import quant' imports a layer, not a name of the package.
            names |= {f"{base}.{alias.name}" for alias in node.names} if base == "wmq_jax" else {base}
    return names


def violations(path: str, source: str) -> list[str]:
    """What the module at ``path`` (relative to the repository) may not import."""
    parts = Path(path).with_suffix("").parts
    own = layer_of(".".join(parts))
    found = []
    for name in sorted(imported(source, ".".join(parts[:-1]))):
        layer = layer_of(name)
        if layer is None:
            top = name.split(".")[0]
            allowed = FOREIGN_ONLY.get(own)
            if allowed is not None and top not in allowed | ADAPTERS.get(path, set()) | set(sys.stdlib_module_names):
                found.append(f"{path} imports {name}")
        elif layer == "" or layer == "__version__":
            continue  # The package itself imports nothing, so whoever imports it sees nothing more.
        elif layer not in ORDER:
            found.append(f"{path} imports {name}, which is in no layer")
        elif ORDER.index(layer) < ORDER.index(own) or layer not in OWN_ONLY.get(own, {layer}):
            found.append(f"{path} imports {name}, and {own} may not see {layer}")
        elif f"{name.replace('.', '/')}.py" in ADAPTERS and own == "quant" and path not in ADAPTERS:
            found.append(f"{path} imports the adapter {name}")
    return found


def modules() -> list[str]:
    """Every module of the package and every entry point, but the package's own ``__init__``."""
    files = [file for folder in ("wmq_jax", "experiments", "examples") for file in (ROOT / folder).rglob("*.py")]
    names = sorted(file.relative_to(ROOT).as_posix() for file in files)
    return [name for name in names if name != "wmq_jax/__init__.py"]


@pytest.mark.parametrize("path", modules())
def test_imports_point_down(path):
    assert layer_of(".".join(Path(path).with_suffix("").parts)) in ORDER, f"{path} is in no layer"
    assert violations(path, (ROOT / path).read_text()) == []


def test_the_package_itself_imports_nothing():
    # Otherwise `import wmq_jax.quant` would import it too.
    assert imported((ROOT / "wmq_jax/__init__.py").read_text(), "wmq_jax") == set()


@pytest.mark.parametrize(
    "path, source",
    [
        ("wmq_jax/models/vit.py", "from wmq_jax import quant"),
        ("wmq_jax/models/vit.py", "import wmq_jax.envs.wall"),
        ("wmq_jax/quant/grid.py", "import flax"),
        ("wmq_jax/quant/grid.py", "def f():\n  from wmq_jax.quant.linen import observe"),
        ("wmq_jax/quant/grid.py", "from ..models import vit"),
        ("wmq_jax/analysis/stats.py", "import jax"),
        ("wmq_jax/analysis/stats.py", "from wmq_jax.sweep import rows"),
        ("wmq_jax/planning/cem.py", "from wmq_jax.strange import thing"),
        ("examples/vit_linen.py", "from wmq_jax.models import vit"),
    ],
)
def test_an_arrow_that_points_up_is_found(path, source):
    assert violations(path, source)


@pytest.mark.parametrize(
    "path, source",
    [
        ("wmq_jax/quant/grid.py", "import numpy\nfrom wmq_jax.quant.paths import nest\nfrom . import weights"),
        ("wmq_jax/quant/linen.py", "from flax import linen"),
        ("wmq_jax/quantized/table.py", "from wmq_jax import quant\nfrom wmq_jax.quant import linen"),
        ("experiments/sweep.py", "from absl import app\nfrom wmq_jax import sweep"),
    ],
)
def test_an_arrow_that_points_down_is_allowed(path, source):
    assert violations(path, source) == []
