"""A folder of results takes one configuration and names the first difference to another."""

import pytest

from wmq_jax.io import adopt_config


def test_config_must_match(tmp_path):
    config = {"config": {"planner": {"samples": 64, "steps": 8}}, "tile": 1, "versions": {"jax": "1"}}
    adopt_config(tmp_path, config, ("config", "tile"))
    adopt_config(tmp_path, {**config, "versions": {"jax": "2"}}, ("config", "tile"))
    with pytest.raises(ValueError) as caught:
        adopt_config(tmp_path, {**config, "config": {"planner": {"samples": 32, "steps": 8}}}, ("config", "tile"))
    assert str(caught.value) == (
        f"workdir {tmp_path} holds results of another config: config.planner.samples is 64 there and 32 now; "
        "choose another --workdir"
    )
    with pytest.raises(ValueError, match="tile is 1 there and 2 now"):
        adopt_config(tmp_path, {**config, "tile": 2}, ("config", "tile"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged; remove the folder or choose another --workdir"):
        adopt_config(tmp_path, config, ("config",))
