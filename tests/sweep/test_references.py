"""The references stand beside a planner only where they mean something."""

import json

import jax
import jax.numpy as jnp
import pytest

from wmq_jax import analysis
from wmq_jax import sweep as sweeps
from wmq_jax.analysis import summary
from wmq_jax.models import Latent
from wmq_jax.planning import simulator_model
from wmq_jax.sweep import references

SMALL = dict(variants="w8", planner__seeds="0", planner__horizons="2", episodes__count=2, references=True)
GRADIENT = dict(SMALL, planner__optimizer="gd")

pytestmark = pytest.mark.usefixtures("quickly", "compilation_cache")


def test_pictures_of_the_simulator_have_no_gradient(prepare):
    problem = prepare(**GRADIENT).problem
    look = lambda variables, seen: Latent(seen.visual.astype(jnp.float32).reshape(-1, 3), seen.proprio)
    model = simulator_model(problem.env, problem.normalizer, problem.frameskip, look)
    start = problem.env.reset(jnp.array([20.0, 20.0]))
    ends = lambda plans: model.rollout({}, start, plans, None, "last")
    plans = jnp.full((1, 2, problem.action_dim), 0.3)
    gradient = lambda part: jax.grad(lambda plans: jnp.sum(part(ends(plans)) ** 2))(plans)
    assert not gradient(lambda latent: latent.visual).any()
    assert gradient(lambda latent: latent.proprio).all()


def test_the_sentence_is_printed_where_it_applies(prepare):
    note = f"note       {references.NO_SIMULATOR}"
    assert note in sweeps.describe(prepare(**GRADIENT)).splitlines()
    assert note not in sweeps.describe(prepare(**SMALL))
    assert note not in sweeps.describe(prepare(**GRADIENT | dict(references=False)))
    assert references.NO_SIMULATOR == summary.NO_SIMULATOR, "the report says what the sweep said"


def test_gradient_descent_has_random_actions_alone(prepare, tmp_path):
    sweep = prepare(**GRADIENT)
    folder = sweeps.open_folder(sweep, tmp_path)
    with folder.locked():
        assert sweeps.run_sweep(sweep, folder)
    rows = [json.loads(line) for line in (tmp_path / "reference.jsonl").read_text().splitlines()]
    assert [row["variant"] for row in rows] == ["random actions"] * 2
    table = " ".join(analysis.format_table(analysis.load_results(tmp_path)).split())
    assert "No reference of the true simulator: its pictures have no gradient for gradient descent." in table
