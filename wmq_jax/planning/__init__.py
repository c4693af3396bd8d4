"""Planning in a latent world model: objectives, CEM, gradient descent and MPC as pure functions.

Every function takes its random numbers, or the key they come from, as an argument, and plans for *one* episode; callers
add axes with ``jax.vmap``, ``jax.lax.map`` or ``jax.shard_map``.
"""

from wmq_jax.planning.cem import CEMConfig, CEMState, Proposals, cem, cem_init, cem_step, sample_plans
from wmq_jax.planning.gradient import GDConfig, gd, gd_step
from wmq_jax.planning.latent_model import LatentModel, simulator_model, world_model
from wmq_jax.planning.mpc import (
    IterationRecord,
    MPCConfig,
    MPCState,
    Plan,
    Problem,
    RandomConfig,
    execute,
    frame_cost,
    mpc_init,
    mpc_iteration,
    next_state,
    num_executed,
    plan,
    step_noise,
)
from wmq_jax.planning.noise import episode_key, iteration_key, plan_noise
from wmq_jax.planning.objectives import Objective, make_objective

__all__ = [
    "CEMConfig",
    "CEMState",
    "GDConfig",
    "IterationRecord",
    "LatentModel",
    "MPCConfig",
    "MPCState",
    "Objective",
    "Plan",
    "Problem",
    "Proposals",
    "RandomConfig",
    "cem",
    "cem_init",
    "cem_step",
    "episode_key",
    "execute",
    "frame_cost",
    "gd",
    "gd_step",
    "iteration_key",
    "make_objective",
    "mpc_init",
    "mpc_iteration",
    "next_state",
    "num_executed",
    "plan",
    "plan_noise",
    "sample_plans",
    "simulator_model",
    "step_noise",
    "world_model",
]
