"""Model-predictive control: plan, execute, observe, plan again.

One *MPC iteration* plans a sequence of model actions, executes the first of them in the environment, and looks at the
outcome. Everything here is for one episode; a sweep maps it over cells.
Source: DINO-WM (arXiv 2411.04983) and the protocol of arXiv 2602.02110 (all planned actions executed, sticky success).
"""

import dataclasses
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from wmq_jax.data import Normalizer
from wmq_jax.envs import Environment, Observation
from wmq_jax.envs import execute as env_rollout
from wmq_jax.models import Latent
from wmq_jax.models.fence import fenced
from wmq_jax.planning.cem import CEMConfig, Noise, Proposals, cem
from wmq_jax.planning.gradient import GDConfig, gd
from wmq_jax.planning.latent_model import LatentModel, Variables
from wmq_jax.planning.limits import MAX_HORIZON, MAX_ITERATIONS, check_range
from wmq_jax.planning.noise import iteration_key, plan_noise
from wmq_jax.planning.objectives import Objective


@dataclasses.dataclass(frozen=True)
class RandomConfig:
    """Settings of random actions: normal ones of standard deviation ``std``, in units of normalised actions."""

    std: float = 1.0


PlannerConfig = CEMConfig | GDConfig | RandomConfig


@dataclasses.dataclass(frozen=True)
class MPCConfig:
    """Settings of MPC.

    Attributes:
      planner: settings of the optimiser of one plan; :class:`RandomConfig` does not optimise (the floor of a
        comparison).
      horizon: the longest plan H, in model actions.
      iterations: MPC iterations M at the most.
      executed: model actions executed per iteration; 0 executes the whole plan.

    Raises:
      ValueError: one of them is out of range.
    """

    planner: PlannerConfig = CEMConfig()
    horizon: int = 5
    iterations: int = 5
    executed: int = 0

    def __post_init__(self):
        check_range("planner horizon", self.horizon, 1, MAX_HORIZON)
        check_range("planner iterations", self.iterations, 1, MAX_ITERATIONS)
        if not 0 <= self.executed <= self.horizon:
            raise ValueError(f"planner executed must be 0..{self.horizon} (the horizon), not {self.executed}")


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is planned: a model, an environment, an objective and the settings.

    Attributes:
      model: encodes and imagines.
      env: the environment; its functions are traced only by :func:`execute` and :func:`mpc_iteration`.
      objective: ranks imagined futures.
      config: settings of MPC.
      normalizer: constants of actions and proprioception.
      frameskip: environment actions per model action.
    """

    model: LatentModel
    env: Environment
    objective: Objective
    config: MPCConfig
    normalizer: Normalizer
    frameskip: int

    @property
    def action_dim(self) -> int:
        """Size A of a model action."""
        return self.frameskip * self.env.spec.action_dim


class MPCState(NamedTuple):
    """An episode between two MPC iterations.

    Attributes:
      env_state: the environment's state, any pytree.
      warm: (H, A) the part of the latest plan that was not executed, then zeros.
      warm_length: int32, number of model actions in ``warm``.
      iteration: int32, MPC iterations done.
    """

    env_state: Any
    warm: chex.Array
    warm_length: chex.Array
    iteration: chex.Array


class Plan(NamedTuple):
    """A plan for one MPC iteration.

    Attributes:
      actions: (H, A) normalised model actions; zeros from the horizon on.
      predicted_cost: float32, the model's cost of this plan.
      initial_cost: float32, the cost of staying where the observation is (frame 0 in place of the last).
      goal: the goal's latent.
      finite: bool, whether every cost that the optimiser saw, the plan and its cost were finite.
      proposals: the distributions the optimiser sampled from.
    """

    actions: chex.Array
    predicted_cost: chex.Array
    initial_cost: chex.Array
    goal: Latent
    finite: chex.Array
    proposals: Proposals


class IterationRecord(NamedTuple):
    """What one MPC iteration did.

    Attributes:
      actions: (H, A) the plan, normalised.
      path: (H + 1, p) proprioception before and after each executed model action; later rows repeat the last one.
      predicted_cost, realised_cost, initial_cost: float32: imagined for the plan, measured on the real outcome (latest
        frame against goal), and measured before acting.
      distance, initial_distance: float32, true distance to the goal after and before acting.
      success: bool, whether the goal is reached after acting.
      finite, proposals: see :class:`Plan`.
      env_state: the environment's state after acting, any pytree.
    """

    actions: chex.Array
    path: chex.Array
    predicted_cost: chex.Array
    realised_cost: chex.Array
    initial_cost: chex.Array
    distance: chex.Array
    initial_distance: chex.Array
    success: chex.Array
    finite: chex.Array
    proposals: Proposals
    env_state: Any


def mpc_init(problem: Problem, init_state: chex.Array) -> MPCState:
    """The episode before its first iteration; ``init_state`` (S,) float32."""
    return MPCState(
        env_state=problem.env.reset(init_state),
        warm=jnp.zeros((problem.config.horizon, problem.action_dim)),
        warm_length=jnp.int32(0),
        iteration=jnp.int32(0),
    )


def num_executed(config: MPCConfig, horizon: chex.Numeric) -> chex.Numeric:
    """Model actions executed of a plan of ``horizon``."""
    return horizon if config.executed == 0 else jnp.minimum(config.executed, horizon)


def _static_frame_cost(problem: Problem, rollout, goal: Latent, horizon: chex.Numeric):
    """The cost of plans through a rollout of static length, which reverse mode can differentiate."""
    keep_all = problem.objective.keep == "all"

    def cost(plans):
        frames = rollout(plans, None, "all")
        read = frames if keep_all else jax.tree.map(lambda x: jnp.take(x, horizon, axis=1), frames)
        return problem.objective.cost(read, goal, horizon)

    return cost


def _optimise(problem, rollout, goal, warm, warm_length, noise, horizon, stop):
    """Runs the configured optimiser.

    Returns:
      The plan (H, A), whether all costs were finite, and the optimiser's proposals.
    """
    settings = problem.config.planner
    started = (jnp.arange(warm.shape[0]) < warm_length)[:, None]
    if isinstance(settings, RandomConfig):
        actions = settings.std * noise(0)[0]
        spread = jnp.full_like(actions, settings.std)
        return actions, jnp.bool_(True), Proposals(jnp.zeros_like(actions)[None], spread[None], jnp.int32(1))
    if isinstance(settings, GDConfig):
        # The step after the last is nobody's: its noise is the initial plan.
        initial = jnp.where(started, warm, noise(settings.steps)[0])
        cost = _static_frame_cost(problem, rollout, goal, horizon)
        plans, finite, trace = gd(cost, noise, initial[None], settings)
        return plans[0], finite[0], Proposals(trace[:, 0], jnp.zeros_like(trace[:, 0]), jnp.int32(settings.steps))
    cost = lambda plans: problem.objective.cost(rollout(plans, horizon, problem.objective.keep), goal, horizon)
    state, proposals = cem(cost, noise, jnp.where(started, warm, 0.0), settings, stop)
    return state.mean, state.finite, proposals


def plan(
    problem: Problem,
    variables: Variables,
    observation: Observation,
    goal: Observation,
    state: MPCState,
    noise: Noise,
    horizon: chex.Numeric,
    stop=None,
) -> Plan:
    """Plans from ``observation`` towards ``goal``; each is encoded once.

    Args:
      problem: model, objective, settings.
      variables: the model's variables (one variant).
      observation: what is seen now.
      goal: what should be seen.
      state: holds the warm start, and where the true simulator starts.
      noise: optimisation step -> standard normal (N, H, A); N is 1 for gradient descent.
      horizon: model actions to plan, traced int32 in 1..H; the result is what a planner built for it gives.
      stop: see :func:`wmq_jax.planning.cem.cem`.
    """
    pair = jax.tree.map(lambda a, b: jnp.stack([a, b]), observation, goal)
    latents = jax.vmap(lambda o: problem.model.encode(variables, o))(pair)
    latent, goal_latent = (jax.tree.map(lambda x: x[i], latents) for i in (0, 1))
    start = problem.model.start(latent, state.env_state)
    rollout = lambda plans, length, keep: problem.model.rollout(variables, start, plans, length, keep)
    mean, finite, proposals = _optimise(
        problem, rollout, goal_latent, state.warm, state.warm_length, noise, horizon, stop
    )
    planned = jnp.arange(mean.shape[0])[:, None] < horizon
    finite &= jnp.all(jnp.isfinite(mean) | ~planned)
    actions = jnp.where(planned & jnp.isfinite(mean), mean, 0.0)
    predicted = problem.objective.cost(rollout(actions[None], horizon, problem.objective.keep), goal_latent, horizon)[0]
    return Plan(
        actions=actions,
        predicted_cost=predicted,
        initial_cost=frame_cost(problem, latent, goal_latent),
        goal=goal_latent,
        finite=finite & jnp.isfinite(predicted),
        proposals=proposals,
    )


def frame_cost(problem: Problem, latent: Latent, goal: Latent) -> chex.Array:
    """The cost of one observed frame, float32: comparable with predicted costs of objective ``last``."""
    return problem.objective.frame_cost(jax.tree.map(lambda x: x[None], latent), goal)[0]


def execute(problem: Problem, env_state: Any, actions: chex.Array, count: chex.Numeric) -> tuple[Any, chex.Array]:
    """Executes the first ``count`` of the model actions (H, A), normalised.

    Returns:
      The environment's state, and proprioception (H + 1, p) before and after each model action; rows after ``count``
      repeat the last.
    """
    length = actions.shape[0]
    raw = problem.normalizer.denormalize_action(actions.reshape(length, problem.frameskip, -1))

    def model_action(index, carry):
        env_state, path = carry
        env_state, _ = env_rollout(problem.env, env_state, raw[index])
        repeat = jnp.arange(length + 1)[:, None] > index
        return env_state, jnp.where(repeat, problem.env.observe(env_state).proprio, path)

    start = problem.env.observe(env_state).proprio
    path = jnp.broadcast_to(start, (length + 1, *start.shape))
    return jax.lax.fori_loop(0, count, model_action, (env_state, path))


def _simulator_check(problem: Problem, state: MPCState, goal_state: chex.Array, horizon: chex.Numeric):
    """Whether a plan, executed now, would succeed: what the published planner asks between optimisation steps."""
    if getattr(problem.config.planner, "check_every", 0) == 0:
        return None

    def stop(mean):
        env_state, _ = execute(problem, state.env_state, mean, horizon)
        return problem.env.evaluate(env_state, goal_state)[0]

    return stop


def next_state(problem: Problem, state: MPCState, env_state: Any, actions: chex.Array, horizon) -> MPCState:
    """The episode after ``actions`` were executed: the rest of the plan becomes the warm start."""
    count = num_executed(problem.config, horizon)
    rest = horizon - count
    shifted = jnp.roll(actions, -count, axis=0)
    return MPCState(
        env_state=env_state,
        warm=jnp.where(jnp.arange(actions.shape[0])[:, None] < rest, shifted, 0.0),
        warm_length=jnp.asarray(rest, jnp.int32),
        iteration=state.iteration + 1,
    )


def step_noise(problem: Problem, key: chex.PRNGKey, iteration: chex.Numeric) -> Noise:
    """The noise of one MPC iteration of the episode whose key this is."""
    settings = problem.config.planner
    samples = settings.samples if isinstance(settings, CEMConfig) else 1
    key = iteration_key(key, iteration)
    return lambda step: plan_noise(key, step, samples, problem.config.horizon, problem.action_dim)


def mpc_iteration(
    problem: Problem,
    variables: Variables,
    state: MPCState,
    goal_state: chex.Array,
    noise: Noise,
    horizon: chex.Numeric,
) -> tuple[MPCState, IterationRecord]:
    """Plans, executes in an environment on device, and looks at the outcome.

    Args:
      problem: model, environment, objective, settings.
      variables: the model's variables (one variant).
      state: the episode so far.
      goal_state: (S,) float32.
      noise: optimisation step -> standard normal (N, H, A), see :func:`step_noise`.
      horizon: model actions to plan, traced int32 in 1..H.
    """
    goal = problem.env.observe(problem.env.reset(goal_state))
    observation = problem.env.observe(state.env_state)
    stop = _simulator_check(problem, state, goal_state, horizon)
    chosen = plan(problem, variables, observation, goal, state, noise, horizon, stop)
    env_state, path = execute(problem, state.env_state, chosen.actions, num_executed(problem.config, horizon))
    success, distance = problem.env.evaluate(env_state, goal_state)
    seen = problem.env.observe(env_state)
    outcome = fenced(lambda: problem.model.encode(variables, seen))
    record = IterationRecord(
        actions=chosen.actions,
        path=path,
        predicted_cost=chosen.predicted_cost,
        realised_cost=frame_cost(problem, outcome, chosen.goal),
        initial_cost=chosen.initial_cost,
        distance=distance,
        initial_distance=problem.env.evaluate(state.env_state, goal_state)[1],
        success=success,
        finite=chosen.finite,
        proposals=chosen.proposals,
        env_state=env_state,
    )
    return next_state(problem, state, env_state, chosen.actions, horizon), record
