"""Sweeps: every variant on every episode in one compiled program, into a results folder that survives a kill.

The modules from top to bottom: ``preparation`` and ``run`` (a sweep from config to folder), ``traces`` and
``calibration`` (what else the engine is used for), ``quantization`` (a quantized checkpoint in place of rows),
``scheduler`` (which cells it works on), ``engine`` (the compiled program), ``store`` and ``rows`` (what stays),
``settings``, ``cells``, ``memory``, ``mesh``, ``progress``, ``references``.
"""

from wmq_jax.envs.manifest import Manifest, make_manifest
from wmq_jax.runtime.devices import configure
from wmq_jax.sweep.cells import Cell, all_cells
from wmq_jax.sweep.engine import Engine, compile_engine
from wmq_jax.sweep.mesh import cell_mesh
from wmq_jax.sweep.preparation import Sweep, describe, open_folder, prepare
from wmq_jax.sweep.quantization import (
    default_workdir,
    describe_quantization,
    open_workdir,
    prepare_quantization,
    run_quantization,
)
from wmq_jax.sweep.run import missing_text, run_sweep, standing
from wmq_jax.sweep.scheduler import run_cells
from wmq_jax.sweep.settings import SweepSettings, check_settings
from wmq_jax.sweep.store import ResultsFolder

__all__ = [
    "Cell",
    "Engine",
    "Manifest",
    "ResultsFolder",
    "Sweep",
    "SweepSettings",
    "all_cells",
    "cell_mesh",
    "check_settings",
    "compile_engine",
    "configure",
    "describe",
    "make_manifest",
    "missing_text",
    "open_folder",
    "default_workdir",
    "describe_quantization",
    "open_workdir",
    "prepare",
    "prepare_quantization",
    "run_cells",
    "run_quantization",
    "run_sweep",
    "standing",
]
