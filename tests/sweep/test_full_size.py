"""The official sizes on CPU: initialise, quantize, compile, and one CEM step over a three-frame window."""

import jax
import numpy as np
import pytest

from wmq_jax import quantized
from wmq_jax.data import Normalizer
from wmq_jax.envs import make_env
from wmq_jax.models import WorldModel, official_config
from wmq_jax.planning import CEMConfig, MPCConfig, Problem, make_objective, world_model
from wmq_jax.sweep import Cell, cell_mesh, compile_engine, make_manifest, run_cells
from wmq_jax.sweep.memory import Weights, choose_tile

pytestmark = [pytest.mark.slow, pytest.mark.quick]

HISTORY = 3
HORIZON = HISTORY + 1  # the window grows to three frames, and then slides


def test_full_size_plans_quantized():
    config = official_config("wall").replace(num_hist=HISTORY, decoder=None)
    sizes = (config.image_size, config.image_size, 3), (config.proprio_dim,), (config.action_dim,)
    frame = [np.zeros((1, 1, *size), np.float32) for size in sizes]
    params = jax.jit(WorldModel(config).init)(jax.random.key(0), *frame)["params"]
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert 41e6 < size < 43e6, "ViT-S/14 and the official predictor have about 41.7 M parameters"
    specs = [quantized.parse_variant(text) for text in ("fp", "w4a8-token")]
    table = quantized.build_variants(config, params, specs)
    ones = np.ones(2, np.float32)
    normalizer = Normalizer(0 * ones, ones, 32 * ones, 15 * ones)
    problem = Problem(
        model=world_model(config, quantized.quantized_apply(WorldModel(config)), normalizer),
        env=make_env("wall", image_size=config.image_size),
        objective=make_objective(),
        config=MPCConfig(CEMConfig(samples=2, elites=2, steps=1), horizon=HORIZON, iterations=1),
        normalizer=normalizer,
        frameskip=config.frameskip,
    )
    weights = Weights(len(specs), sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
    tile, peak = choose_tile(config, problem.config, weights, keep_all=False)
    assert tile == 1 and weights.variants * weights.bytes_each < peak < 2**31
    mesh = cell_mesh(1)
    engine = compile_engine(problem, table, make_manifest(problem.env, "development", 1, 99), mesh, tile, 1)
    cells = [Cell(variant, 0, HORIZON, 0) for variant in range(len(specs))]
    records = {done.cell: done.records[0] for call in run_cells(engine, cells) for done in call.finished}
    full, low = (records[cell] for cell in cells)
    assert full.finite and low.finite
    assert low.predicted_cost == pytest.approx(full.predicted_cost, rel=0.5)
    assert low.predicted_cost != pytest.approx(full.predicted_cost, rel=1e-3), "four bits must change something"
    assert np.isfinite(full.predicted_cost) and full.actions.shape == (HORIZON, config.action_dim)
