"""A whole sweep into a folder: several processes, references, the noise floor, and what may change on resuming."""

import json
import shutil

import pytest

from tests.quick_jit import compilation
from wmq_jax import sweep as sweeps
from wmq_jax.sweep.rows import from_line, row_key

SMALL = dict(variants="w8a8-tensor", planner__seeds="0", planner__horizons="2")


pytestmark = pytest.mark.usefixtures("quickly", "compilation_cache")


def run(sweep, path):
    folder = sweeps.open_folder(sweep, path)
    with folder.locked():
        return sweeps.run_sweep(sweep, folder)


def lines(path, name="rows.jsonl"):
    return (path / name).read_text().splitlines()


@pytest.fixture(scope="module")
def alone(prepare, tmp_path_factory):
    """A finished sweep of one process."""
    path = tmp_path_factory.mktemp("alone")
    with compilation(quick=True):
        assert run(prepare(**SMALL), path)
    return path


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_processes_share_a_folder(prepare, alone, tmp_path, order):
    first, second = (prepare(process=process, processes=2, **SMALL) for process in order)
    assert not run(first, tmp_path), "one of two processes cannot finish the table"
    part = lines(tmp_path, f"journal/rows-{order[0]}.jsonl")
    assert 0 < len(part) < len(lines(alone))
    assert run(second, tmp_path)
    assert lines(tmp_path) == lines(alone)
    journal = [row_key(from_line(line)) for n in (0, 1) for line in lines(tmp_path, f"journal/rows-{n}.jsonl")]
    assert len(journal) == len(set(journal)) == len(lines(alone))


@pytest.mark.slow
def test_references_and_noise_floor(prepare, alone, tmp_path):
    sweep = prepare(**SMALL, references=True, engine__noise_floor_tile=2)
    assert run(sweep, tmp_path)
    assert lines(tmp_path) == lines(alone)
    reference = [json.loads(line) for line in lines(tmp_path, "reference.jsonl")]
    assert [row["variant"] for row in reference] == ["true simulator"] * 3 + ["random actions"] * 3
    floor = [json.loads(line) for line in lines(tmp_path, "noise_floor.jsonl")]
    rows = [json.loads(line) for line in lines(tmp_path)]
    assert [row_key(row) for row in floor] == [row_key(row) for row in rows]
    for a, b in zip(floor, rows):
        # The same cells of the same variants: only rounding may differ.
        assert a["initial_cost"] == pytest.approx(b["initial_cost"], rel=1e-3)


@pytest.mark.slow
def test_layout_and_extras_may_change_on_resuming(prepare, alone):
    before = lines(alone)
    assert run(prepare(**SMALL, engine__devices=1, engine__tiles_per_call=3, pictures=1), alone)
    assert lines(alone) == before
    traced = lambda: {entry["variant"] for entry in json.loads((alone / "traces.json").read_text())}
    assert len(traced()) == 1
    assert run(prepare(**SMALL, engine__devices=1, engine__tiles_per_call=3, pictures=2), alone)
    assert len(traced()) == 2


@pytest.mark.parametrize("change", [dict(planner__alpha=0.5), dict(calibration__samples=1), dict(episodes__count=4)])
def test_what_decides_rows_may_not(prepare, alone, change):
    with pytest.raises(ValueError, match="holds results of another config: rows."):
        sweeps.open_folder(prepare(**{**SMALL, **change}), alone)


def test_a_finished_folder_says_so(prepare, alone):
    sweep = prepare(**SMALL)
    assert sweeps.standing(sweep, sweeps.open_folder(sweep, alone)) == f"all 6 cells are done in {alone}"


def test_what_is_left_beside_the_rows_is_said(prepare, alone):
    sweep = prepare(**SMALL, references=True)
    sentence = f"all 6 cells are done in {alone}, but 6 of the reference are not"
    assert sweeps.standing(sweep, sweeps.open_folder(sweep, alone)) == sentence


def test_damaged_files_of_a_finished_folder_are_written_again(prepare, alone, tmp_path):
    folder = shutil.copytree(alone, tmp_path / "copy")
    before = lines(alone)
    (folder / "rows.jsonl").write_text(before[0][:40])
    (folder / "traces.json").write_text("[{")
    (folder / "traces.npz").write_bytes(b"PK")
    assert run(prepare(**SMALL, pictures=1), folder)
    assert lines(folder) == before
    assert len(json.loads((folder / "traces.json").read_text())) >= 1


def test_references_are_of_every_seed_and_a_start_says_what_was_asked_for(prepare, tmp_path):
    assert run(prepare(**{**SMALL, "variants": "fp", "episodes__count": 1, "planner__seeds": "0 7"}), tmp_path)
    more = {**SMALL, "variants": "fp", "episodes__count": 1, "planner__seeds": "0 7", "references": True}
    assert run(prepare(**more), tmp_path)
    reference = [json.loads(line) for line in lines(tmp_path, "reference.jsonl")]
    assert [(row["variant"], row["seed"]) for row in reference] == [
        (name, seed) for name in ("true simulator", "random actions") for seed in (0, 7)
    ]
    starts = [json.loads(line) for line in lines(tmp_path, "starts.jsonl")]
    assert [start["references"] for start in starts] == [False, True]

    first, second = (prepare(process=process, processes=2, **more) for process in (0, 1))
    assert not run(first, tmp_path / "shared")
    text = "1 cell of the rows and 2 cells of the reference"
    assert sweeps.missing_text(first, sweeps.open_folder(first, tmp_path / "shared")) == text
    assert run(second, tmp_path / "shared"), "references are shared as rows are"
    assert lines(tmp_path / "shared", "reference.jsonl") == lines(tmp_path, "reference.jsonl")


@pytest.mark.slow
def test_methods_mix_in_one_run(prepare, alone, tmp_path):
    """Calibration collects what each method needs, and a variant's rows do not depend on which others there are."""
    names = "omse:w4a4-tensor smoothquant:w4a8-tensor awq:w4 omniquant:w3"
    sweep = prepare(**{**SMALL, "variants": f"{SMALL['variants']} {names}"})
    assert run(sweep, tmp_path)
    rows = [json.loads(line) for line in lines(tmp_path)]
    titles = [
        "FP32",
        "W8A8 per-tensor",
        "OMSE W4A4 per-tensor",
        "SmoothQuant W4A8 per-tensor",
        "AWQ W4",
        "OmniQuant W3",
    ]
    assert list(dict.fromkeys(row["variant"] for row in rows)) == titles
    assert all(row["initial_cost"] is not None and row["nonfinite_iteration"] is None for row in rows)
    costs = {tuple(row["initial_cost"] for row in rows if row["variant"] == title) for title in titles[1:]}
    assert len(costs) == len(titles) - 1, "every method is another model"
    # The bias that OmniQuant's shift needs adds zeros to the others.
    before = {row_key(row): row for row in map(json.loads, lines(alone))}
    for row in rows:
        if row["variant"] in titles[:2]:
            assert row["initial_cost"] == pytest.approx(before[row_key(row)]["initial_cost"], rel=1e-5)


def test_a_wall_that_the_model_was_not_trained_in_is_said(prepare):
    note = "note       the model was trained with door_y 10; here is door_y 36"
    bundled = dict(checkpoint="bundled", env__door_y=36)
    assert sweeps.describe(prepare(**bundled)).splitlines()[-1] == note
    assert "note" not in sweeps.describe(prepare(checkpoint="bundled")) + sweeps.describe(prepare(env__door_y=36))


def test_calibration_looks_at_no_more_than_is_planned(prepare):
    """And the folder's config says what was looked at."""
    planned = dict(calibration__samples=8, calibration__iterations=2, planner__samples=8, planner__iterations=2)
    more = planned | dict(calibration__samples=10_000, calibration__iterations=1000)
    planned, more = (prepare(**changes) for changes in (planned, more))
    assert planned.settings.calibration == more.settings.calibration
    assert planned.config["rows"] == more.config["rows"]


def test_what_changes_the_protocol_is_said_before_it_starts(prepare):
    usual = sweeps.describe(prepare(references=False))
    assert not any(word in usual for word in ("asks the simulator", "executed", "beside them", "inside the wall"))
    changes = dict(planner__check_every=1, planner__executed=1, engine__noise_floor_tile=3, env__wall_x=20)
    told = sweeps.describe(prepare(references=True, **changes))
    for words in (
        "which asks the simulator after every step whether it may stop; 1 action of a plan executed; up to",
        "plans; beside them reference true simulator, random actions, and all cells again at another tile size",
        "episodes start or end inside the wall",
    ):
        assert words in told
