"""A sweep from its config to a finished results folder.

:func:`prepare` does everything that can fail because of what the user gave, before anything is compiled; :func:`run_sweep` then
computes what is missing in the folder.
"""

import dataclasses
import functools
import itertools
import json
from typing import Any, Callable, Mapping, Sequence

import jax

from wmq_jax import quantized
from wmq_jax.checkpoints.native import ModelCheckpoint, bundled_model_path, load_model
from wmq_jax.envs import make_env
from wmq_jax.io import write_json
from wmq_jax.models import WorldModel
from wmq_jax.planning import CEMConfig, Problem, world_model
from wmq_jax.sweep import provenance, references
from wmq_jax.sweep.calibration import closed_loop_statistics
from wmq_jax.sweep.cells import Cell, all_cells
from wmq_jax.sweep.devices import cell_mesh, use_compilation_cache
from wmq_jax.sweep.engine import Engine, compile_engine
from wmq_jax.sweep.manifest import Manifest, make_manifest
from wmq_jax.sweep.memory import choose_tile, num_samples
from wmq_jax.sweep.progress import ProgressBar
from wmq_jax.sweep.rows import make_row
from wmq_jax.sweep.scheduler import run_cells
from wmq_jax.sweep.settings import SweepSettings
from wmq_jax.sweep.store import ResultsFolder
from wmq_jax.sweep.traces import save_traces

# Keys of config.json that decide what a row means. The number of devices and the host's versions do not (see the tests).
IDENTITY = ("config", "tile", "platform", "params_sha256")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep that is ready to be compiled.

    Attributes:
      settings: checked settings.
      checkpoint: the model.
      problem: what is planned, over variables with quantizers.
      apply: the model's quantized apply.
      evaluation, calibration: the manifests.
      mesh: the devices.
      tile: cells per tile.
      peak_bytes: estimated peak memory per device.
      config: contents of ``config.json``.
    """

    settings: SweepSettings
    checkpoint: ModelCheckpoint
    problem: Problem
    apply: Callable[..., Any]
    evaluation: Manifest
    calibration: Manifest
    mesh: jax.sharding.Mesh
    tile: int
    peak_bytes: int
    config: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """Names of the variants, in the table's order."""
        return [spec.name for spec in self.settings.variants]

    def cells(self) -> list[Cell]:
        """All cells, in canonical order."""
        settings = self.settings
        return list(
            all_cells(len(settings.variants), settings.seeds, settings.horizons, settings.episodes)
        )


def _load_checkpoint(where: str) -> ModelCheckpoint:
    return load_model(bundled_model_path() if where == "bundled" else where)


def planning_params(params: Any) -> Any:
    """The parameters that planning needs: all but the decoder's."""
    return {name: part for name, part in params.items() if name != "decoder"}


def open_folder(sweep: "Sweep", workdir: str | None) -> ResultsFolder:
    """The results folder, new or of the same config.

    Args:
      sweep: a prepared sweep.
      workdir: the folder; None for ``results/<name of the config>``.

    Raises:
      ValueError: it cannot be written, or holds results of another config.
    """
    folder = ResultsFolder(workdir or f"results/{sweep.settings.name}", jax.process_index())
    folder.adopt_config(sweep.config, IDENTITY)
    use_compilation_cache(folder.path.absolute() / "compilation_cache")
    return folder


def standing(sweep: "Sweep", folder: ResultsFolder) -> str:
    """How far the folder is, for a person."""
    total, done = len(sweep.cells()), len(folder.load("rows"))
    if done == 0:
        return f"starting {total} cells in {folder.path}"
    if done < total:
        return f"resuming in {folder.path}: {done} of {total} cells are done"
    return f"all {total} cells are done in {folder.path}"


def prepare(settings: SweepSettings, config: Mapping[str, Any]) -> Sweep:
    """Loads the model, draws the episodes and lays out the computation.

    Args:
      settings: from :func:`wmq_jax.sweep.settings.check_settings`.
      config: the resolved config that they came from, as plain dictionaries.

    Raises:
      ValueError, FileNotFoundError: the checkpoint, the environment, a variant, the number of devices or the memory does not allow it.
    """
    checkpoint = _load_checkpoint(settings.checkpoint)
    model = checkpoint.config
    env = make_env(**settings.env, image_size=model.image_size)
    if env.spec.action_dim * model.frameskip != model.action_dim:
        raise ValueError(
            f"the checkpoint takes model actions of {model.action_dim} numbers, but environment {env.spec.name!r} has "
            f"{env.spec.action_dim} an action and the frameskip is {model.frameskip}"
        )
    quantized.check_variants(model, checkpoint.params, settings.variants)
    apply = quantized.quantized_apply(WorldModel(model), straight_through=not isinstance(settings.mpc.planner, CEMConfig))
    problem = Problem(
        model=world_model(model, apply, checkpoint.normalizer),
        env=env,
        objective=settings.objective,
        config=settings.mpc,
        normalizer=checkpoint.normalizer,
        frameskip=model.frameskip,
    )
    mesh = cell_mesh(settings.devices)
    parameters = jax.tree.leaves(planning_params(checkpoint.params))
    table_bytes = len(settings.variants) * sum(x.nbytes for x in parameters)
    tile, peak = choose_tile(model, settings.mpc, table_bytes, settings.objective.keep == "all", settings.tile)
    return Sweep(
        settings=settings,
        checkpoint=checkpoint,
        problem=problem,
        apply=apply,
        evaluation=make_manifest(env, "evaluation", settings.episodes, settings.base_seed),
        calibration=make_manifest(env, "calibration", settings.calibration["episodes"], settings.base_seed),
        mesh=mesh,
        tile=tile,
        peak_bytes=peak,
        config={
            "config": json.loads(json.dumps(config)),
            "tile": tile,
            "platform": mesh.devices.flat[0].platform,
            "checkpoint": settings.checkpoint,
            "params_sha256": provenance.params_sha256(checkpoint.params),
            "model_parameters": sum(x.size for x in parameters),
            "planner": _planner_summary(settings),
            "versions": provenance.versions(),
            "git_revision": provenance.git_revision(),
            "device": provenance.device(mesh.size),
            "xla_flags": provenance.xla_flags(),
        },
    )


def _planner_summary(settings: SweepSettings) -> dict[str, Any]:
    mpc = settings.mpc
    return {
        "optimizer": "cem" if isinstance(mpc.planner, CEMConfig) else "gd",
        "horizon": mpc.horizon,
        "horizons": list(settings.horizons),
        "samples": num_samples(mpc),
        "elites": getattr(mpc.planner, "elites", None),
        "steps": mpc.planner.steps,
        "mpc_iterations": mpc.iterations,
        "objective": settings.objective.keep,
        "alpha": settings.objective.alpha,
    }


def describe(sweep: Sweep) -> str:
    """What a sweep will do, for a person, before it starts."""
    settings, planner = sweep.settings, sweep.config["planner"]
    count = len(settings.variants)
    cells = len(sweep.cells())
    optimizer = (
        f"CEM, {planner['samples']} samples x {planner['steps']} steps, {planner['elites']} elites"
        if planner["optimizer"] == "cem"
        else f"gradient descent, {planner['steps']} steps"
    )
    device = sweep.config["device"]
    lines = [
        f"model      {settings.checkpoint} ({sweep.config['model_parameters'] / 1e6:.2f} M parameters)",
        f"variants   {count}: " + ", ".join(sweep.names),
        f"episodes   {settings.episodes} of {sweep.problem.env.spec.name}, {len(settings.seeds)} planner seed(s), "
        f"horizon {', '.join(map(str, settings.horizons))} x {sweep.problem.frameskip} environment steps",
        f"planner    {optimizer}; up to {settings.mpc.iterations} MPC iterations, objective {settings.objective.keep}, "
        f"alpha {settings.objective.alpha:g}",
        f"work       {cells} cells, at most {cells * settings.mpc.iterations} plans",
        f"device     {device['count']} x {device['kind']}, tile {sweep.tile}, "
        f"about {sweep.peak_bytes / 2**20:.0f} MiB a device",
    ]
    return "\n".join(lines)


def _statistics(sweep: Sweep, engine: Engine, plain_table: Any) -> Any | None:
    """Calibration statistics, if any variant asks for them."""
    if not any(quantized.needs_statistics(spec) for spec in sweep.settings.variants):
        return None
    return closed_loop_statistics(
        engine,
        plain_table,
        WorldModel(sweep.checkpoint.config),
        sweep.checkpoint.params,
        sweep.calibration,
        sweep.settings.seeds[0],
        sweep.settings.calibration,
    )


def build_engine(sweep: Sweep, tile: int | None = None) -> Engine:
    """Compiles the planner, calibrates with it, and puts the quantized variants in place."""
    settings, checkpoint = sweep.settings, sweep.checkpoint
    params = planning_params(checkpoint.params)
    full = [settings.variants[0]] * len(settings.variants)
    plain = quantized.build_variants(checkpoint.config, params, full)
    engine = compile_engine(
        sweep.problem,
        plain,
        sweep.evaluation,
        sweep.mesh,
        sweep.tile if tile is None else tile,
        settings.tiles_per_call,
        len(sweep.calibration),
    )
    statistics = _statistics(sweep, engine, plain)
    table = quantized.build_variants(checkpoint.config, params, settings.variants, statistics)
    return engine.with_data(table, sweep.evaluation)


def _mine(items: Sequence[Any]) -> list[Any]:
    """This process's share of the work."""
    return list(itertools.islice(items, jax.process_index(), None, jax.process_count()))


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

    def key(self, cell: Cell) -> tuple[Any, ...]:
        """The row key of a cell."""
        return self.variants[cell.variant], cell.seed, cell.horizon, cell.episode


def compute_rows(
    sweep: Sweep, folder: ResultsFolder, table: Table, engine: Callable[[], Engine], shift: int = 0
) -> None:
    """Computes this process's share of the rows that the folder lacks.

    Args:
      sweep: the sweep.
      folder: where rows go, one by one as cells finish.
      table: what is wanted.
      engine: makes the engine; called only if something is missing.
      shift: number of the table's variant that is row 0 of the engine's own table.
    """
    done = folder.load(table.name)
    missing = _mine([cell for cell in table.cells if table.key(cell) not in done])
    if not missing:
        return
    compiled = engine()
    label = table.name if shift == 0 else f"{table.name} ({table.variants[shift]})"
    bar = ProgressBar(label, len(table.cells), len(table.cells) - len(missing), sweep.settings.mpc.iterations)
    local = [dataclasses.replace(cell, variant=cell.variant - shift) for cell in missing]
    for call in run_cells(compiled, local):
        for cell, records in call.finished:
            name = table.variants[cell.variant + shift]
            folder.append(table.name, make_row(cell, name, records, sweep.evaluation, sweep.problem.config))
        folder.time(table=table.name, plans=call.plans, seconds=round(call.seconds, 4), cells=len(call.finished))
        bar.update(len(call.finished), call.iterations)
    bar.close()


def finish_table(folder: ResultsFolder, table: Table) -> bool:
    """Writes the table in canonical order if every row is there; whether it is."""
    done = folder.load(table.name)
    keys = [table.key(cell) for cell in table.cells]
    if not all(key in done for key in keys):
        return False
    if not (folder.path / f"{table.name}.jsonl").exists():
        folder.finish(table.name, keys)
    return True


def _references(sweep: Sweep, folder: ResultsFolder) -> None:
    """The true simulator and random actions on the same episodes."""
    settings, names = sweep.settings, [references.SIMULATOR, references.RANDOM]
    cells = list(all_cells(2, settings.seeds[:1], [settings.mpc.horizon], settings.episodes))
    plain = quantized.build_variants(
        sweep.checkpoint.config, planning_params(sweep.checkpoint.params), settings.variants[:1]
    )
    makers = [lambda: references.simulator_problem(sweep.problem, plain), lambda: references.random_problem(sweep.problem)]
    for variant, maker in enumerate(makers):

        def compiled():
            problem, weights = maker()
            return compile_engine(problem, weights, sweep.evaluation, sweep.mesh, sweep.tile, settings.tiles_per_call)

        part = Table("reference", names, [cell for cell in cells if cell.variant == variant])
        compute_rows(sweep, folder, part, compiled, shift=variant)
    finish_table(folder, Table("reference", names, cells))


def _noise_floor(sweep: Sweep, folder: ResultsFolder, table: Table) -> None:
    """All cells again at another tile size: what numerical noise alone changes."""
    table = dataclasses.replace(table, name="noise_floor")
    compute_rows(sweep, folder, table, lambda: build_engine(sweep, sweep.settings.noise_floor_tile))
    finish_table(folder, table)


def run_sweep(sweep: Sweep, folder: ResultsFolder) -> bool:
    """Computes everything that the folder lacks.

    Args:
      sweep: from :func:`prepare`.
      folder: the results folder, locked by the caller, holding this sweep's config.

    Returns:
      Whether the rows are complete; other processes may still be at work on theirs.
    """
    settings = sweep.settings
    table = Table("rows", sweep.names, sweep.cells())
    engine = functools.cache(lambda: build_engine(sweep))
    if jax.process_index() == 0:
        save_descriptions(sweep, folder)
        if settings.references:
            _references(sweep, folder)
    compute_rows(sweep, folder, table, engine)
    if jax.process_index() == 0 and settings.noise_floor_tile:
        _noise_floor(sweep, folder, table)
    if not finish_table(folder, table):
        return False
    drawable = settings.pictures and sweep.checkpoint.config.decoder is not None
    if drawable and not (folder.path / "traces.json").exists():
        done = folder.load(table.name)
        rows = [done[table.key(cell)] for cell in table.cells]
        save_traces(
            folder, engine(), sweep.apply, sweep.checkpoint, sweep.names, rows, sweep.evaluation, settings.pictures
        )
    return True


def save_descriptions(sweep: Sweep, folder: ResultsFolder) -> None:
    """Writes ``variants.json`` and ``episodes.json``."""
    model, params = sweep.checkpoint.config, planning_params(sweep.checkpoint.params)
    variants = [
        {**spec.to_json(), "size_bytes": quantized.size_bytes(model, params, spec)}
        for spec in sweep.settings.variants
    ]
    write_json(folder.path / "variants.json", variants)
    manifests = {"evaluation": sweep.evaluation, "calibration": sweep.calibration}
    write_json(folder.path / "episodes.json", {name: m.to_json() for name, m in manifests.items()})
