"""CEM and gradient descent against cem.npz: the recorded noise in, the recorded plans out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmq_jax.data import Normalizer
from wmq_jax.envs import Observation
from wmq_jax.models import WorldModel
from wmq_jax.planning import (
    CEMConfig,
    GDConfig,
    cem,
    cem_init,
    cem_step,
    gd_step,
    make_objective,
    world_model,
)

pytestmark = pytest.mark.quick

# An elite set is only defined by the recording where its margin exceeds the rounding of a rollout's loss.
LOSS_REL = 5e-5


def normalizer_of(recording):
    names = ("action_mean", "action_std", "proprio_mean", "proprio_std")
    return Normalizer(*(recording[f"stats/{name}"] for name in names))


@pytest.fixture(scope="module")
def recording(golden):
    return golden("cem.npz")


@pytest.fixture(scope="module")
def planner(recording, recorded_model):
    """The recorded model, and the latents of start and goal of every environment."""
    config, params = recorded_model(recording["obs0_visual_u8"].shape[-2])
    model = world_model(config, WorldModel(config).apply, normalizer_of(recording))
    variables = {"params": params}

    def encode(name):
        frames = Observation(recording[f"{name}_visual_u8"][:, 0], recording[f"{name}_proprio"][:, 0])
        return jax.jit(jax.vmap(lambda o: model.encode(variables, o)))(frames)

    return model, variables, encode("obs0"), encode("obsg")


def cases(recording, prefix):
    return [name for name in recording.names() if f"{name}/{prefix}" in recording]


@pytest.fixture(scope="module")
def imagined(planner):
    """plans (E, N, H, A) -> all imagined frames (E, N, H + 1, ...); compiled once a horizon."""
    model, variables, start, _ = planner
    rollout = lambda start, plans: model.rollout(variables, start, plans, None, "all")
    return jax.jit(jax.vmap(rollout, in_axes=(0, 0)))


def costs(imagined, planner, start, objective, horizon):
    """plans (E, N, H, A) -> costs (E, N)."""
    goal = planner[3]

    def one(frames, goal):
        read = frames if objective.keep == "all" else jax.tree.map(lambda x: x[:, horizon], frames)
        return objective.cost(read, goal, horizon)

    return lambda plans: jax.vmap(one)(imagined(start, plans), goal)


def test_goal_latent(recording, planner, close):
    goal = planner[3]
    close(goal.visual[:, None], recording["zg_visual"], atol=5e-4, rel_l2=1e-5)
    close(goal.proprio[:, None], recording["zg_proprio"], atol=5e-5)


def test_cem(recording, planner, imagined, close):
    found = cases(recording, "mu_final")
    assert found
    for name in found:
        settings = recording.json(f"{name}/config")
        horizon, noise = settings["horizon"], recording[f"{name}/noise"]
        objective = make_objective(settings["mode"], settings["alpha"], settings["base"])
        cost = costs(imagined, planner, planner[2], objective, horizon)
        config = CEMConfig(
            settings["num_samples"], settings["topk"], settings["opt_steps"], float(settings["var_scale"])
        )
        warm = recording["warm_actions"] if settings["warm_start"] else np.zeros((noise.shape[1], 0, noise.shape[-1]))
        mean = jnp.pad(jnp.asarray(warm, jnp.float32), ((0, 0), (0, horizon - warm.shape[1]), (0, 0)))
        state = cem_init(mean, config)
        for step in range(config.steps):
            state = cem_step(state, noise[step], cost, config)
            recorded = recording[f"{name}/losses"][step]
            np.testing.assert_allclose(state.costs, recorded, rtol=LOSS_REL, err_msg=f"{name} losses, step {step}")
            assert (recording[f"{name}/elite_rel_gap"][step] > LOSS_REL).all(), f"{name}: ambiguous elites"
            elites = np.sort(np.argsort(np.asarray(state.costs), axis=-1)[:, : config.elites])
            np.testing.assert_array_equal(elites, np.sort(recording[f"{name}/elite_idx"][step]))
            close(state.mean, recording[f"{name}/mu"][step], atol=2e-6, what=f"{name} mean, step {step}")
            close(state.std, recording[f"{name}/sigma"][step], atol=2e-6, what=f"{name} std, step {step}")
        close(state.mean, recording[f"{name}/mu_final"], atol=2e-6, what=f"{name} final mean")


def test_whole_optimisation(recording, planner, imagined, close):
    """`cem` is its steps in a loop, and remembers what it sampled from."""
    name = min(cases(recording, "mu_final"), key=lambda case: recording[f"{case}/noise"].size)
    settings, noise = recording.json(f"{name}/config"), jnp.asarray(recording[f"{name}/noise"])
    assert not settings["warm_start"]
    objective = make_objective(settings["mode"], settings["alpha"], settings["base"])
    cost = costs(imagined, planner, planner[2], objective, settings["horizon"])
    config = CEMConfig(settings["num_samples"], settings["topk"], settings["opt_steps"], float(settings["var_scale"]))
    state, proposals = cem(cost, lambda step: noise[step], jnp.zeros_like(noise[0, :, 0]), config)
    close(state.mean, recording[f"{name}/mu_final"], atol=2e-6)
    close(proposals.mean[1:], recording[f"{name}/mu"][:-1], atol=2e-6)
    close(proposals.std[1:], recording[f"{name}/sigma"][:-1], atol=2e-6)


def start_of(recording, name, horizon):
    """The initial plan of a gradient-descent case (E, H, A): noise, zero actions, or a warm start and noise."""
    noise = recording[f"{name}/init_noise"] if f"{name}/init_noise" in recording else None
    if noise is None:
        zero = normalizer_of(recording).normalize_action(np.zeros_like(recording["stats/action_mean"]))
        envs, _, size = recording[f"{name}/step_noise"][0].shape
        return np.tile(zero, (envs, horizon, size // zero.size)).astype(np.float32)
    if noise.shape[1] == horizon:
        return noise
    return np.concatenate([recording["warm_actions"], noise], axis=1)


@pytest.mark.slow
def test_gradient_descent(recording, planner, imagined, close):
    found = cases(recording, "actions_final")
    assert found

    @jax.jit
    def descend(actions, noise):
        cost = costs(imagined, planner, planner[2], make_objective(), actions.shape[1])
        return gd_step(actions, noise, lambda plans: cost(plans[:, None])[:, 0], GDConfig())

    for name in found:
        noise = recording[f"{name}/step_noise"]
        actions = jnp.asarray(start_of(recording, name, noise.shape[2]))
        for step in range(len(noise)):
            actions, losses, gradient = descend(actions, noise[step])
            np.testing.assert_allclose(losses, recording[f"{name}/loss_per_env"][step], rtol=LOSS_REL)
            close(gradient, recording[f"{name}/grad"][step], rel_l2=1e-3, what=f"{name} gradient, step {step}")
            close(
                actions, recording[f"{name}/actions_after"][step], atol=2e-4, rel_l2=1e-4, what=f"{name}, step {step}"
            )
        close(actions, recording[f"{name}/actions_final"], atol=2e-4, rel_l2=1e-4, what=f"{name} final")
