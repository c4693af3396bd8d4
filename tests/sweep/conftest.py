"""A tiny world model of random weights: what a sweep computes does not depend on whether its plans are good."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import wall
from tests.quick_jit import compilation, quick_jit
from wmq_jax import sweep as sweeps
from wmq_jax.checkpoints.native import save_model
from wmq_jax.data import Normalizer
from wmq_jax.models import DecoderConfig, PredictorConfig, ViTConfig, WorldModel, WorldModelConfig

TINY = WorldModelConfig(
    encoder=ViTConfig(width=16, depth=1, heads=2, mlp_dim=32, table_grid=4),
    predictor=PredictorConfig(depth=1, heads=2, dim_head=8, mlp_dim=32),
    decoder=DecoderConfig(channel=8, n_res_block=1, n_res_channel=4),
    proprio_dim=2,
    action_dim=10,
    image_size=65,
    num_hist=1,
    proprio_emb_dim=4,
    action_emb_dim=4,
)


@pytest.fixture
def quickly():
    """For tests of what rounding does not decide."""
    with compilation(quick=True):
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The folder of a tiny checkpoint."""
    model = WorldModel(TINY)
    frame = (jnp.zeros((1, 1, 65, 65, 3)), jnp.zeros((1, 1, 2)), jnp.zeros((1, 1, 10)))
    params = quick_jit(model.init)(jax.random.key(0), *frame)["params"]
    ones = np.ones(2, np.float32)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(folder, TINY, params, Normalizer(0 * ones, 0.6 * ones, 32 * ones, 15 * ones), {})
    return folder


@pytest.fixture(scope="session")
def base_config(checkpoint):
    """A resolved config that takes seconds."""
    config = wall.get_config("small").to_dict()
    config["checkpoint"] = str(checkpoint)
    config["variants"] = "fp w4 w8a8-tensor w3a4-token"
    config["planner"] |= dict(samples=12, elites=4, steps=3, iterations=2, horizons="2 3", seeds="0 7")
    config["episodes"]["count"] = 3
    config["calibration"] = dict(episodes=2, iterations=2, samples=2, seed=0, horizon=2)
    config["engine"]["tiles_per_call"] = 2
    config["references"], config["pictures"] = False, 0
    return config


@pytest.fixture
def config(base_config):
    """A copy of the config that a test may change."""
    return copy.deepcopy(base_config)


@pytest.fixture(scope="session")
def prepare(base_config):
    """``prepare(**changes)``: the sweep of the config with fields ``group__field=value`` changed."""

    def make(process=0, processes=1, **changes):
        config = copy.deepcopy(base_config)
        for path, value in changes.items():
            *groups, field = path.split("__")
            holder = config
            for group in groups:
                holder = holder[group]
            assert field in holder
            holder[field] = value
        return sweeps.prepare(sweeps.check_settings(config), config, process, processes)

    return make
