"""Reading a sweep's results folder into frozen records.

A finished sweep has `rows.jsonl`; one that still runs, or was killed, has only `journal/rows*.jsonl` with the same
lines in any order, some of them possibly torn by the kill (likewise for the reference and noise-floor tables). Both are
read; whatever else is damaged is one sentence.
"""

import dataclasses
import io
import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wmq_jax.analysis.unfinished import first_episodes

FULL_PRECISION = "fp"  # the spec of the unquantized variant
TRUE_SIMULATOR = "true simulator"
RANDOM_ACTIONS = "random actions"


@dataclasses.dataclass(frozen=True)
class ModulePrecision:
    """How one module (encoder or predictor) is quantized; None stands for 'not'.

    Attributes:
      weight_bits: bits of the weights.
      group_size: input width that shares a weight scale; None for one scale an output channel.
      act_bits: bits of the activations.
      act_granularity: 'tensor' (static) or 'token' (dynamic).
      method: the weight quantization method, such as 'rtn'.
    """

    weight_bits: int | None = None
    group_size: int | None = None
    act_bits: int | None = None
    act_granularity: Literal["tensor", "token"] | None = None
    method: str | None = None


@dataclasses.dataclass(frozen=True)
class Variant:
    """One quantized copy of the model: its name, its spec text, both modules, and its storage in bytes."""

    name: str
    spec: str
    encoder: ModulePrecision
    predictor: ModulePrecision
    size_bytes: int


@dataclasses.dataclass(frozen=True)
class Row:
    """What one cell (variant, episode, CEM seed, horizon) did; M MPC iterations allowed, `iterations` executed.

    Attributes:
      variant: name of the variant, or of a reference.
      episode: number of the episode.
      seed: CEM seed.
      horizon: model actions a plan.
      iterations: MPC iterations executed; a cell stops when it has succeeded.
      success: (M,) sticky: whether the goal was reached within 1..M iterations.
      predicted_cost: (iterations,) the objective's value that the planner predicted for the plan it chose; NaN if not
        finite.
      realised_cost: (iterations,) the objective's cost of the encoded real observation after executing the plan, as its
        last frame: of the same thing as predicted_cost where `alignment.costs_agree`.
      distance: (iterations,) true state distance to the goal after executing the plan.
      initial_cost: the objective at the start.
      initial_distance: true state distance at the start.
      nonfinite_iteration: the iteration, counted from 1, in which the plans became non-finite; None if they never did.
      path: (K, 2) float64, or (K, 1) where proprioception is one number: positions after every model action, the start
        first.
    """

    variant: str
    episode: int
    seed: int
    horizon: int
    iterations: int
    success: tuple[bool, ...]
    predicted_cost: tuple[float, ...]
    realised_cost: tuple[float, ...]
    distance: tuple[float, ...]
    initial_cost: float
    initial_distance: float
    nonfinite_iteration: int | None
    path: np.ndarray = dataclasses.field(compare=False)

    @property
    def cell(self) -> tuple[int, int, int]:
        """(horizon, seed, episode): what two variants are compared on."""
        return self.horizon, self.seed, self.episode


@dataclasses.dataclass(frozen=True)
class Trace:
    """Pictures of one cell: K frames, h x w pixels, and K' positions.

    Attributes:
      variant: name of the variant.
      episode: number of the episode.
      seed: of CEM's noise.
      outcome: 'success' or 'failure'.
      real: (K, h, w, 3) uint8, what happened.
      imagined: (K, h, w, 3) uint8, the decoded imagination of the same model actions.
      start: (h, w, 3) uint8.
      goal: (h, w, 3) uint8.
      path: (K', 2) positions, or (K', 1).
      goal_position: the goal in the path's coordinates; None in folders of earlier versions.
      extent: (left, right, bottom, top) of the image in the path's coordinates, if the index gives it.
    """

    variant: str
    episode: int
    seed: int
    outcome: Literal["success", "failure"]
    real: np.ndarray
    imagined: np.ndarray
    start: np.ndarray
    goal: np.ndarray
    path: np.ndarray
    goal_position: tuple[float, ...] | None
    extent: tuple[float, float, float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything the analysis reads from one results folder.

    Attributes:
      folder: where it was read.
      protocol: `config.json` as saved.
      variants: in the sweep's order, full precision first when it was computed.
      rows: the finished cells, in canonical order; of an unfinished sweep, those of `unfinished.first_episodes`.
      references: rows of the true simulator and of random actions.
      noise_floor: rows of the same cells at another tile size.
      traces: pictures of chosen cells.
      finished: whether the sweep wrote its final rows.
      left_out: finished cells of an unfinished sweep that are not among the rows.
      torn_lines: journal lines left out because a kill tore them.
      starts: what each start of the sweep computed with: time, git_revision, versions, device; empty for old folders.
    """

    folder: Path
    protocol: Mapping[str, Any]
    variants: tuple[Variant, ...]
    rows: tuple[Row, ...]
    references: tuple[Row, ...]
    noise_floor: tuple[Row, ...]
    traces: tuple[Trace, ...]
    finished: bool
    left_out: int
    torn_lines: int
    starts: tuple[Mapping[str, Any], ...]

    @property
    def horizons(self) -> tuple[int, ...]:
        """The horizons that have rows, ascending."""
        return tuple(sorted({row.horizon for row in self.rows}))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The CEM seeds that have rows, ascending."""
        return tuple(sorted({row.seed for row in self.rows}))

    @property
    def full_precision(self) -> Variant | None:
        """The unquantized variant, if it is part of the sweep."""
        return next((v for v in self.variants if v.spec == FULL_PRECISION), None)


def load_results(folder: str | Path) -> Results:
    """Reads a results folder, finished or not.

    Args:
      folder: written by a sweep.

    Returns:
      The Results; optional files that are absent leave empty fields.

    Raises:
      FileNotFoundError: the folder, `config.json`, `variants.json`, or both forms of rows are missing.
      ValueError: a file is damaged or contradicts another; the sentence names the file and line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give the results folder of a sweep")
    protocol = _read_json(folder / "config.json", dict)
    variants = tuple(_variant(entry, index) for index, entry in enumerate(_read_json(folder / "variants.json", list)))
    names = [variant.name for variant in variants]
    finished = (folder / "rows.jsonl").is_file()
    if not finished and not (folder / "journal").is_dir():
        raise FileNotFoundError(f"{folder} has neither rows.jsonl nor a journal, so nothing was computed in it yet")
    found, torn = _read_table(folder, "rows", names)
    rows = found if finished else first_episodes(found, names, protocol)
    return Results(
        folder=folder,
        protocol=protocol,
        variants=variants,
        rows=rows,
        references=_read_references(folder, protocol),
        noise_floor=_read_table(folder, "noise_floor", names)[0],
        traces=_read_traces(folder),
        finished=finished,
        left_out=len(found) - len(rows),
        torn_lines=torn,
        starts=_read_starts(folder / "starts.jsonl"),
    )


def _read_json(path: Path, kind: type) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}, so it is not the results folder of a sweep")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, kind):
        raise ValueError(
            f"{path} must hold a JSON {'object' if kind is dict else 'list'}, not a {type(value).__name__}"
        )
    return value


def _variant(entry: Any, index: int) -> Variant:
    try:
        modules = {name: ModulePrecision(**_known(ModulePrecision, entry[name])) for name in ("encoder", "predictor")}
        return Variant(name=entry["name"], spec=entry["spec"], size_bytes=int(entry["size_bytes"]), **modules)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"variants.json: entry {index} is not a variant: {_reason(error)}") from None


def _read_starts(path: Path) -> tuple[Mapping[str, Any], ...]:
    """The starts that were written whole."""
    lines = _json_lines(path, tolerant=True)[0] if path.is_file() else []
    return tuple(start for _, start in lines if isinstance(start, dict))


def _read_table(folder: Path, name: str, order: Iterable[str]) -> tuple[tuple[Row, ...], int]:
    """(rows in canonical order, torn lines) of one table: its final file and its journals, whichever there are."""
    final = folder / f"{name}.jsonl"
    rows, torn = (_parse_lines(final, tolerant=False)[0] if final.is_file() else []), 0
    for path in sorted((folder / "journal").glob(f"{name}*.jsonl")):
        found, damaged = _parse_lines(path, tolerant=True)
        rows, torn = rows + found, torn + damaged
    return _canonical(rows, order), torn


def _read_references(folder: Path, protocol: Mapping[str, Any]) -> tuple[Row, ...]:
    """Rows of the references, of whose journals each counts for itself."""
    names = TRUE_SIMULATOR, RANDOM_ACTIONS
    rows, _ = _read_table(folder, "reference", names)
    if (folder / "reference.jsonl").is_file():
        return rows
    parts = [first_episodes([row for row in rows if row.variant == name], [name], protocol) for name in names]
    return sum(parts, ())


def _parse_lines(path: Path, tolerant: bool) -> tuple[list[Row], int]:
    """Rows of a JSON-lines file, and the number of lines that are not JSON."""
    entries, torn = _json_lines(path, tolerant)
    rows = []
    for number, entry in entries:
        try:
            rows.append(_row(entry))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} line {number} is not a row: {_reason(error)}") from None
    return rows, torn


def _json_lines(path: Path, tolerant: bool) -> tuple[list[tuple[int, Any]], int]:
    """Number and value of each line, and how many lines are not JSON, which only a tolerant reader accepts."""
    entries, torn = [], 0
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entries.append((number, json.loads(line)))
        except ValueError:
            if not tolerant:
                raise ValueError(f"{path} line {number} is not valid JSON; the file is damaged") from None
            torn += 1
    return entries, torn


def _row(entry: Mapping[str, Any]) -> Row:
    fields = _known(Row, entry)
    for name in ("predicted_cost", "realised_cost", "distance"):
        fields[name] = tuple(_number(value) for value in fields[name])
        if len(fields[name]) != fields["iterations"]:
            raise ValueError(f"{name} has {len(fields[name])} values for {fields['iterations']} iterations")
    fields["success"] = tuple(bool(value) for value in fields["success"])
    if not max(1, fields["iterations"]) <= len(fields["success"]):
        raise ValueError(f"success has {len(fields['success'])} values for {fields['iterations']} iterations")
    if list(fields["success"]) != sorted(fields["success"]):
        raise ValueError("success is not sticky: it falls back to false")
    began = fields["nonfinite_iteration"]
    if began is not None and not 1 <= began <= len(fields["success"]):
        raise ValueError(f"nonfinite_iteration must be null or 1..{len(fields['success'])}, not {began}")
    for name in ("initial_cost", "initial_distance"):
        fields[name] = _number(fields[name])
    fields["path"] = np.asarray(fields["path"], dtype=float)
    if fields["path"].ndim != 2 or fields["path"].shape[1] not in (1, 2) or not len(fields["path"]):
        raise ValueError(
            f"path must be a list of [x, y] that begins with the start, not of shape {fields['path'].shape}"
        )
    return Row(**fields)


def _canonical(rows: Iterable[Row], order: Iterable[str]) -> tuple[Row, ...]:
    """Rows in canonical order, repeats of one cell merged.

    Raises:
      ValueError: a name that is not in `order`, or a cell computed twice with different outcomes.
    """
    rank = {name: index for index, name in enumerate(order)}
    unique: dict[tuple, Row] = {}
    for row in rows:
        if row.variant not in rank:
            raise ValueError(f"a row names the variant '{row.variant}', which is not one of: {', '.join(rank)}")
        key = (rank[row.variant], row.seed, row.horizon, row.episode)
        known = unique.setdefault(key, row)
        if known is not row and not _same(known, row):
            raise ValueError(
                f"variant '{row.variant}', episode {row.episode}, seed {row.seed}, horizon {row.horizon} has two "
                "different rows"
            )
    lengths = {len(row.success) for row in unique.values()}
    if len(lengths) > 1:
        raise ValueError(f"rows of different protocols are mixed: {sorted(lengths)} MPC iterations")
    return tuple(unique[key] for key in sorted(unique))


def _same(first: Row, second: Row) -> bool:
    return repr(first) == repr(second) and np.array_equal(first.path, second.path, equal_nan=True)


def _read_traces(folder: Path) -> tuple[Trace, ...]:
    index, arrays = folder / "traces.json", folder / "traces.npz"
    if not (index.is_file() and arrays.is_file()):
        return ()
    try:
        # numpy leaves a damaged file open; bytes need no closing.
        with np.load(io.BytesIO(arrays.read_bytes()), allow_pickle=False) as stored:
            # Folders of earlier versions do not say of which horizon and seed their pictures are.
            return tuple(_trace(entry, stored) for entry in _read_json(index, list) if "horizon" in entry)
    except (KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{index.name} and {arrays.name} in {folder} do not belong together: {_reason(error)}"
        ) from None


def _trace(entry: Mapping[str, Any], stored: Mapping[str, np.ndarray]) -> Trace:
    extent = entry.get("extent")
    return Trace(
        variant=entry["variant"],
        episode=int(entry["episode"]),
        seed=int(entry["seed"]),
        outcome=entry["outcome"],
        extent=tuple(float(bound) for bound in extent) if extent is not None else None,
        goal_position=tuple(goal) if (goal := entry.get("goal")) is not None else None,
        **{name: stored[f"{entry['key']}/{name}"] for name in ("real", "imagined", "start", "goal", "path")},
    )


def _known(kind: type, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that `kind` has fields for: a newer sweep may write more."""
    return {field.name: entry[field.name] for field in dataclasses.fields(kind)}


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _reason(error: Exception) -> str:
    return f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
