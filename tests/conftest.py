"""Every test sees two CPU devices and deterministic kernels, as a sweep on two cores does."""

import pytest

from tests.golden import tally
from wmq_jax.sweep.devices import configure

configure(devices=2)

_KEY = "golden"


def pytest_sessionfinish(session):
    output = getattr(session.config, "workeroutput", None)  # there in a worker of pytest-xdist
    if output is not None:
        output[_KEY] = tally.export()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    del error
    tally.merge(getattr(node, "workeroutput", {}).get(_KEY, []))


def pytest_terminal_summary(terminalreporter):
    """Prints how many recorded values each module compared."""
    lines = tally.report()
    if lines:
        terminalreporter.section("golden recordings")
    for line in lines:
        terminalreporter.write_line(line)
