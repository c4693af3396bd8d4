"""MPC over CEM with the real environment in the loop, against mpc_wall.npz."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden.test_cem import normalizer_of
from tests.quick_jit import quick_jit
from wmq_jax.envs import make_env
from wmq_jax.models import WorldModel
from wmq_jax.planning import (
    CEMConfig,
    MPCConfig,
    Problem,
    execute,
    make_objective,
    mpc_init,
    mpc_iteration,
    next_state,
    plan,
    world_model,
)

pytestmark = pytest.mark.quick

POSITION = 1e-4
REQUIRED = 2  # MPC iterations that must be compared
AMBIGUOUS = 5e-6  # margin of the last elite, relative; float32 losses agree to about 1e-6


@pytest.fixture(scope="module")
def recording(golden):
    return golden("mpc_wall.npz")


@pytest.fixture(scope="module")
def problems(recording, recorded_model):
    """One problem an episode, since each has its own layout; and the model's variables."""
    settings = recording.json("config")
    sub = settings["sub_planner"]
    config, params = recorded_model(224)
    mpc = MPCConfig(
        planner=CEMConfig(sub["num_samples"], sub["topk"], sub["opt_steps"], float(sub["var_scale"])),
        horizon=sub["horizon"],
        iterations=settings["max_iter"],
        executed=settings["n_taken_actions"],
    )
    problem = Problem(
        model=world_model(config, WorldModel(config).apply, normalizer_of(recording)),
        env=make_env("wall"),
        objective=make_objective(settings["mode"], settings["alpha"]),
        config=mpc,
        normalizer=normalizer_of(recording),
        frameskip=settings["frameskip"],
    )
    layouts = [make_env("wall", door_y=int(y), wall_x=int(x), image_size=224) for y, x in recording["door_wall"]]
    return [dataclasses.replace(problem, env=env) for env in layouts], {"params": params}


def evaluations(recording):
    """Recorded calls of the evaluator by name."""
    calls = recording.names("eval/")
    return {str(recording[f"eval/{call}/name"]): f"eval/{call}" for call in calls}


def steps_of(recording, iteration, limit):
    """Optimisation steps of an iteration: the published planner stops once the simulator says that all succeed."""
    for step in range(1, limit + 1):
        key = evaluations(recording).get(f"plan_{iteration}_output_{step}")
        if key and recording[f"{key}/success"].all():
            return step
    return limit


def test_observations(recording, problems, close):
    for name, state in (("obs0", "state0_f64"), ("obsg", "stateg_f64")):
        starts = recording[state].astype(np.float32)
        frames = [p.env.observe(p.env.reset(s)).visual for p, s in zip(problems[0], starts)]
        sampled = recording.sub(f"{name}_visual")
        # The rendering truncates to whole colours, where one ulp may turn into one level.
        difference = np.abs(sampled.of(np.stack(frames)[:, None]) - sampled.values)
        assert difference.max() <= 1.0 and (difference > 1e-2).mean() < 1e-3
        close(np.mean(frames), np.float64(recording[f"{name}_visual/sum"] / np.prod(sampled.shape)), atol=1e-3)


def iteration_of(problem, variables, zero, steps):
    """One jitted MPC iteration of the published planner: an episode that has succeeded executes zero actions."""
    mpc = dataclasses.replace(problem.config, planner=dataclasses.replace(problem.config.planner, steps=steps))
    problem = dataclasses.replace(problem, config=mpc)
    look = problem.env.observe

    @jax.jit
    def act(state, goal, noise, finished):
        goal = look(problem.env.reset(goal))
        horizon = jnp.int32(mpc.horizon)
        chosen = plan(problem, variables, look(state.env_state), goal, state, lambda step: noise[step], horizon)
        idle = jnp.tile(zero, (mpc.horizon, problem.frameskip))
        actions = jnp.where(finished, idle, chosen.actions)
        env_state, _ = execute(problem, state.env_state, actions, mpc.executed)
        return chosen, actions, next_state(problem, state, env_state, chosen.actions, mpc.horizon)

    return act


def test_the_stop_inside_cem(recording, problems):
    """``check_every`` ends each episode's first plan after the step at which the recorded simulator saw it succeed."""
    problems, variables = problems
    recorded_steps = steps_of(recording, 0, problems[0].config.planner.steps)
    calls = [evaluations(recording)[f"plan_0_output_{step + 1}"] for step in range(recorded_steps)]
    success = np.stack([recording[f"{call}/success"] for call in calls])
    assert success.any() and not success.all(), "the recording tells stopping from going on"
    every = recording.json("config")["sub_planner"]["eval_every"]
    for e, problem in enumerate(problems):
        # One step more than was recorded (on noise that repeats), so that stopping at the last one shows too.
        planner = dataclasses.replace(problem.config.planner, steps=recorded_steps + 1, check_every=every)
        mpc = dataclasses.replace(problem.config, planner=planner)
        noise = jnp.asarray(np.concatenate([recording["noise"][:recorded_steps, e], recording["noise"][:1, e]]))
        start, goal = (recording[key][e].astype(np.float32) for key in ("state0_f64", "stateg_f64"))
        one = dataclasses.replace(problem, config=mpc)
        run = quick_jit(
            lambda start, goal, noise, one=one: mpc_iteration(
                one, variables, mpc_init(one, start), goal, lambda step: noise[step], jnp.int32(mpc.horizon)
            )[1]
        )
        taken = int((np.asarray(run(start, goal, noise).proposals.std) > 0).any(axis=(1, 2)).sum())
        assert taken == (success[:, e].argmax() + 1 if success[:, e].any() else recorded_steps + 1)


def test_closed_loop(recording, problems, close):
    problems, variables = problems
    config = problems[0].config
    starts, goals = (recording[key].astype(np.float32) for key in ("state0_f64", "stateg_f64"))
    states = [mpc_init(problem, start) for problem, start in zip(problems, starts)]
    normalizer = normalizer_of(recording)
    zero = np.float32(normalizer.normalize_action(np.zeros_like(normalizer.action_mean)))
    act = functools.cache(lambda e, steps: iteration_of(problems[e], variables, zero, steps))
    done, lengths = np.zeros(len(problems), bool), np.full(len(problems), np.inf)
    executed, position = [[] for _ in problems], 0
    for iteration in range(config.iterations):
        steps = steps_of(recording, iteration, config.planner.steps)
        block = slice(position, position + steps)
        position += steps
        if (recording["elite_rel_gap"][block] <= AMBIGUOUS).any():
            assert iteration >= REQUIRED, f"rounding decides elites in iteration {iteration}: too little is compared"
            break
        for e in range(len(problems)):
            noise = jnp.asarray(recording["noise"][block, e])
            chosen, actions, states[e] = act(e, steps)(states[e], goals[e], noise, done[e])
            means = np.concatenate([chosen.proposals.mean[1:], chosen.actions[None]])
            close(means, recording["mu"][block, e], atol=2e-6, what=f"mean, iteration {iteration}, episode {e}")
            spreads = recording["sigma"][block, e][:-1]
            np.testing.assert_allclose(chosen.proposals.std[1:], spreads, atol=2e-6)
            executed[e].append(np.asarray(actions[: config.executed]))
        key = evaluations(recording)[f"plan{iteration}"]
        now = np.array([bool(p.env.evaluate(s.env_state, g)[0]) for p, s, g in zip(problems, states, goals)])
        lengths[now & ~done] = (iteration + 1) * config.executed
        done |= now
        np.testing.assert_array_equal(done, recording[f"{key}/success"])
        close(np.stack([np.concatenate(a) for a in executed]), recording[f"{key}/actions"], atol=4e-6)
        last = np.stack([state.env_state for state in states])
        close(last, recording[f"{key}/states_f64"][:, -1], atol=POSITION, what=f"states after iteration {iteration}")
        if done.all():
            break
    else:
        np.testing.assert_array_equal(done, recording["is_success"])
        np.testing.assert_array_equal(lengths, recording["action_len"])
