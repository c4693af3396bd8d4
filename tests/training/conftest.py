"""A training configuration that is through in seconds."""

import pytest

from wmq_jax.cli import load_config


@pytest.fixture
def tiny_config():
    """The resolved 'small' config with tiny numbers everywhere, as plain dictionaries."""
    config = load_config("configs/train_wall.py:small").to_dict()
    model = config["model"]
    model["encoder"].update(width=16, depth=1, heads=2, mlp_dim=32)
    model["predictor"].update(depth=1, heads=2, dim_head=8, mlp_dim=32)
    model["decoder"].update(channel=8, n_res_block=1, n_res_channel=4)
    config["data"].update(train=40, validation=6)
    config["data"]["walk"].update(steps=10)
    config["encoder"].update(steps=4, chunk=2, batch=4, warmup=1, grid=8, blurs=(4.0,))
    config["predictor"].update(rounds=3, shard=20, batch=8, warmup=1)
    config["decoder"].update(steps=4, chunk=2, batch=2, warmup=1)
    config["validation"].update(rollouts=4, pictures=1, episodes=2, horizon=2, iterations=2)
    config["validation"]["planner"].update(samples=4, elites=2, steps=2)
    return config
