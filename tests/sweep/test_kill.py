"""SIGKILL at random moments loses nothing and doubles nothing."""

import copy
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time

import pytest

from wmq_jax.sweep.rows import from_line, row_key

pytestmark = pytest.mark.slow

KILLS = 20


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_a_write(rows):
    """This process is killed when half of a row has reached the file, after some whole ones."""
    from wmq_jax.sweep import store

    whole, left = store.append_line, [rows]

    def append_line(path, line):
        if "rows-" not in path.name:
            return whole(path, line)
        if left[0]:
            left[0] -= 1
            return whole(path, line)
        with open(path, "ab") as file:
            file.write(line.encode()[: len(line) // 2])
            file.flush()
            os.fsync(file.fileno())
        die()

    store.append_line = append_line


def die_in_a_compilation(seconds):
    """This process is killed so long after the compilation of the planner has begun."""
    import jax

    compile_planner = jax.stages.Lowered.compile

    def compiled(*args, **kwargs):
        threading.Timer(seconds, die).start()
        return compile_planner(*args, **kwargs)

    jax.stages.Lowered.compile = compiled


def work(config, folder, cache, trap=None, when=0):
    """A whole sweep in a process of its own, with a folder of compiled programs; `trap(when)` sets its death."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache))
    if trap is not None:
        trap(when)
    from wmq_jax import sweep as sweeps
    from wmq_jax.runtime.devices import configure

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

    def run(config, folder, cache, *trap):
        process = context.Process(target=work, args=(config, str(folder), cache, *trap))
        process.start()
        return process

    return run


def finish(process):
    process.join(300)
    assert process.exitcode == 0


def row_lines(folder, table="*"):
    journals = sorted((folder / "journal").glob(f"{table}-0.jsonl"))
    return [line for journal in journals for line in journal.read_text().splitlines()]


def wait_for_another_row(process, folder):
    before = len(row_lines(folder))
    while process.is_alive() and len(row_lines(folder)) == before:
        time.sleep(0.005)


def test_killed_at_twenty_moments(base_config, start, tmp_path):
    config = copy.deepcopy(base_config)
    config["episodes"]["count"], config["references"] = 12, True
    # Without static ranges: calibration leaves nothing behind that a kill could tear, and takes half of a start.
    config["variants"] = "fp w4 w3 w3a4-token"
    whole, torn, cache = tmp_path / "whole", tmp_path / "torn", tmp_path / "cache"
    finish(start(config, whole, cache))
    expected = {table: (whole / f"{table}.jsonl").read_bytes() for table in ("reference", "rows")}
    cells = sum(len(lines.splitlines()) for lines in expected.values())

    moments = random.Random(0)
    between_rows = in_a_write = in_a_compilation = 0
    for kill in range(KILLS):
        compiled = (torn / "journal" / "rows-0.jsonl").exists()
        if kill % 8 == 0:
            shutil.rmtree(cache)  # the next process finds what this one leaves
            process = start(config, torn, cache, die_in_a_compilation, moments.uniform(0.0, 1.0))
            process.join(60)
            assert (torn / "journal" / "rows-0.jsonl").exists() == compiled, "it got further than its compilation"
            in_a_compilation += process.exitcode == -signal.SIGKILL
        elif kill % 4 == 3:
            process = start(config, torn, cache, die_in_a_write, moments.randint(0, 3))
            process.join(60)
            in_a_write += not (torn / "journal" / "rows-0.jsonl").read_bytes().endswith(b"\n")
        elif kill % 2:
            # Between rows; the first of these also lets the compilation end.
            process = start(config, torn, cache)
            wait_for_another_row(process, torn)
            time.sleep(moments.uniform(0.0, 0.05))
        else:
            # While it loads, compiles or plans.
            process = start(config, torn, cache)
            time.sleep(moments.uniform(0.05, 3.0))
        process.kill()
        process.join(60)
        between_rows += 0 < len(row_lines(torn)) < cells
    assert (in_a_compilation, in_a_write) == (3, 5)
    assert between_rows >= KILLS // 4, "too few kills fell between two rows: the test would not notice a lost one"
    finish(start(config, torn, cache))
    for table, lines in expected.items():
        assert (torn / f"{table}.jsonl").read_bytes() == lines
        keys = [row_key(row) for row in map(from_line, row_lines(torn, table)) if row]
        assert len(keys) == len(set(keys)) == len(lines.splitlines())
