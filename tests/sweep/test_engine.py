"""The compiled engine: one program, rows that depend on their cell alone."""

import re

import jax
import numpy as np
import pytest

from wmq_jax.sweep import all_cells, cell_mesh, compile_engine, run_cells
from wmq_jax.sweep.rows import make_row, to_line
from wmq_jax.sweep.run import build_engine

pytestmark = pytest.mark.bitwise

COMPILED = "/jax/core/compile/backend_compile_duration"


class Compilations:
    """Counts XLA compilations while it is entered."""

    def __enter__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def _listen(self, event, duration, **kwargs):
        self.count += event == COMPILED

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self._listen)


def lines(sweep, engine, cells):
    """Cell -> its row as bytes."""
    finished = [done for call in run_cells(engine, cells) for done in call.finished]
    assert sorted(done.cell for done in finished) == sorted(cells)
    config = sweep.problem.config
    return {
        done.cell: to_line(make_row(done.cell, sweep.names[done.cell.variant], done.records, config))
        for done in finished
    }


@pytest.fixture(scope="module")
def full(prepare):
    sweep = prepare()
    engine = build_engine(sweep)
    return sweep, engine, lines(sweep, engine, sweep.cells())


def test_a_row_depends_on_its_cell_alone(full):
    sweep, engine, rows = full
    cells = sweep.cells()
    assert len(set(rows.values())) == len(cells), "some rows do not differ: the test could not notice a mix-up"
    shuffled = [cells[i] for i in np.random.RandomState(0).permutation(len(cells))]
    assert lines(sweep, engine, shuffled) == rows
    for cell in cells[:: len(cells) // 5]:
        assert lines(sweep, engine, [cell]) == {cell: rows[cell]}


@pytest.mark.slow
def test_devices_and_tiles_per_call_do_not_change_rows(full, prepare):
    _, engine, rows = full
    assert engine.tiles == 4, "the test needs two devices"
    one = prepare(engine__devices=1, engine__tiles_per_call=3)
    assert one.mesh.size == 1
    assert lines(one, build_engine(one), one.cells()) == rows


@pytest.mark.slow
def test_other_variants_do_not_change_rows(full, prepare):
    _, _, rows = full
    sweep = prepare(variants="w4 encoder=w3g8 w8a8-tensor predictor=w2")
    mine = lines(sweep, build_engine(sweep), sweep.cells())
    for name in ("W4", "W8A8 per-tensor"):
        old = sorted(row for row in rows.values() if f'"{name}"' in row)
        assert old and old == sorted(row for row in mine.values() if f'"{name}"' in row)


@pytest.mark.slow
def test_a_horizon_as_data_is_the_planner_built_for_it(full, prepare):
    long, _, rows = full
    short = prepare(planner__horizons="2")
    assert (long.problem.config.horizon, short.problem.config.horizon) == (3, 2)
    mine = lines(short, build_engine(short), short.cells())
    assert mine == {cell: row for cell, row in rows.items() if cell.horizon == 2}


@pytest.mark.slow
@pytest.mark.usefixtures("quickly")
def test_a_horizon_as_data_under_gradient_descent(prepare):
    changes = dict(planner__optimizer="gd", planner__objective="all", variants="fp w8a8-token", planner__seeds="0")
    long, short = prepare(**changes), prepare(**changes, planner__horizons="2")
    expected = lines(short, build_engine(short), short.cells())
    mine = lines(long, build_engine(long), [cell for cell in long.cells() if cell.horizon == 2])
    assert mine.keys() == expected.keys()
    for cell, line in mine.items():
        # Reverse mode sums over frames in another order, so here rounding may differ.
        ours, theirs = (re.sub(r'("path":).*', r"\1", text) for text in (line, expected[cell]))
        numbers = [np.array(re.findall(r"-?\d+\.\d+", text), float) for text in (ours, theirs)]
        np.testing.assert_allclose(*numbers, rtol=1e-3)


@pytest.mark.usefixtures("quickly")
def test_compilations_do_not_grow(prepare):
    def compilations(**changes):
        sweep = prepare(**changes)
        with Compilations() as building:
            engine = build_engine(sweep)
        with Compilations() as planning:
            lines(sweep, engine, sweep.cells())
        assert planning.count == 0, "planning compiled something after the engine was built"
        return building.count

    few = compilations(variants="fp w4 w8a8-tensor", planner__seeds="0", planner__horizons="3")
    more = compilations(
        variants="fp w2 w3 w4 w5 w8 w9a7-tensor w8a8-tensor",
        planner__seeds="0 1 2",
        planner__iterations=3,
        episodes__count=5,
    )
    assert more == few


@pytest.mark.usefixtures("quickly")
def test_one_program_plans_them_all(prepare):
    """Whatever is compiled beside it: the planner itself is compiled once."""
    sweep = prepare(variants="fp w4 w8a8-tensor w3a4-token", planner__horizons="1 3")
    planners = []

    def listen(event, duration, **kwargs):
        if event == COMPILED and "advance" in kwargs["fun_name"]:
            planners.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        lines(sweep, build_engine(sweep), sweep.cells())
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(planners) == 1


def test_no_collectives_and_one_table(full):
    sweep, engine, _ = full
    text = engine.program.as_text()
    for name in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert name not in text
    variants = len(sweep.settings.variants)
    assert all(leaf.shape[0] == variants for leaf in jax.tree.leaves(engine.table))
    # The program does not know how many variants there are, other than by the table's leading axis.
    double = jax.tree.map(lambda x: np.concatenate([x, x]), jax.device_get(engine.table))
    with Compilations() as compiled:
        larger = compile_engine(sweep.problem, double, sweep.evaluation, sweep.mesh, engine.tile, engine.tiles // 2)
    assert compiled.count <= 3
    count = lambda engine: engine.program.as_text().count(" = ")
    assert count(larger) == count(engine)


def test_a_single_cell_is_one_plan_a_call(full):
    sweep, engine, _ = full
    assert all(call.plans == 1 for call in run_cells(engine, sweep.cells()[:1]))


@pytest.mark.slow
def test_larger_tiles_compute_the_same_cells(full, prepare):
    """Rounding differs between tile sizes; where every cell starts does not, nor does a cell depend on its partner."""
    _, _, rows = full
    several = prepare(engine__tile=2)
    assert several.tile == 2
    engine, cells = build_engine(several), several.cells()
    mine = lines(several, engine, cells)
    assert lines(several, engine, cells[::-1]) == mine
    for cell in cells[:: len(cells) // 3]:
        assert lines(several, engine, [cell]) == {cell: mine[cell]}
    assert rows.keys() == mine.keys()
    first = re.compile(r'"initial_cost":([\d.]+)')
    costs = [np.array([float(first.search(part[cell])[1]) for cell in sorted(part)]) for part in (rows, mine)]
    np.testing.assert_allclose(*costs, rtol=0.05)


@pytest.mark.usefixtures("quickly")
def test_warm_starts_shift_the_rest_of_the_plan(prepare):
    sweep = prepare(planner__executed=1, planner__horizons="3", variants="fp", planner__seeds="0")
    engine = build_engine(sweep)
    records = [done.records for call in run_cells(engine, sweep.cells()) for done in call.finished]
    long = next(r for r in records if len(r) > 1)
    np.testing.assert_array_equal(long[1].proposals.mean[0][:2], long[0].actions[1:3])
    np.testing.assert_array_equal(long[1].proposals.mean[0][2], 0)


def test_the_engine_keeps_its_program_for_other_data(full):
    sweep, engine, rows = full
    with Compilations() as counted:
        other = engine.with_data(jax.device_get(engine.table), sweep.calibration)
    assert other.program is engine.program and counted.count == 0
    assert lines(sweep, other.with_data(engine.table, sweep.evaluation), sweep.cells()) == rows


def test_all_cells_are_canonical():
    cells = list(all_cells(2, (5, 3), (2, 1), 2))
    assert len(cells) == len(set(cells)) == 16
    assert [c.variant for c in cells] == [0] * 8 + [1] * 8
    assert [c.seed for c in cells[:8]] == [5] * 4 + [3] * 4


def test_a_mesh_needs_its_devices():
    with pytest.raises(ValueError, match=re.escape("engine.devices must be 0..2 (what this process has), not 3")):
        cell_mesh(3)
