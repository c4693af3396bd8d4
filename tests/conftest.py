"""Every test sees two CPU devices and deterministic kernels, as a sweep does, and compiles nothing twice."""

import atexit
import os
import shutil
import tempfile

import jax
import pytest

_CACHE = "JAX_COMPILATION_CACHE_DIR"
if _CACHE not in os.environ:
    # Before JAX is imported. Workers of pytest-xdist and the commands under test inherit it.
    os.environ[_CACHE] = tempfile.mkdtemp(prefix="wmq_jax-compiled-")
    atexit.register(shutil.rmtree, os.environ[_CACHE], ignore_errors=True)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

from tests.golden import tally  # noqa: E402
from tests.quick_jit import ENVIRONMENT, compilation  # noqa: E402
from wmq_jax.runtime.devices import configure  # noqa: E402

configure()
jax.config.update("jax_num_cpu_devices", 2)  # also where there is one core

_KEY = "golden"


def pytest_configure(config):
    """The whole suite compiles as users do but for what is marked `quick`, the everyday one in half the time.

    So do programs under test: what they print and leave is compared among themselves.
    """
    jax.config.update("jax_disable_most_optimizations", "not slow" in config.option.markexpr)


@pytest.fixture(scope="session", autouse=True)
def _programs_compile_quickly():
    jax.devices()  # reads the environment, which is for processes that this one starts from here on
    for name, value in ENVIRONMENT.items():
        given = os.environ.get(name, "")
        os.environ[name] = given if value in given else f"{given} {value}".strip()


@pytest.fixture(scope="module", autouse=True)
def _quickly(request):
    """A module that is marked `quick` compiles with less optimisation in the whole suite too."""
    everyday = jax.config.read("jax_disable_most_optimizations")
    marked = lambda name: request.node.get_closest_marker(name) is not None
    with compilation(quick=everyday or marked("quick"), older_emitters=not marked("bitwise")):
        yield


def pytest_collection_modifyitems(items):
    """Whole runs first: the longest files must not be the last that a worker starts."""
    items.sort(key=lambda item: "sweep" not in item.path.parts)


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


@pytest.fixture
def compilation_cache(tmp_path_factory):
    """Opening a results folder turns the persistent cache on; what other tests count stays theirs."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.getbasetemp() / "compiled"))
    yield
    jax.config.update("jax_compilation_cache_dir", before)
