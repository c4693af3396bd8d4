"""SIGKILL at random moments loses nothing and doubles nothing."""

import copy
import multiprocessing
import random
import shutil
import time

import pytest

from wmq_jax.sweep.rows import from_line, row_key

pytestmark = pytest.mark.slow

KILLS = 20


def work(config, folder, cache):
    """A whole sweep in a process of its own, with a folder of compiled programs."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache))
    from wmq_jax import sweep as sweeps
    from wmq_jax.sweep.devices import configure

    configure(2)
    sweep = sweeps.prepare(sweeps.check_settings(config), config)
    results = sweeps.open_folder(sweep, folder)
    with results.locked():
        assert sweeps.run_sweep(sweep, results)


@pytest.fixture(scope="module")
def start():
    """Starts a process that has imported everything but not yet touched JAX."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["wmq_jax.sweep", "wmq_jax.analysis"])

    def run(config, folder, cache):
        process = context.Process(target=work, args=(config, str(folder), cache))
        process.start()
        return process

    return run


def finish(process):
    process.join(300)
    assert process.exitcode == 0


def row_lines(folder):
    journal = folder / "journal" / "rows-0.jsonl"
    return journal.read_text().splitlines() if journal.exists() else []


def wait_for_another_row(process, folder):
    before = len(row_lines(folder))
    while process.is_alive() and len(row_lines(folder)) == before:
        time.sleep(0.005)


def test_killed_at_twenty_moments(base_config, start, tmp_path):
    config = copy.deepcopy(base_config)
    config["episodes"]["count"] = 12
    whole, torn, cache = tmp_path / "whole", tmp_path / "torn", tmp_path / "cache"
    finish(start(config, whole, cache))
    expected = (whole / "rows.jsonl").read_bytes()

    moments = random.Random(0)
    between_rows = 0
    for kill in range(KILLS):
        if kill % 8 == 0:
            shutil.rmtree(cache)  # so that kills fall into a compilation; the next process finds what it left
        process = start(config, torn, cache)
        if kill % 2:
            # While rows are being written; the first of these also lets the compilation end.
            wait_for_another_row(process, torn)
            time.sleep(moments.uniform(0.0, 0.1))
        else:
            # While it loads, compiles, calibrates or plans.
            time.sleep(moments.uniform(0.05, 3.0 if kill % 8 else 8.0))
        process.kill()
        process.join(60)
        between_rows += 0 < len(row_lines(torn)) < len(expected.splitlines())
    assert between_rows >= KILLS // 4, "too few kills fell between two rows: the test would not notice a lost one"
    finish(start(config, torn, cache))
    assert (torn / "rows.jsonl").read_bytes() == expected
    keys = [row_key(row) for row in map(from_line, row_lines(torn)) if row]
    assert len(keys) == len(set(keys)) == len(expected.splitlines())
