"""The links between planning cost and success, and the noise floor."""

import dataclasses

import numpy as np
import pytest
from matplotlib.figure import Figure

from wmq_jax.analysis import load_results
from wmq_jax.analysis.alignment import LINKS, align, correlate, gather, planning_cells
from wmq_jax.analysis.noise import noise_floor
from wmq_jax.analysis.plots import draw_alignment
from wmq_jax.analysis.summary import compare


def _read(tmp_path, synthetic, rows):
    return load_results(synthetic.write_folder(tmp_path / "r", rows)).rows


def test_gather_counts_drops_from_the_state_before_each_plan(tmp_path, synthetic):
    row = synthetic.make_row(success=(False, True)) | {
        "predicted_cost": [1.0, 0.2],
        "realised_cost": [1.5, 0.4],
        "distance": [20.0, 3.0],
        "initial_cost": 4.0,
        "initial_distance": 30.0,
    }
    points = gather(_read(tmp_path, synthetic, [row]))
    assert points.predicted_drop.tolist() == [3.0, 1.3] and points.distance_drop.tolist() == [10.0, 17.0]
    assert points.solved.tolist() == [False, True] and points.iteration.tolist() == [1, 2]


def _planner(synthetic, predicted, realised, distance, failed):
    """One-iteration rows with the given values."""
    return [
        synthetic.make_row(episode=i, success=(not f,))
        | {
            "predicted_cost": [p],
            "realised_cost": [r],
            "distance": [d],
            "initial_cost": 9.0,
            "initial_distance": 9.0,
            "iterations": 1,
        }
        for i, (p, r, d, f) in enumerate(zip(predicted, realised, distance, failed))
    ]


def test_a_planner_that_knows_everything_is_perfectly_aligned(tmp_path, synthetic):
    cost = np.linspace(1, 2, 12).tolist()
    rows = _read(
        tmp_path,
        synthetic,
        _planner(synthetic, cost, [c**2 for c in cost], [3 * c for c in cost], [c > 1.5 for c in cost]),
    )
    found = {link.title: correlation for link, correlation in zip(LINKS, align(rows)["FP32"].correlations)}
    for link in ("imagination", "objective", "progress"):
        assert found[link].rho == pytest.approx(1) == found[link].first_rho
    assert found["task"].rho > 0.8


def test_a_planner_that_is_wrong_is_aligned_backwards(tmp_path, synthetic):
    cost = np.linspace(1, 2, 12).tolist()
    rows = _read(tmp_path, synthetic, _planner(synthetic, cost, cost[::-1], cost, [c < 1.5 for c in cost]))
    imagination, objective, progress, task = align(rows)["FP32"].correlations
    assert imagination.rho == pytest.approx(-1) == objective.rho
    assert progress.rho == pytest.approx(1) and task.rho < -0.8


def test_plans_that_are_not_finite_are_left_out_and_counted(tmp_path, synthetic):
    rows = _planner(
        synthetic, [None, 1.0, 2.0, 3.0], [5.0, 1.0, 2.0, 3.0], [1.0, 1.0, 2.0, 3.0], [False, False, True, True]
    )
    points = gather(_read(tmp_path, synthetic, rows))
    assert correlate(points, LINKS[0]).count == 3 and correlate(points, LINKS[1]).count == 4


def test_all_failing_leaves_the_task_link_undefined(tmp_path, synthetic):
    rows = _read(tmp_path, synthetic, [synthetic.make_row(episode=e, success=(False, False)) for e in range(5)])
    correlations = align(rows)["FP32"].correlations
    assert np.isnan(correlations[3].rho) and np.isfinite(correlations[0].rho)


def test_the_first_iteration_holds_every_cell(tmp_path, synthetic):
    outcomes = [(True, True, True), (False, True, True), (False, False, False), (False, False, True)]
    rows = _read(tmp_path, synthetic, [synthetic.make_row(episode=e, success=s) for e, s in enumerate(outcomes)])
    assert planning_cells(rows) == (4, 3, 2)
    (correlation, *_) = align(rows)["FP32"].correlations
    assert (correlation.count, correlation.first_count) == (9, 4)


def test_noise_floor_counts_success_and_path_apart(tmp_path, synthetic):
    path, bent = [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]], [[0.0, 0.0], [1.0, 3.0], [2.0, 0.0]]
    row = synthetic.make_row
    rows = [row("FP32", e, path=path) for e in range(4)] + [row("W8", 0, path=path)]
    again = [
        row("FP32", 0, path=path),
        row("FP32", 1, path=bent),
        row("FP32", 2, path=path[:2]),
        row("FP32", 3, success=(True, True), path=path),
    ]
    folder = synthetic.write_folder(tmp_path / "r", rows)
    synthetic.write_lines(folder / "noise_floor.jsonl", again)
    results = load_results(folder)
    (floor,) = noise_floor(results.rows, results.noise_floor)
    assert (floor.variant, floor.cells, floor.success_differs, floor.path_differs) == ("FP32", 4, 1, 2)
    assert floor.deviation == pytest.approx(2.0)  # the median of 3 (bent) and 1 (stopped one step earlier)


@pytest.mark.parametrize("end", ["low", "rho", "first_rho"])
def test_every_correlation_is_inside_the_picture(tmp_path, synthetic, end):
    """Also one of few plans, which is far below 0 and has no interval."""
    results = load_results(synthetic.write_sweep(tmp_path / "r", episodes=4, iterations=2, variants=2))
    aligned = align(results.rows)
    nothing = dict(rho=np.nan, low=np.nan, high=np.nan, first_rho=np.nan)
    found = {
        name: dataclasses.replace(
            one, correlations=tuple(dataclasses.replace(c, **{**nothing, end: -0.9}) for c in one.correlations)
        )
        for name, one in aligned.items()
    }
    figure = Figure()
    draw_alignment(figure, compare(results, 5), found)
    assert all(axes.get_xlim()[0] < -0.9 for axes in figure.axes[: len(LINKS)])
