"""What a planner's success is measured against: the true simulator in place of the model, and random actions."""

import dataclasses

import numpy as np

from wmq_jax.planning import Problem, RandomConfig, simulator_model

SIMULATOR = "true simulator"
RANDOM = "random actions"
# A reference has no weights, but the engine's table needs a leaf to count its rows by.
NO_WEIGHTS = {"none": np.zeros((1, 1), np.float32)}


def simulator_problem(problem: Problem, table) -> tuple[Problem, object]:
    """The same planner with perfect dynamics: imagined states come from the simulator and are rendered and encoded by
    the full-precision encoder, so that only the predictor is replaced.

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
