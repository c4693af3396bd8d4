"""Calibration: activation statistics of the rollouts that a full-precision planner asks for, or of real episodes.

In closed loop, the planner is run on calibration episodes by the engine that will run the sweep (nothing is compiled
for it), the futures it considered are sampled again from its recorded proposals, and the plain rollout of each is
observed: no reuse and no pruning, since calibration decides what the quantizers see.
Source: the protocol of arXiv 2602.02110.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import chex
import jax
import jax.numpy as jnp
import numpy as np

from wmq_jax.data import Normalizer, OfficialDataset
from wmq_jax.envs.manifest import Manifest
from wmq_jax.models import WorldModelConfig, normalize_image
from wmq_jax.models.image import resize
from wmq_jax.planning import IterationRecord, Problem, episode_key, sample_plans, step_noise
from wmq_jax.sweep.cells import Cell
from wmq_jax.sweep.engine import Engine
from wmq_jax.sweep.scheduler import run_cells


def considered_plans(
    problem: Problem, record: IterationRecord, key: chex.PRNGKey, iteration: chex.Numeric, samples: int
) -> chex.Array:
    """Plans (T * samples, H, A) that an MPC iteration considered: the first ``samples`` of each of its T steps.

    Where the optimisation ended early, the steps that it took stand again, in turn, for those that it did not.
    """
    noise = step_noise(problem, key, iteration)
    mean, std, taken = jax.tree.map(jnp.asarray, record.proposals)
    steps = jnp.arange(mean.shape[0]) % taken
    # A loop, since XLA's CPU backend takes 3 s to compile the noise of several steps at once and 0.7 s for that of one.
    plans = jax.lax.map(lambda step: sample_plans(mean[step], std[step], noise(step))[:samples], steps)
    return plans.reshape(-1, *plans.shape[2:])


def planner_rollouts(
    engine: Engine, manifest: Manifest, limits: Mapping[str, int], skip: int = 0
) -> Iterator[tuple[chex.Array, chex.Array, chex.Array]]:
    """What the full-precision planner imagined on calibration episodes.

    Args:
      engine: the compiled engine with full precision in row 0 of its table.
      manifest: calibration episodes.
      limits: ``episodes``, MPC ``iterations`` and ``samples`` per optimisation step to look at, planner's ``seed`` and
        ``horizon``. They do not follow the sweep's own seeds and horizons, since rows must not depend on those of
        others.
      skip: episodes of the manifest to leave out before the first.

    Yields:
      Arguments of ``WorldModel.rollout`` for one MPC iteration of one episode, B plans: images (B, 1, h, w, 3) in
      -1..1, normalised proprioception (B, 1, p), normalised actions (B, H, A).
    """
    problem, seed, horizon = engine.problem, limits["seed"], limits["horizon"]

    @jax.jit
    def batch(env_state, record, name, iteration):
        plans = considered_plans(problem, record, episode_key(seed, name), iteration, limits["samples"])
        observation = problem.env.observe(env_state)
        visual = normalize_image(observation.visual)
        proprio = problem.normalizer.normalize_proprio(observation.proprio)
        repeat = lambda x: jnp.broadcast_to(x, (plans.shape[0], 1, *x.shape))
        return repeat(visual), repeat(proprio), plans[:, :horizon]

    # Cells stop after the iterations that are looked at; the compiled program does one at a time and does not know.
    config = dataclasses.replace(problem.config, iterations=limits["iterations"])
    engine = dataclasses.replace(
        engine.with_data(engine.table, manifest), problem=dataclasses.replace(problem, config=config)
    )
    cells = [Cell(0, seed, horizon, n) for n in range(skip, skip + limits["episodes"])]
    finished = {done.cell.episode: done.records for call in run_cells(engine, cells) for done in call.finished}
    for episode in sorted(finished):
        env_state = problem.env.reset(manifest.init[episode].astype(np.float32))
        for iteration, record in enumerate(finished[episode]):
            yield batch(env_state, record, manifest.seeds[episode].astype(np.int32), np.int32(iteration))
            env_state = record.env_state


def drawn_episodes(dataset: OfficialDataset, limits: Mapping[str, int], skip: int = 0) -> np.ndarray:
    """Numbers (n,) of training episodes drawn by ``seed``: ``episodes`` after the first ``skip``, or what is left."""
    drawn = np.random.RandomState(limits["seed"]).permutation(dataset.split().train)
    return drawn[skip : skip + limits["episodes"]]


def dataset_rollouts(
    dataset: OfficialDataset, config: WorldModelConfig, normalizer: Normalizer, limits: Mapping[str, int], skip: int = 0
) -> Iterator[tuple[chex.Array, chex.Array, chex.Array]]:
    """What happened in episodes of a data set, as the model would imagine it from their frames and actions.

    Args:
      dataset: its training split is drawn from: validation and evaluation stay unseen.
      config: the model's sizes.
      normalizer: the model's statistics.
      limits: ``episodes`` to draw, by ``seed``; ``samples`` stretches of each, evenly spaced, of ``horizon`` model
        actions, or as many as the shortest of the episodes has.
      skip: episodes of the draw to leave out before the first.

    Yields:
      Arguments of ``WorldModel.rollout`` for the stretches of one episode, as :func:`planner_rollouts` does.

    Raises:
      ValueError: an episode is shorter than one model action.
    """
    chosen = drawn_episodes(dataset, limits, skip)
    shortest = int(dataset.lengths[chosen].min())
    span = min(limits["horizon"], shortest // config.frameskip) * config.frameskip
    if span == 0:
        raise ValueError(f"data set {dataset.place.path}: an episode has {shortest} steps, less than one model action")
    for episode in chosen:
        last = int(dataset.lengths[episode]) - span
        starts = np.linspace(0, last, limits["samples"]).astype(np.int64)
        frames = dataset.frames(int(episode), starts)
        visual = resize(normalize_image(jnp.asarray(frames)), config.image_size)
        proprio = normalizer.normalize_proprio(dataset.proprio[episode, starts])
        actions = np.stack([dataset.actions[episode, start : start + span] for start in starts])
        yield visual[:, None], jnp.asarray(proprio[:, None]), normalizer.to_model_actions(actions, config.frameskip)
