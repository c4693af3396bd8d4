"""The memory estimate against what XLA says it needs."""

import dataclasses

import jax
import pytest

from wmq_jax import quantized
from wmq_jax.sweep import memory, references
from wmq_jax.sweep.preparation import planning_params
from wmq_jax.sweep.run import build_engine, compile_planner

NONE = memory.Weights(0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("samples", [64, 512])
def test_estimate_is_of_the_right_size(prepare, samples):
    """Within a factor of three of XLA's own figure for the temporaries of one tile."""
    sweep = prepare(planner__samples=samples, variants="fp w4", planner__horizons="3", engine__devices=1)
    engine = build_engine(sweep)
    needed = engine.program.memory_analysis().temp_size_in_bytes
    one = memory.cell_bytes(sweep.checkpoint.config, sweep.problem.config, keep_all=False)
    table = sum(leaf.nbytes for leaf in jax.tree.leaves(engine.table)) / len(sweep.names)
    assert needed / 3 < one + table < needed * 3


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["last", "all"])
def test_estimate_holds_for_the_true_simulator(prepare, objective):
    """Whose frames all pass the encoder."""
    sweep = prepare(planner__samples=256, planner__objective=objective, variants="fp", engine__devices=1)
    config, params = sweep.checkpoint.config, planning_params(sweep.checkpoint.params)
    table = quantized.build_variants(config, params, sweep.settings.variants)
    engine = compile_planner(sweep, *references.simulator_problem(sweep.problem, table), 1)
    needed = engine.program.memory_analysis().temp_size_in_bytes
    one = memory.cell_bytes(config, sweep.problem.config, keep_all=objective == "all", references=True)
    assert needed / 3 < one + sum(leaf.nbytes for leaf in jax.tree.leaves(table)) < needed * 3


def test_larger_sweeps_need_more(prepare):
    sweep = prepare()
    model, config = sweep.checkpoint.config, sweep.problem.config
    base = memory.cell_bytes(model, config, False)
    assert memory.cell_bytes(model, config, True) > base
    assert memory.cell_bytes(model.replace(num_hist=3), config, False) > 2.5 * base
    tiles = [memory.choose_tile(model, config, NONE, False, False, tile)[1] for tile in (1, 2, 4)]
    many = dataclasses.replace(config, horizon=100, planner=dataclasses.replace(config.planner, steps=10_000))
    assert memory.cell_bytes(model, many, False) > base + 10_000 * 100 * model.action_dim * 2 * memory.FLOAT
    assert memory.choose_tile(model, config, NONE, False, False, 1, 1000)[1] > tiles[0]
    assert tiles[1] == 2 * tiles[0] and tiles[2] == 4 * tiles[0]


def test_accelerators_get_the_tile_that_keeps_them_busy(prepare, monkeypatch):
    sweep = prepare()
    model, config = sweep.checkpoint.config, sweep.problem.config

    class Device:
        platform = "gpu"

        def __init__(self, limit):
            self._limit = limit

        def memory_stats(self):
            return {"bytes_limit": self._limit, "bytes_in_use": 0}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(2**40)])
    large, _ = memory.choose_tile(model, config, NONE, False)
    assert large == memory.MAX_TILE
    one = memory.cell_bytes(model, config, False)
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(5 * one)])
    small, peak = memory.choose_tile(model, config, NONE, False)
    assert 1 <= small <= 5 and peak <= 5 * one
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(one // 2)])
    with pytest.raises(ValueError, match="lower --config.engine.tile, --config.engine.tiles_per_call, samples, steps"):
        memory.choose_tile(model, config, NONE, False)


def test_the_table_counts_twice_and_its_working_row_once(prepare):
    """Quantized variants replace the copies that the program was compiled with, one table beside the other."""
    sweep = prepare()
    peak = lambda weights: memory.choose_tile(
        sweep.checkpoint.config, sweep.problem.config, weights, False, False, requested=1
    )[1]
    each = 2**20
    assert peak(memory.Weights(12, each)) - peak(NONE) == 25 * each
