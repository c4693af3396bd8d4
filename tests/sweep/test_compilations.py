"""What a whole sweep compiles: which programs, how often, and that their number does not grow."""

import collections

import jax
import pytest

from wmq_jax import sweep as sweeps

pytestmark = [pytest.mark.usefixtures("compilation_cache"), pytest.mark.quick]

COMPILED = "/jax/core/compile/backend_compile_duration"
MODULES, GROUPINGS = 2, 2  # encoder and predictor; the variants below have whole rows and groups of 8


def compilations(sweep, path):
    """Name of a program -> how often a process that starts with nothing compiles it for the whole sweep."""
    counts = collections.Counter()

    def listen(event, duration, **kwargs):
        if event == COMPILED:
            counts[kwargs["fun_name"]] += 1

    jax.clear_caches()
    folder = sweeps.open_folder(sweep, path)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with folder.locked():
            assert sweeps.run_sweep(sweep, folder)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return counts


@pytest.mark.slow
@pytest.mark.usefixtures("quickly")
def test_what_a_sweep_compiles_does_not_grow(prepare, tmp_path):
    few = prepare(
        variants="fp w4 w4g8 w8a8-tensor w3a4-token", planner__seeds="0", planner__horizons="2", references=True
    )
    many = prepare(
        variants="fp w2 w3 w4 w5g8 w3g8 encoder=w6 predictor=w7g8 w8a8-tensor w5a3-tensor w3a4-token w9a2-token",
        planner__seeds="0 1 2",
        planner__horizons="2",
        planner__iterations=3,
        episodes__count=5,
        references=True,
    )
    counts = compilations(few, tmp_path / "few")
    planners = {name: count for name, count in counts.items() if "advance" in name}
    assert sum(planners.values()) == 3, "one planner for all rows, one for each of two references"
    expected = {
        "jit(_quantize)": MODULES * GROUPINGS,
        "jit(_expand_or)": MODULES * GROUPINGS,
        "jit(_observed_ranges)": MODULES,
        "jit(_quantizers)": 1,
    }
    assert {name: counts[name] for name in expected} == expected
    assert compilations(many, tmp_path / "many") == counts
