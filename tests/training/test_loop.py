"""A stage that is killed at any moment continues bit for bit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wmq_jax.training import loop
from wmq_jax.training.loop import Stage, TrainState, run_stage

pytestmark = pytest.mark.quick

OPTIMIZER = optax.adam(0.1)


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def toy_stage(chunks=6):
    """Fits a vector to noise that is folded from the chunk's index."""
    key = jax.random.key(5)

    def init():
        params = {"w": jnp.zeros(3)}
        return TrainState(params, OPTIMIZER.init(params))

    @jax.jit
    def chunk(state, index):
        target = jax.random.normal(jax.random.fold_in(key, index), (3,))
        loss, gradient = jax.value_and_grad(lambda p: jnp.sum((p["w"] - target) ** 2))(state.params)
        updates, opt_state = OPTIMIZER.update(gradient, state.opt_state)
        return TrainState(optax.apply_updates(state.params, updates), opt_state), {"loss": loss}

    return Stage("toy", chunks, init, chunk)


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def silent(line):
    del line


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, run_stage(toy_stage(), folder, silent)


class Disk:
    """Counts the calls that touch the disk, and kills the process before the one that is numbered."""

    CALLS = (
        (loop, "save_tree"),
        (loop.shutil, "rmtree"),
        (loop.io, "write_json"),
        (loop.io, "write_text"),
        (loop.io, "append_line"),
    )

    def __init__(self, monkeypatch):
        self.count, self.fatal = 0, None
        for owner, name in self.CALLS:
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, function):
        def call(*args, **kwargs):
            if self.count == self.fatal:
                raise Killed
            self.count += 1
            return function(*args, **kwargs)

        return call


def test_killed_before_any_write_it_resumes_to_the_same_end(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    expected = run_stage(toy_stage(3), tmp_path / "whole", silent, save_every=0.0)
    writes = disk.count
    assert writes > 10
    for fatal in range(writes):
        folder = tmp_path / str(fatal)
        disk.count, disk.fatal = 0, fatal
        with pytest.raises(Killed):
            run_stage(toy_stage(3), folder, silent, save_every=0.0)
        disk.fatal = None
        result = run_stage(toy_stage(3), folder, silent, save_every=0.0)
        assert equal(result.state, expected.state) and result.metrics == expected.metrics
        lines = [(path / "toy" / "metrics.jsonl").read_text() for path in (folder, tmp_path / "whole")]
        assert lines[0] == lines[1]
        assert [path.name for path in (folder / "toy").glob("state_*")] == ["state_000003"]


def test_what_is_done_is_not_done_again(uninterrupted):
    folder, expected = uninterrupted
    stage = toy_stage()._replace(chunk=None)
    lines = []
    result = run_stage(stage, folder, lines.append)
    assert equal(result.state, expected.state) and lines == ["toy: done before"]


def test_only_the_latest_state_is_kept(uninterrupted):
    folder, _ = uninterrupted
    assert [path.name for path in (folder / "toy").glob("state_*")] == ["state_000006"]


def test_a_loss_that_is_not_finite_stops_the_stage(tmp_path):
    stage = toy_stage()
    bad = stage._replace(chunk=lambda state, index: (state, {"loss": jnp.nan if index == 3 else 1.0}))
    with pytest.raises(FloatingPointError, match="chunk 4 of 6"):
        run_stage(bad, tmp_path, silent)


def test_a_damaged_folder_is_named(tmp_path):
    run_stage(toy_stage(), tmp_path, silent)
    (tmp_path / "toy" / "progress.json").write_text('{"chunks": ')
    with pytest.raises(ValueError, match="progress.json is damaged"):
        run_stage(toy_stage(), tmp_path, silent)
    (tmp_path / "toy" / "progress.json").write_text(json.dumps({"chunks": 2, "seconds": 1.0}))
    with pytest.raises(
        ValueError, match="toy lacks state_000002, which its progress.json names; delete .*toy to train"
    ):
        run_stage(toy_stage(), tmp_path, silent)
