"""What a planner's success is measured against: the true simulator in place of the model, and random actions."""

import dataclasses

import numpy as np

from wmq_jax.planning import GDConfig, Problem, RandomConfig, simulator_model
from wmq_jax.planning.mpc import PlannerConfig

SIMULATOR = "true simulator"
RANDOM = "random actions"
# Pictures of the simulator are whole numbers: a descent through them would stay where it starts, which is no ceiling.
NO_SIMULATOR = "no reference of the true simulator: its pictures have no gradient for gradient descent"
# A reference has no weights, but the engine's table needs a leaf to count its rows by.
NO_WEIGHTS = {"none": np.zeros((1, 1), np.float32)}


def reference_names(planner: PlannerConfig) -> tuple[str, ...]:
    """The references that mean something beside this planner, in the order of their table."""
    return (RANDOM,) if isinstance(planner, GDConfig) else (SIMULATOR, RANDOM)


def simulator_problem(problem: Problem, table) -> tuple[Problem, object]:
    """The same planner with perfect dynamics: imagined states come from the simulator and are rendered and encoded by
    the full-precision encoder, so that only the predictor is replaced. Not for gradient descent.

    Returns:
      The problem and its table of one variant.
    """
    model = simulator_model(problem.env, problem.normalizer, problem.frameskip, problem.model.encode)
    return dataclasses.replace(problem, model=model), table


def random_problem(problem: Problem) -> tuple[Problem, object]:
    """Normal actions instead of plans.

    Returns:
      The problem and its table of one variant.
    """
    model = simulator_model(problem.env, problem.normalizer, problem.frameskip)
    config = dataclasses.replace(problem.config, planner=RandomConfig())
    return dataclasses.replace(problem, model=model, config=config), NO_WEIGHTS
