"""A prepared sweep to a finished results folder: computes what is missing in it, and nothing else."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from wmq_jax import quantized
from wmq_jax.io import write_json
from wmq_jax.io.wording import counted
from wmq_jax.models import WorldModel
from wmq_jax.sweep import references
from wmq_jax.sweep.calibration import dataset_rollouts, planner_rollouts
from wmq_jax.sweep.cells import Cell, all_cells
from wmq_jax.sweep.engine import Engine, compile_engine
from wmq_jax.sweep.preparation import Sweep, planning_params
from wmq_jax.sweep.progress import ProgressBar
from wmq_jax.sweep.rows import make_row
from wmq_jax.sweep.scheduler import run_cells
from wmq_jax.sweep.store import ResultsFolder
from wmq_jax.sweep.traces import save_traces, traced_variants

# What of a sweep's record may change between one start and the next.
MADE_WITH = ("git_revision", "versions", "device")

# Names of the tables.
ROWS = "rows"
REFERENCE = "reference"
NOISE_FLOOR = "noise_floor"


def compile_planner(sweep: Sweep, problem: Any, table: Any, tile: int) -> Engine:
    """The engine of a sweep, with room for its calibration episodes."""
    settings, room = sweep.settings, len(sweep.calibration)
    return compile_engine(problem, table, sweep.evaluation, sweep.mesh, tile, settings.tiles_per_call, room)


def build_engine(sweep: Sweep, log: Callable[[str], None] = lambda line: None) -> Engine:
    """Compiles the planner, calibrates with it, and puts the quantized variants in place.

    Args:
      sweep: the sweep.
      log: told of what may take minutes: calibration, and the searches and training of some methods.
    """
    settings, checkpoint = sweep.settings, sweep.checkpoint
    params = planning_params(checkpoint.params)
    full = [settings.variants[0]] * len(settings.variants)
    # Until the variants are built, every row of the table is full precision: only shapes matter to the compiler.
    engine = compile_planner(
        sweep, sweep.problem, quantized.build_variants(checkpoint.config, params, full), sweep.tile
    )
    statistics = None
    if any(quantized.needs_statistics(spec) for spec in settings.variants):
        log(f"rows: calibrates on {settings.calibration['episodes']} episodes")
        rollouts = calibration_rollouts(sweep, lambda: engine, settings.calibration)
        samples = {**quantized.needed_samples(settings.variants), "seed": settings.calibration["seed"]}
        statistics = quantized.calibrate(
            WorldModel(checkpoint.config), {"params": checkpoint.params}, rollouts, **samples
        )
    log(f"rows: makes the {len(settings.variants)} variants")
    table = quantized.build_variants(checkpoint.config, params, settings.variants, statistics, settings.methods)
    return engine.with_data(table, sweep.evaluation)


def calibration_rollouts(
    sweep: Sweep, engine: Callable[[], Engine], limits: Mapping[str, int], skip: int = 0
) -> Iterator[tuple[Any, Any, Any]]:
    """What calibration looks at: futures that the full-precision planner considers, or real episodes.

    Args:
      sweep: its settings say which.
      engine: gives the engine, with full precision in row 0 of its table; called for a planner's futures only.
      limits, skip: see :func:`wmq_jax.sweep.calibration.planner_rollouts`.
    """
    checkpoint = sweep.checkpoint
    if sweep.settings.calibration_source == "dataset":
        return dataset_rollouts(sweep.dataset, checkpoint.config, checkpoint.normalizer, limits, skip)
    return planner_rollouts(engine(), sweep.calibration, limits, skip)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of rows to compute.

    Attributes:
      name: of its files, such as ``rows``.
      variants: names that cells index.
      cells: in canonical order.
    """

    name: str
    variants: Sequence[str]
    cells: Sequence[Cell]

    def share(self, process: int, processes: int) -> "Table":
        """What process number ``process`` of ``processes`` computes: by place in the table, whatever is done."""
        return dataclasses.replace(self, cells=self.cells[process::processes])

    def key(self, cell: Cell) -> tuple[Any, ...]:
        """The row key of a cell."""
        return self.variants[cell.variant], cell.seed, cell.horizon, cell.episode


def compute_rows(
    sweep: Sweep,
    folder: ResultsFolder,
    table: Table,
    engine: Callable[[], Engine],
    shift: int = 0,
) -> None:
    """Computes the rows that the folder lacks.

    Args:
      sweep: the sweep.
      folder: where rows go, one by one as cells finish.
      table: what is wanted of this process.
      engine: makes the engine; called only if something is missing.
      shift: number of the table's variant that is row 0 of the engine's own table.
    """
    missing = _missing(folder, table)
    if not missing:
        return
    names = {table.variants[cell.variant] for cell in table.cells}
    label = f"{table.name}, {names.pop()}" if len(names) == 1 else table.name
    print(f"{label}: compiles the planner", flush=True)
    compiled = engine()
    bar = ProgressBar(label, len(table.cells), len(table.cells) - len(missing), sweep.settings.mpc.iterations)
    # Episode by episode: variants that fail plan longest, so that in their own order the time left would grow on the
    # way, and an interrupted sweep would know the first variants only.
    missing.sort(key=lambda cell: cell.episode)
    local = [dataclasses.replace(cell, variant=cell.variant - shift) for cell in missing]
    for call in run_cells(compiled, local):
        for cell, records in call.finished:
            name = table.variants[cell.variant + shift]
            folder.append(table.name, make_row(cell, name, records, sweep.problem.config))
        folder.time(table=table.name, plans=call.plans, seconds=round(call.seconds, 4), cells=len(call.finished))
        bar.update(len(call.finished), call.iterations)
    bar.close()


def _missing(folder: ResultsFolder, table: Table) -> list[Cell]:
    """The cells of the table whose rows the folder lacks."""
    done = folder.load(table.name)
    return [cell for cell in table.cells if table.key(cell) not in done]


def finish_table(folder: ResultsFolder, table: Table) -> bool:
    """Writes the table in canonical order if every row is there; whether it is."""
    done = folder.load(table.name)
    keys = [table.key(cell) for cell in table.cells]
    if not all(key in done for key in keys):
        return False
    folder.finish(table.name, keys)
    return True


def tables(sweep: Sweep) -> list[Table]:
    """What a finished folder holds: the rows first, then what the settings ask for beside them."""
    settings = sweep.settings
    found = [Table(ROWS, sweep.names, sweep.cells())]
    if settings.references:
        names = references.reference_names(settings.mpc.planner)
        cells = all_cells(len(names), settings.seeds, settings.horizons, settings.episodes)
        found.append(Table(REFERENCE, names, list(cells)))
    if settings.noise_floor_tile:
        found.append(dataclasses.replace(found[0], name=NOISE_FLOOR))
    return found


def standing(sweep: Sweep, folder: ResultsFolder) -> str:
    """How far the folder is, for a person."""
    left = {table.name: len(_missing(folder, table)) for table in tables(sweep)}
    total = len(sweep.cells())
    missing = left.pop(ROWS)
    if missing == total:
        return f"starting {total} cells in {folder.path}"
    if missing:
        return f"resuming in {folder.path}: {total - missing} of {total} cells are done"
    others = [f"{count} of the {name.replace('_', ' ')}" for name, count in left.items() if count]
    return f"all {total} cells are done in {folder.path}" + (f", but {' and '.join(others)} are not" if others else "")


def missing_text(sweep: Sweep, folder: ResultsFolder) -> str:
    """What the folder still lacks when this process has done its share, for a person."""
    left = {table.name.replace("_", " "): len(_missing(folder, table)) for table in tables(sweep)}
    return " and ".join(f"{counted(count, 'cell')} of the {name}" for name, count in left.items() if count)


def _references(sweep: Sweep, folder: ResultsFolder, table: Table) -> None:
    """The true simulator, where the planner can use it, and random actions on the same episodes."""
    plain = quantized.build_variants(
        sweep.checkpoint.config, planning_params(sweep.checkpoint.params), sweep.settings.variants[:1]
    )
    makers = {
        references.SIMULATOR: lambda: references.simulator_problem(sweep.problem, plain),
        references.RANDOM: lambda: references.random_problem(sweep.problem),
    }
    for variant, name in enumerate(table.variants):

        def compiled():
            problem, weights = makers[name]()
            return compile_planner(sweep, problem, weights, sweep.tile)

        part = dataclasses.replace(table, cells=[cell for cell in table.cells if cell.variant == variant])
        compute_rows(sweep, folder, part, compiled, shift=variant)


def _noise_floor(sweep: Sweep, folder: ResultsFolder, table: Table, engine: Callable[[], Engine]) -> None:
    """All cells again, of the same variants, at another tile size: what numerical noise alone changes."""
    other = lambda: compile_planner(sweep, sweep.problem, engine().table, sweep.settings.noise_floor_tile)
    compute_rows(sweep, folder, table, other)


def run_sweep(sweep: Sweep, folder: ResultsFolder) -> bool:
    """Computes everything that the folder lacks and that is this process's.

    Args:
      sweep: from :func:`prepare`.
      folder: the results folder, locked by the caller, holding this sweep's config.

    Returns:
      Whether every table is complete; other processes may still be at work on their cells.
    """
    whole = {table.name: table for table in tables(sweep)}
    share = {name: table.share(sweep.process, sweep.processes) for name, table in whole.items()}
    engine = functools.cache(lambda: build_engine(sweep, functools.partial(print, flush=True)))
    if any(_missing(folder, table) for table in share.values()):
        _note_start(sweep, folder)
    if folder.process == 0:
        save_descriptions(sweep, folder)
    if REFERENCE in share:
        _references(sweep, folder, share[REFERENCE])
    compute_rows(sweep, folder, share[ROWS], engine)
    if NOISE_FLOOR in share:
        _noise_floor(sweep, folder, share[NOISE_FLOOR], engine)
    if not all([finish_table(folder, table) for table in whole.values()]):
        return False
    rows = whole[ROWS]
    pictures = min(sweep.settings.pictures, len(sweep.names)) if sweep.checkpoint.config.decoder is not None else 0
    if pictures > len(traced_variants(folder)):
        done = folder.load(rows.name)
        found = [done[rows.key(cell)] for cell in rows.cells]
        save_traces(folder, engine(), sweep.apply, sweep.checkpoint, sweep.names, found, sweep.evaluation, pictures)
    return True


def _note_start(sweep: Sweep, folder: ResultsFolder) -> None:
    """Records what rows are made with from now on, and says so where an earlier start differs."""
    asked = {"references": sweep.settings.references, "pictures": sweep.settings.pictures}
    if note := folder.start({name: sweep.config[name] for name in MADE_WITH}, **asked):
        print(note, flush=True)


def save_descriptions(sweep: Sweep, folder: ResultsFolder) -> None:
    """Writes ``variants.json`` and ``episodes.json``."""
    model, params = sweep.checkpoint.config, planning_params(sweep.checkpoint.params)
    variants = [
        {**spec.to_json(), "size_bytes": quantized.size_bytes(model, params, spec, sweep.settings.methods)}
        for spec in sweep.settings.variants
    ]
    write_json(folder.path / "variants.json", variants)
    manifests = {"evaluation": sweep.evaluation, "calibration": sweep.calibration}
    write_json(folder.path / "episodes.json", {name: m.to_json() for name, m in manifests.items()})
