"""Limits of a container, as Linux writes them."""

import math

import pytest

from wmq_jax.runtime import devices
from wmq_jax.runtime.container import free_bytes, quota_cores
from wmq_jax.sweep import memory


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    "files, cores",
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({}, math.inf),
    ],
)
def test_share_of_time(tmp_path, files, cores):
    assert quota_cores(write(tmp_path, files)) == cores


@pytest.mark.parametrize(
    "files, free",
    [
        ({"memory.max": "1000\n", "memory.current": "700\n", "memory.stat": "anon 400\ninactive_file 300\n"}, 600),
        ({"memory.max": "1000\n", "memory.current": "1700\n"}, 0),
        ({"memory.max": "max\n", "memory.current": "700\n"}, math.inf),
        ({"memory/memory.limit_in_bytes": "1000\n", "memory/memory.usage_in_bytes": "200\n"}, 800),
        ({}, math.inf),
    ],
)
def test_memory(tmp_path, files, free):
    assert free_bytes(write(tmp_path, files)) == free


def test_a_container_bounds_cores_and_memory(monkeypatch):
    monkeypatch.setattr(devices, "quota_cores", lambda: 0.5)
    assert devices.available_cores() == 1
    monkeypatch.setattr(memory, "free_bytes", lambda: 12345.0)
    assert memory._host_bytes() == 12345
