"""Reading results folders: finished, unfinished, torn, and damaged."""

import json
import random
import shutil

import numpy as np
import pytest

from wmq_jax.analysis import format_table, load_results


def _rows(synthetic, names=("FP32", "W8"), episodes=3):
    return [synthetic.make_row(name, episode) for name in names for episode in range(episodes)]


def test_reads_a_complete_sweep(sweep_folder):
    results = load_results(sweep_folder)
    assert results.finished and results.torn_lines == 0
    assert [v.name for v in results.variants][:2] == ["FP32", "W8"] and results.full_precision.name == "FP32"
    assert len(results.rows) == len(results.variants) * 16 == len(results.noise_floor)
    assert {row.variant for row in results.references} == {"true simulator", "random actions"}
    row = results.rows[0]
    assert len(row.predicted_cost) == row.iterations and row.path.shape == (1 + 5 * row.iterations, 2)
    trace = results.traces[0]
    assert (
        trace.real.dtype == np.uint8
        and len(trace.real) == len(trace.path) - 1
        and trace.extent == (-0.5, 64.5, 64.5, -0.5)
    )
    assert trace.goal_position is not None and len(trace.goal_position) == 2


def test_null_costs_are_nan(tmp_path, synthetic):
    row = synthetic.make_row(success=(False, False), nonfinite=2) | {"predicted_cost": [1.0, None]}
    (read,) = load_results(synthetic.write_folder(tmp_path / "r", [row])).rows
    assert read.predicted_cost[0] == 1.0 and np.isnan(read.predicted_cost[1]) and read.nonfinite_iteration == 2


def test_journal_of_a_killed_sweep_reads_as_the_finished_one(tmp_path, synthetic):
    rows = _rows(synthetic)
    finished = load_results(synthetic.write_folder(tmp_path / "a", rows, synthetic.variant_entries(2)))
    folder = synthetic.write_folder(tmp_path / "b", rows, synthetic.variant_entries(2))
    (folder / "rows.jsonl").unlink()
    shuffled = random.Random(0).sample(rows, len(rows))
    synthetic.write_lines(folder / "journal" / "rows-0.jsonl", shuffled[:3])
    synthetic.write_lines(folder / "journal" / "rows-1.jsonl", shuffled[2:])  # one cell stands in both
    with open(folder / "journal" / "rows-1.jsonl", "a") as file:
        file.write(json.dumps(rows[0])[:25] + "\n" + json.dumps(rows[1])[:-4])
    unfinished = load_results(folder)
    assert unfinished.rows == finished.rows
    assert not unfinished.finished and unfinished.torn_lines == 2


def test_only_the_first_episodes_of_an_unfinished_sweep_count(tmp_path, synthetic):
    """Successes finish first: the other cells of an episode, or an episode before, may be those that fail."""
    rows = _rows(synthetic)
    folder = synthetic.write_folder(tmp_path / "r", rows, synthetic.variant_entries(2))
    (folder / "rows.jsonl").unlink()
    synthetic.write_lines(folder / "journal" / "rows-0.jsonl", [row for row in rows if row != rows[4]])
    references = [synthetic.make_row("true simulator", e) for e in range(3)]
    synthetic.write_lines(folder / "journal" / "reference-0.jsonl", references)
    results = load_results(folder)
    assert {row.episode for row in results.rows} == {0} and len(results.rows) == 2 and results.left_out == 3
    assert len(results.references) == 3
    left = (
        "The sweep is not finished: this is the state so far, of the first episodes, which every variant has finished. "
        "3 finished cells of later ones are left out, since successes finish first."
    )
    assert format_table(results).endswith(left)

    config = json.loads((folder / "config.json").read_text())
    config["config"]["planner"] = {"seeds": "0, 7", "horizons": 5}
    (folder / "config.json").write_text(json.dumps(config))
    assert load_results(folder).rows == load_results(folder).references == (), "the second seed is missing"
    assert format_table(load_results(folder)) == "No episode is finished yet."


def test_an_empty_journal_is_a_sweep_without_rows(tmp_path, synthetic):
    folder = synthetic.write_folder(tmp_path / "r", [])
    (folder / "rows.jsonl").unlink()
    (folder / "journal").mkdir()
    assert load_results(folder).rows == ()


def test_other_tables_have_journals_of_their_own(tmp_path, synthetic):
    folder = synthetic.write_folder(tmp_path / "r", _rows(synthetic))
    synthetic.write_lines(folder / "journal" / "reference-0.jsonl", [synthetic.make_row("true simulator")])
    synthetic.write_lines(folder / "journal" / "noise_floor-0.jsonl", [synthetic.make_row("W8", success=(True, True))])
    results = load_results(folder)
    assert len(results.rows) == 6 and len(results.references) == 1 and len(results.noise_floor) == 1


def _damage(name, text):
    return lambda folder: (folder / name).write_text(text)


def _rewrite(change):
    def apply(folder):
        rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
        change(rows)
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))

    return apply


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (
            lambda folder: (folder / "config.json").unlink(),
            "has no config.json, so it is not the results folder of a sweep",
        ),
        (lambda folder: (folder / "rows.jsonl").unlink(), "neither rows.jsonl nor a journal"),
        (_damage("config.json", "{"), "config.json is not valid JSON"),
        (_damage("variants.json", "{}"), "must hold a JSON list, not a dict"),
        (_damage("variants.json", '[{"name": "W8"}]'), "entry 0 is not a variant: 'encoder' is missing"),
        (_damage("rows.jsonl", '{"variant"'), "rows.jsonl line 1 is not valid JSON"),
        (_rewrite(lambda rows: rows[1].pop("seed")), "line 2 is not a row: 'seed' is missing"),
        (_rewrite(lambda rows: rows[0].update(variant="W9")), "the variant 'W9', which is not one of: FP32, W8"),
        (_rewrite(lambda rows: rows[0]["distance"].append(1.0)), "distance has 3 values for 2 iterations"),
        (_rewrite(lambda rows: rows[0].update(success=[True, False])), "success is not sticky"),
        (_rewrite(lambda rows: rows[0].update(success=[True])), "success has 1 values for 2 iterations"),
        (_rewrite(lambda rows: rows[0].update(nonfinite_iteration=0)), "nonfinite_iteration must be null or 1..2"),
        (_rewrite(lambda rows: rows[0].update(path=[])), "path must be a list of"),
        (
            _rewrite(lambda rows: rows.append(rows[0] | {"initial_cost": 9.0})),
            "'FP32', episode 0, seed 0, horizon 5 has two different rows",
        ),
        (
            _rewrite(lambda rows: rows.append(rows[0] | {"episode": 9, "success": [False, True, True]})),
            "rows of different protocols",
        ),
    ],
)
def test_damage_is_one_sentence(tmp_path, synthetic, damage, sentence):
    folder = synthetic.write_folder(tmp_path / "r", _rows(synthetic), synthetic.variant_entries(2))
    load_results(folder)
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence) as caught:
        load_results(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder; give the results folder of a sweep"):
        load_results(tmp_path / "nowhere")


def test_damaged_pictures_are_one_sentence(tmp_path, synthetic):
    folder = synthetic.write_folder(tmp_path / "r", _rows(synthetic))
    (folder / "traces.json").write_text("[]")
    (folder / "traces.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(ValueError, match="traces.json and traces.npz"):
        load_results(folder)


def test_pictures_of_an_earlier_version_are_left_out(sweep_folder, tmp_path):
    """They do not say of which horizon they are; the rest of the folder is reported."""
    folder = shutil.copytree(sweep_folder, tmp_path / "old")
    index = json.loads((folder / "traces.json").read_text())
    for entry in index[1:]:
        del entry["horizon"]
    (folder / "traces.json").write_text(json.dumps(index))
    assert len(load_results(sweep_folder).traces) == len(index) > 1 == len(load_results(folder).traces)
