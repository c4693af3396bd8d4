"""A simulator in numpy, swept over as it is, against its twin in JAX."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import point_mass
from wmq_jax import sweep as sweeps
from wmq_jax.envs import Observation, make_env, on_device, register_env

pytestmark = pytest.mark.quick


@dataclasses.dataclass(frozen=True)
class PointOnDevice(point_mass.PointMass):
    """The example's twin in JAX."""

    @property
    def spec(self):
        return dataclasses.replace(super().spec, name="point_on_device", on_device=True)

    def reset(self, init_state):
        start = jnp.asarray(init_state, jnp.float32)
        return {"position": start[:2], "share": start[2], "steps": jnp.int32(0)}

    def step(self, state, action):
        moved = jnp.clip(state["position"] + state["share"] * action, 0, self.image_size - 1)
        return {**state, "position": moved, "steps": state["steps"] + 1}

    def observe(self, state):
        x, y = (abs(jnp.arange(self.image_size) - at) < point_mass.HALF_SIDE for at in state["position"])
        square = jnp.where(y[:, None] & x, 255, 20).astype(jnp.uint8)
        return Observation(jnp.stack([square] * 3, -1), state["position"])


@pytest.fixture(scope="module", autouse=True)
def registered():
    register_env("point_mass", point_mass.PointMass)
    register_env("point_on_device", PointOnDevice)


def swept(prepare, name, folder, **changes):
    sweep = prepare(env={"name": name}, variants="fp w4", planner__horizons="2", planner__seeds="0", **changes)
    assert sweeps.run_sweep(sweep, sweeps.open_folder(sweep, str(folder)))
    lines = [line for file in ("rows.jsonl", "reference.jsonl") for line in (folder / file).read_text().splitlines()]
    return [json.loads(line) for line in lines]


@pytest.mark.usefixtures("quickly")
def test_a_host_simulator_gives_the_rows_of_its_twin_on_the_device(prepare, tmp_path):
    """But for what fusing the simulator with the model rounds."""
    ours, theirs = (
        swept(prepare, name, tmp_path / name, references=True) for name in ("point_mass", "point_on_device")
    )
    assert len(ours) == len(theirs) == 12
    assert len({str(row["path"]) for row in ours}) == 12, "some rows do not differ: the test could not notice a mix-up"
    episodes = json.loads((tmp_path / "point_on_device" / "episodes.json").read_text())["evaluation"]
    away = [np.abs(np.subtract(episode["init"], episode["goal"]))[:2].max() for episode in episodes]
    for one, other in zip(ours, theirs):
        assert one["initial_distance"] == pytest.approx(away[one["episode"]], rel=1e-5)
        for name, value in one.items():
            near = isinstance(value, (float, list)) and name != "success"
            assert value == other[name] or near and np.allclose(value, other[name], rtol=1e-4), (one, other)


def test_functions_of_a_host_simulator_can_be_traced(prepare):
    env, twin = make_env("point_mass"), make_env("point_on_device")
    assert env.spec.on_device and on_device(env) is env and on_device(twin) is twin
    start = jnp.array([[8.0, 9.0, 0.5], [60.0, 30.0, 0.4], [1.0, 2.0, 0.6]])

    def run(env):
        state = jax.vmap(env.reset)(start)
        state = jax.vmap(env.step, (0, None))(state, jnp.array([3.0, 20.0]))
        return jax.vmap(env.observe)(state), jax.vmap(env.evaluate)(state, start)

    jax.tree.map(
        np.testing.assert_array_equal, jax.jit(run, static_argnums=0)(env), jax.jit(run, static_argnums=0)(twin)
    )


@pytest.mark.filterwarnings("ignore")
def test_a_host_simulator_that_changes_its_shapes_is_named():
    class Growing(point_mass.PointMass):
        def step(self, state, action):
            return {**state, "position": np.zeros(3)}

    env = on_device(Growing())
    with pytest.raises(Exception, match=r"environment point_mass returned an array of shape \(3,\), and \(2,\) before"):
        jax.block_until_ready(jax.jit(env.step)(env.reset(np.zeros(3, np.float32)), np.zeros(2, np.float32)))


def test_what_cannot_be_registered():
    with pytest.raises(ValueError, match="^there is an environment 'wall' already$"):
        register_env("wall", PointOnDevice)
    register_env("point_mass", point_mass.PointMass)
    with pytest.raises(ValueError, match="^environment 'other' must be a dataclass with a field image_size$"):
        register_env("other", lambda: None)
