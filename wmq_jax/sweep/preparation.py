"""From a config to a sweep that is ready to be compiled: whatever the user got wrong, fails here."""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax

from wmq_jax import quantized
from wmq_jax.checkpoints.native import LAYOUT, ModelCheckpoint, params_sha256
from wmq_jax.checkpoints.opening import open_model
from wmq_jax.data import OfficialDataset
from wmq_jax.envs import Environment, make_env
from wmq_jax.envs.manifest import Manifest, dataset_manifest, make_manifest
from wmq_jax.io import adopt_config
from wmq_jax.io.wording import counted, plain
from wmq_jax.models import WorldModel, WorldModelConfig
from wmq_jax.planning import CEMConfig, Problem, world_model
from wmq_jax.runtime import provenance
from wmq_jax.runtime.devices import use_compilation_cache
from wmq_jax.sweep.calibration import drawn_episodes
from wmq_jax.sweep.cells import Cell, all_cells
from wmq_jax.sweep.memory import Weights, choose_tile, num_samples
from wmq_jax.sweep.mesh import cell_mesh
from wmq_jax.sweep.references import NO_SIMULATOR, SIMULATOR, reference_names
from wmq_jax.sweep.settings import SweepSettings
from wmq_jax.sweep.store import ResultsFolder

# Keys of config.json: what computes, on which model. The number of devices and how cells are laid out on them change
# no row (see the tests).
COMPUTED_WITH = (
    "tile",
    "platform",
    "device_kind",
    "model",
    "params_sha256",
    "given",
    "xla_flags",
    "matmul_precision",
    "compiler",
)
IDENTITY = ("rows", *COMPUTED_WITH)  # what decides what a row is


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep that is ready to be compiled.

    Attributes:
      settings: checked settings.
      checkpoint: the model.
      given_sha256: of its parameters before a variant's method added a bias of zeros to them.
      dataset: the official data set, if one is given.
      problem: what is planned, over variables with quantizers.
      apply: the model's quantized apply.
      evaluation, calibration: the manifests.
      mesh: the devices.
      tile: cells per tile.
      peak_bytes: estimated peak memory per device.
      process, processes: this process is number ``process`` of ``processes``.
      config: contents of ``config.json``.
    """

    settings: SweepSettings
    checkpoint: ModelCheckpoint
    given_sha256: str
    dataset: OfficialDataset | None
    problem: Problem
    apply: Callable[..., Any]
    evaluation: Manifest
    calibration: Manifest
    mesh: jax.sharding.Mesh
    tile: int
    peak_bytes: int
    process: int
    processes: int
    config: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """Names of the variants, in the table's order."""
        return [spec.name for spec in self.settings.variants]

    def cells(self) -> list[Cell]:
        """All cells, in canonical order."""
        settings = self.settings
        return list(all_cells(len(settings.variants), settings.seeds, settings.horizons, settings.episodes))


def _check_dataset(dataset: OfficialDataset, model: WorldModelConfig, settings: SweepSettings) -> None:
    """A model takes the actions and proprioception of its data set, which has the episodes that are asked for."""
    found = dataset.actions.shape[-1] * model.frameskip, dataset.proprio.shape[-1]
    if found != (model.action_dim, model.proprio_dim):
        raise ValueError(
            f"the checkpoint takes model actions and proprioception of {model.action_dim} and {model.proprio_dim} "
            f"numbers, but data set {dataset.place.path} has {found[0]} and {found[1]}"
        )
    training, wanted = len(dataset.split().train), settings.calibration["episodes"]
    if settings.calibration_source == "dataset" and training < wanted:
        raise ValueError(
            f"calibration takes {wanted} episodes of data set {dataset.place.path}, whose training part has "
            f"{training}; lower calibration.episodes"
        )


def _evaluation(settings: SweepSettings, env: Environment, dataset: OfficialDataset | None, frameskip: int) -> Manifest:
    """The evaluation episodes, from where the settings say."""
    if settings.goal_source == "dset":
        steps = settings.goal_horizon * frameskip
        return dataset_manifest(env, dataset, steps, settings.episodes, settings.base_seed)
    return make_manifest(env, "evaluation", settings.episodes, settings.base_seed)


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
    folder = ResultsFolder(workdir or f"results/{sweep.settings.name}", sweep.process)
    adopt_config(folder.path, sweep.config, IDENTITY)
    use_compilation_cache(folder.path.absolute() / "compilation_cache")
    return folder


def prepare(settings: SweepSettings, config: Mapping[str, Any], process: int = 0, processes: int = 1) -> Sweep:
    """Loads the model, draws the episodes and lays out the computation.

    Args:
      settings: from :func:`wmq_jax.sweep.settings.check_settings`.
      config: the resolved config that they came from, as plain dictionaries.
      process, processes: this process is number ``process`` of ``processes`` that share the cells.

    Raises:
      ValueError, FileNotFoundError: the checkpoint, the environment, a variant, the number of devices or the memory
        does not allow it.
    """
    if processes < 1:
        raise ValueError(f"processes must be 1 or more, not {processes}")
    if not 0 <= process < processes:
        raise ValueError(f"process must be 0..{processes - 1} (of {processes}), not {process}")
    given, checkpoint, dataset = _open(settings)
    model = checkpoint.config
    env = _environment(settings, model)
    quantized.check_variants(model, checkpoint.params, settings.variants, settings=settings.methods)
    apply = quantized.quantized_apply(
        WorldModel(model), straight_through=not isinstance(settings.mpc.planner, CEMConfig)
    )
    problem = Problem(
        model=world_model(model, apply, checkpoint.normalizer),
        env=env,
        objective=settings.objective,
        config=settings.mpc,
        normalizer=checkpoint.normalizer,
        frameskip=model.frameskip,
    )
    mesh = cell_mesh(settings.devices)
    tile, peak = _layout(settings, checkpoint)
    return Sweep(
        settings=settings,
        checkpoint=checkpoint,
        given_sha256=params_sha256(given.params),
        dataset=dataset,
        problem=problem,
        apply=apply,
        evaluation=_evaluation(settings, env, dataset, model.frameskip),
        calibration=make_manifest(env, "calibration", settings.calibration["episodes"], settings.base_seed),
        mesh=mesh,
        tile=tile,
        peak_bytes=peak,
        process=process,
        processes=processes,
        config=_record(settings, config, checkpoint, dataset, mesh, tile),
    )


def _open(settings: SweepSettings) -> tuple[ModelCheckpoint, ModelCheckpoint, OfficialDataset | None]:
    """The checkpoint as it is and as the variants need it, and the data set."""
    given, dataset = open_model(settings.checkpoint, settings.dataset, settings.env["name"], settings.official)
    if dataset is not None:
        _check_dataset(dataset, given.config, settings)
    if not quantized.needs_qkv_bias(settings.variants):
        return given, given, dataset
    config, params = quantized.with_qkv_bias(given.config, given.params)
    return given, dataclasses.replace(given, config=config, params=params), dataset


def _environment(settings: SweepSettings, model: WorldModelConfig) -> Environment:
    """The environment, which takes the model's actions."""
    env = make_env(**settings.env, image_size=model.image_size)
    if env.spec.action_dim * model.frameskip != model.action_dim:
        raise ValueError(
            f"the checkpoint takes model actions of {model.action_dim} numbers, but environment {env.spec.name!r} has "
            f"{env.spec.action_dim} an action and the frameskip is {model.frameskip}"
        )
    return env


def _layout(settings: SweepSettings, checkpoint: ModelCheckpoint) -> tuple[int, int]:
    """Cells per tile, and the estimated peak memory of a device in bytes."""
    parameters = jax.tree.leaves(planning_params(checkpoint.params))
    weights = Weights(len(settings.variants), sum(x.nbytes for x in parameters))
    choose = functools.partial(choose_tile, checkpoint.config, settings.mpc, weights, settings.objective.keep == "all")
    tile, peak = choose(settings.references, settings.tile, settings.tiles_per_call)
    if settings.noise_floor_tile == tile:
        raise ValueError(f"engine.noise_floor_tile must differ from the tile, which is {tile}")
    if settings.noise_floor_tile:
        choose(False, settings.noise_floor_tile, settings.tiles_per_call)
    return tile, peak


def _record(
    settings: SweepSettings,
    config: Mapping[str, Any],
    checkpoint: ModelCheckpoint,
    dataset: OfficialDataset | None,
    mesh: jax.sharding.Mesh,
    tile: int,
) -> dict[str, Any]:
    """Contents of ``config.json``."""
    made_with = provenance.record(mesh.size)
    return {
        "config": json.loads(json.dumps(config)),
        "rows": _row_fields(config, settings),
        "tile": tile,
        "platform": made_with["device"]["platform"],
        "device_kind": made_with["device"]["kind"],  # other vectors sum in another order
        "checkpoint": settings.checkpoint,
        # Beside the parameters: numbers of attention heads change no shape.
        "model": json.loads(json.dumps(checkpoint.config.to_dict())),
        "params_sha256": params_sha256(checkpoint.params),
        "files": dict(checkpoint.metadata.get("official", {}).get("files", {})),  # SHA-256 of what it was read from
        "given": given_identity(settings, checkpoint, dataset, settings.calibration["episodes"]),
        "model_parameters": sum(x.size for x in jax.tree.leaves(planning_params(checkpoint.params))),
        "planner": _planner_summary(settings),
        "compiler": {name: made_with["versions"][name] for name in ("jax", "jaxlib")},
        **made_with,
    }


def given_identity(
    settings: SweepSettings, checkpoint: ModelCheckpoint, dataset: OfficialDataset | None, episodes: int
) -> dict[str, Any]:
    """What identifies statistics and data, so that others in the same place are not resumed with; JSON values.

    Args:
      settings, checkpoint, dataset: of the sweep.
      episodes: how many real episodes calibration looks at, if it does.

    Raises:
      FileNotFoundError, ValueError: the frames of one of them cannot be read.
    """
    frames_of = ()
    if settings.calibration_source == "dataset":
        frames_of = drawn_episodes(dataset, {**settings.calibration, "episodes": episodes})
    used = settings.calibration_source == "dataset" or settings.goal_source == "dset"
    return {
        "normalizer": checkpoint.normalizer.to_dict(),
        "dataset": dataset.identity(frames_of) if used else {},
    }


def _row_fields(config: Mapping[str, Any], settings: SweepSettings) -> dict[str, Any]:
    """The part of a config that decides which rows there are and what is in them."""
    fields = json.loads(json.dumps(config)) | {"calibration": dict(settings.calibration)}
    # A checkpoint is identified by what came of it (its sizes, parameters and statistics), wherever it was read from,
    # and a data set by what is used of it.
    for name in ("name", "references", "pictures", "checkpoint", "official", "dataset"):
        del fields[name]
    engine = fields.pop("engine")
    # Rows of the noise floor have files of their own, which may not mix two tile sizes either.
    fields["noise_floor_tile"] = engine["noise_floor_tile"]
    return fields


def _planner_summary(settings: SweepSettings) -> dict[str, Any]:
    mpc = settings.mpc
    return {
        "optimizer": "cem" if isinstance(mpc.planner, CEMConfig) else "gd",
        "horizon": max(settings.horizons),
        "horizons": list(settings.horizons),
        "mpc_iterations": mpc.iterations,
        "executed": mpc.executed,
        "samples": num_samples(mpc),
        **dataclasses.asdict(mpc.planner),
        "objective": settings.objective.keep,
        "alpha": settings.objective.alpha,
    }


def describe(sweep: Sweep) -> str:
    """What a sweep will do, for a person, before it starts."""
    settings, planner = sweep.settings, sweep.config["planner"]
    count = len(settings.variants)
    cells = len(sweep.cells())
    device = sweep.config["device"]
    task = sweep.problem.env.spec.name
    if settings.goal_source == "dset":
        task += f" from {settings.dataset}"
    lines = [
        f"model      {settings.checkpoint} ({sweep.config['model_parameters'] / 1e6:.2f} M parameters)",
        f"variants   {count}: " + ", ".join(sweep.names),
        f"episodes   {settings.episodes} of {task}, {len(settings.seeds)} planner seed(s), "
        f"horizon {', '.join(map(str, settings.horizons))} x {sweep.problem.frameskip} environment steps",
        f"planner    {_planner_words(planner)}; up to {settings.mpc.iterations} MPC iterations, "
        f"objective {settings.objective.keep}, alpha {settings.objective.alpha:g}",
        f"work       {cells} cells, at most {cells * settings.mpc.iterations} plans{_beside(sweep)}",
        f"device     {device['count']} x {device['kind']}, tile {sweep.tile}, "
        f"about {sweep.peak_bytes / 2**20:.0f} MiB a device",
    ]
    if settings.references and SIMULATOR not in reference_names(settings.mpc.planner):
        lines.append(f"note       {NO_SIMULATOR}")
    return "\n".join([*lines, *_unusual_episodes(sweep), *_other_layout(sweep), *_layout_of_no_trajectory(sweep)])


def _planner_words(planner: Mapping[str, Any]) -> str:
    """The optimizer, and what is not usual about it."""
    if planner["optimizer"] == "cem":
        words = f"CEM, {planner['samples']} samples x {planner['steps']} steps, {planner['elites']} elites"
        if every := planner["check_every"]:
            words += f", which asks the simulator after every {counted(every, 'step') if every > 1 else 'step'}"
            words += " whether it may stop"
    else:
        words = f"gradient descent, {planner['steps']} steps"
    executed = planner["executed"]
    return words + (f"; {counted(executed, 'action')} of a plan executed" if executed else "")


def _beside(sweep: Sweep) -> str:
    """What is computed beside the rows."""
    references = reference_names(sweep.settings.mpc.planner) if sweep.settings.references else ()
    parts = [f"reference {', '.join(references)}"] * bool(references)
    parts += ["all cells again at another tile size"] * bool(sweep.settings.noise_floor_tile)
    return f"; beside them {', and '.join(parts)}" if parts else ""


def _unusual_episodes(sweep: Sweep) -> list[str]:
    """What the environment has to say about the episodes, if it can."""
    remark = getattr(sweep.problem.env, "remark", None)
    text = remark(sweep.evaluation.init, sweep.evaluation.goal) if remark else ""
    return [f"note       {text}"] if text else []


def _other_layout(sweep: Sweep) -> list[str]:
    """What to say where the model was trained in another environment than it plans in."""
    trained_in, here = sweep.checkpoint.metadata.get(LAYOUT), sweep.settings.env
    other = [name for name in trained_in if here.get(name, trained_in[name]) != trained_in[name]] if trained_in else []
    listed = lambda values: ", ".join(f"{name} {plain(values[name])}" for name in other)
    return [f"note       the model was trained with {listed(trained_in)}; here is {listed(here)}"] if other else []


def _layout_of_no_trajectory(sweep: Sweep) -> list[str]:
    """What to say where the data set has the layout in none of its trajectories: the model has never seen it."""
    wanted = {name: sweep.settings.env.get(name) for name in sweep.dataset.extras} if sweep.dataset else {}
    if not wanted or None in wanted.values():
        return []
    layouts = sorted(set(zip(*(sweep.dataset.extras[name].tolist() for name in wanted))))
    if tuple(wanted.values()) in layouts:
        return []
    listed = lambda values: ", ".join(f"{name} {value:g}" for name, value in zip(wanted, values))
    there = "; ".join(map(listed, layouts[:5])) + ("; ..." if len(layouts) > 5 else "")
    return [f"note       no trajectory of the data set has {listed(wanted.values())} (--config.env); it has {there}"]
