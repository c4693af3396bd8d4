"""The compiled engine: every tile of cells one MPC iteration further, in one program.

A *tile* is a fixed number T of cells of one variant at one horizon. The program takes the whole stacked table of
variants, the episodes, and K tiles a device; ``shard_map`` spreads tiles over devices, ``lax.map`` runs a device's
tiles one after another, ``vmap`` runs a tile's cells together, and an idle tile costs nothing. Because a tile has one
variant, its weights are shared by the tile's matrix products and its quantizers' branches stay real branches.

The host refills a tile's place when a cell has finished (:mod:`wmq_jax.sweep.scheduler`), so no cell waits for a slower
one and a call's tiles all cost the same: one plan each. This program is compiled once, whatever the number of variants,
group sizes, episodes and seeds; what prepares its table compiles small programs of its own
(:mod:`wmq_jax.quantized.table`).
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from wmq_jax.envs.manifest import Manifest
from wmq_jax.planning import (
    IterationRecord,
    MPCState,
    Problem,
    episode_key,
    mpc_init,
    mpc_iteration,
    step_noise,
)
from wmq_jax.sweep.mesh import CELLS


class Episodes(NamedTuple):
    """Episodes on the device: start (E, S) and goal (E, S) float32, environment seed (E,) int32."""

    init: chex.Array
    goal: chex.Array
    seed: chex.Array


class Work(NamedTuple):
    """What one call computes: X tiles of T cells.

    Attributes:
      variant, horizon: (X,) int32, one per tile.
      active: (X,) bool, whether the tile has any cell.
      episode, seed: (X, T) int32, one per cell.
      state: :class:`MPCState` with leading axes (X, T); ignored where its iteration is 0.
    """

    variant: chex.Array
    horizon: chex.Array
    active: chex.Array
    episode: chex.Array
    seed: chex.Array
    state: MPCState


def device_episodes(manifest: Manifest, size: int) -> Episodes:
    """A manifest as the engine takes it, padded to ``size`` episodes by repeating the last one."""
    fields = (manifest.init.astype(np.float32), manifest.goal.astype(np.float32), manifest.seeds.astype(np.int32))
    padding = size - len(manifest)
    return Episodes(*(np.concatenate([x, np.repeat(x[-1:], padding, axis=0)]) for x in fields))


def advance(problem: Problem, table: Any, episodes: Episodes, work: Work) -> tuple[MPCState, IterationRecord]:
    """One MPC iteration of the tiles of one device; results have the leading axes (X, T), zeros for idle tiles."""

    def cell(variables, horizon, episode, seed, state):
        init, goal, name = (x[episode] for x in episodes)
        fresh = state.iteration == 0
        state = jax.tree.map(lambda a, b: jnp.where(fresh, a, b), mpc_init(problem, init), state)
        noise = step_noise(problem, episode_key(seed, name), state.iteration)
        return mpc_iteration(problem, variables, state, goal, noise, horizon)

    @jax.jit  # traced once for both branches below
    def plan_tile(tile: Work):
        variables = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, tile.variant, keepdims=False), table)
        run = functools.partial(cell, variables, tile.horizon)
        return jax.vmap(run)(tile.episode, tile.seed, tile.state)

    def idle_tile(tile: Work):
        shapes = jax.eval_shape(plan_tile, tile)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    return jax.lax.map(lambda tile: jax.lax.cond(tile.active, plan_tile, idle_tile, tile), work)


def empty_work(problem: Problem, tiles: int, tile: int) -> Work:
    """Idle work of the given size, as numpy arrays that a scheduler fills in."""
    state = jax.eval_shape(lambda: mpc_init(problem, jnp.zeros(problem.env.spec.state_dim, jnp.float32)))
    zeros = lambda shape, dtype: np.zeros(shape, dtype)
    return Work(
        variant=zeros(tiles, np.int32),
        horizon=np.full(tiles, problem.config.horizon, np.int32),
        active=zeros(tiles, bool),
        episode=zeros((tiles, tile), np.int32),
        seed=zeros((tiles, tile), np.int32),
        state=jax.tree.map(lambda x: zeros((tiles, tile, *x.shape), x.dtype), state),
    )


@dataclasses.dataclass(frozen=True)
class Engine:
    """A compiled program with its table of variants and episodes in place.

    Attributes:
      program: the compiled :func:`advance` over a mesh.
      spread: how work lies on the mesh. Numpy arrays are placed by hand, since a program does that only where its
        process is alone.
      table: stacked variants, replicated over the mesh.
      episodes: the manifest, replicated.
      problem: what is planned.
      tiles: tiles per call, all devices together.
      tile: cells per tile.
    """

    program: jax.stages.Compiled
    spread: NamedSharding
    table: Any
    episodes: Episodes
    problem: Problem
    tiles: int
    tile: int

    def __call__(self, work: Work) -> tuple[MPCState, IterationRecord]:
        """Advances the work by one MPC iteration; numpy in, numpy out."""
        return jax.device_get(self.program(self.table, self.episodes, jax.device_put(work, self.spread)))

    def with_data(self, table: Any, manifest: Manifest) -> "Engine":
        """The same program over another table of as many variants, or no more other episodes: nothing compiles."""
        episodes = device_episodes(manifest, len(self.episodes.seed))
        sharding = self.episodes.seed.sharding
        table, episodes = (jax.device_put(x, sharding) for x in (table, episodes))
        return dataclasses.replace(self, table=table, episodes=episodes)


def compile_engine(
    problem: Problem,
    table: Any,
    manifest: Manifest,
    mesh: jax.sharding.Mesh,
    tile: int = 1,
    tiles_per_device: int = 4,
    max_episodes: int = 0,
) -> Engine:
    """Compiles the engine, once.

    Args:
      problem: model, environment, objective and planner settings.
      table: variants stacked along a leading axis V.
      manifest: the episodes.
      mesh: one-dimensional, see :func:`wmq_jax.sweep.mesh.cell_mesh`.
      tile: T, cells planned together; part of what a row depends on.
      tiles_per_device: tiles a device works through in one call.
      max_episodes: room for manifests given later to :meth:`Engine.with_data`, if they are larger.
    """
    tiles = tiles_per_device * mesh.size
    everywhere, spread = PartitionSpec(), PartitionSpec(CELLS)
    sharded = jax.shard_map(
        functools.partial(advance, problem),
        mesh=mesh,
        in_specs=(everywhere, everywhere, spread),
        out_specs=spread,
        check_vma=False,
    )
    shardings = tuple(NamedSharding(mesh, spec) for spec in (everywhere, everywhere, spread))
    episodes = device_episodes(manifest, max(len(manifest), max_episodes))
    table, episodes = (jax.device_put(x, shardings[0]) for x in (table, episodes))
    work = jax.device_put(empty_work(problem, tiles, tile), shardings[2])
    program = jax.jit(sharded, in_shardings=shardings).lower(table, episodes, work).compile()
    return Engine(program, shardings[2], table, episodes, problem, tiles, tile)
