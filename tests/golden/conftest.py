"""The `golden` fixture: recordings of the original code bases, and a count of the values compared with them.

`WMQ_GOLDEN` names a folder of recordings; without it the reduced copy beside the tests is used (see README.md).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.golden import tally
from tests.golden.quantized_network import QuantizedNetwork
from tests.golden.recorded_models import recorded_world_model
from tests.golden.tally import REDUCED, golden_folder

# What the reduced copy leaves out, since nothing here compares with it yet. Anything else that is missing is a failure.
LEFT_OUT = frozenset({"env_point_maze.npz", "env_pusht.npz"})

_COMPARED = pytest.StashKey[int]()
# Test file -> its test functions that ran in this process.
_ran: dict[str, set[str]] = {}
# What no comparison reads of a tensor that is recorded by some of its entries: the entries are compared.
_ENTRIES = r".*/(sum|mean_abs|shape|idx)"


class Samples(NamedTuple):
    """Some entries of a recorded tensor.

    Attributes:
      shape: shape of the whole tensor.
      index: (n,) their flat indices, row-major.
      values: (n,) the recorded values.
    """

    shape: tuple[int, ...]
    index: np.ndarray
    values: np.ndarray

    def of(self, array: Any) -> np.ndarray:
        """The same entries of `array`, which must have the recorded shape."""
        array = np.asarray(array)
        assert array.shape == self.shape, f"shape {array.shape}, recorded {self.shape}"
        return array.reshape(-1)[self.index]


class Recording(Mapping[str, np.ndarray]):
    """One `.npz` file: a mapping from key to array, loaded when asked for."""

    def __init__(self, path: Path):
        self._file = np.load(path, allow_pickle=False)
        self._read: set[str] = set()
        self.path = path

    def __getitem__(self, key: str) -> np.ndarray:
        self._read.add(key)
        return self._file[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.files)

    def __len__(self) -> int:
        return len(self._file.files)

    def __contains__(self, key: object) -> bool:
        return key in self._file.files

    def sub(self, key: str) -> Samples:
        """The entries recorded of tensor `key`, whether it was sub-sampled or stored whole."""
        if f"{key}/idx" in self:
            return Samples(tuple(int(n) for n in self[f"{key}/shape"]), self[f"{key}/idx"], self[f"{key}/val"])
        whole = self[key]
        return Samples(whole.shape, np.arange(whole.size), whole.reshape(-1))

    def json(self, key: str) -> Any:
        """A recorded JSON value."""
        return json.loads(str(self[key]))

    def scalar(self, key: str) -> Any:
        """A recorded number as a Python number."""
        return self[key].item()

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose keys start with `prefix`, with the prefix cut off."""
        return {key[len(prefix) :]: self[key] for key in self if key.startswith(prefix)}

    def unread(self) -> list[str]:
        """The keys whose arrays nobody has asked for."""
        return [key for key in self if key not in self._read]

    def tensors(self, prefix: str) -> list[str]:
        """The names under `prefix`, of sub-sampled tensors once."""
        parts = re.compile("/(shape|idx|val|sum|mean_abs|norm)$")
        return list(dict.fromkeys(parts.sub("", key[len(prefix) :]) for key in self if key.startswith(prefix)))

    def names(self, prefix: str = "") -> list[str]:
        """The distinct next path components under `prefix`, in recorded order."""
        return list(dict.fromkeys(key[len(prefix) :].split("/")[0] for key in self if key.startswith(prefix)))


def golden_path(name: str) -> Path:
    """The path of a recording, a folder or a zip file of it; fails if it is missing, skips where `LEFT_OUT` says so."""
    path = golden_folder() / name
    packed = path.with_name(f"{path.name}.zip")
    if not path.exists() and packed.is_file():
        return packed
    if not path.exists():
        if name in LEFT_OUT and golden_folder() == REDUCED:
            pytest.skip(f"{name} is left out of the reduced recordings")
        pytest.fail(f"there is no recording {name} in {golden_folder()}")
    return path


@pytest.fixture(scope="session")
def golden():
    """`golden(name)` opens a `.npz` recording; `golden.path(name)` is the path of any recorded file or folder."""
    opened: dict[str, Recording] = {}

    def load(name: str) -> Recording:
        if name not in opened:
            opened[name] = Recording(golden_path(name))
        return opened[name]

    load.path = golden_path
    return load


@pytest.fixture(scope="session")
def recorded_model(golden):
    """`recorded_model(image_size, concat_dim=1, decoder=None)`: config and parameters of a recorded world model."""
    return functools.partial(recorded_world_model, golden)


@pytest.fixture(scope="session")
def network(golden, recorded_model):
    """The recorded quantized network; see `QuantizedNetwork`."""
    inputs = golden("quant_inputs.npz")
    return QuantizedNetwork(inputs, *recorded_model(inputs["eval/visual_u8"].shape[-1]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """A test that can compare and did not fails: its loop over recorded cases was empty."""
    outcome = yield
    if "compared" in item.fixturenames:
        assert item.stash.get(_COMPARED, 0), "the test compared nothing"
    return outcome


@pytest.fixture
def compared(request):
    """`compared(n)` counts n recorded values that the test compared; the totals end the test run."""
    module = Path(request.node.path).name

    def count(values: int) -> None:
        assert values > 0, "nothing was compared"
        request.node.stash[_COMPARED] = request.node.stash.get(_COMPARED, 0) + int(values)
        tally.add(module, int(values))

    return count


@pytest.fixture
def close(compared, request):
    """`close(actual, recorded, atol=...)` compares with the recorded array or samples, and counts the values.

    A bound is absolute (`atol`), relative to the recorded tensor's L2 norm (`rel_l2`), or both: then either may hold.
    """

    module = Path(request.node.path).name

    def check(
        actual: Any,
        recorded: np.ndarray | Samples,
        *,
        atol: float | None = None,
        rel_l2: float | None = None,
        what: str = "values",
    ) -> None:
        if isinstance(recorded, Samples):
            actual, recorded = recorded.of(actual), recorded.values
        actual = np.asarray(actual, np.float64)
        recorded = np.asarray(recorded, np.float64)
        assert actual.shape == recorded.shape, f"{what}: shape {actual.shape}, recorded {recorded.shape}"
        difference = np.abs(actual - recorded).max()
        relative = np.linalg.norm(actual - recorded) / max(np.linalg.norm(recorded), 1e-30)
        shares = [
            measured / max(bound, 1e-30)
            for measured, bound in ((difference, atol), (relative, rel_l2))
            if bound is not None
        ]
        assert min(shares) <= 1, (
            f"{what}: largest difference {difference:.3g} (bound {atol}), relative L2 {relative:.3g} (bound {rel_l2})"
        )
        tally.closest(module, min(shares), what)
        compared(recorded.size)

    return check


@pytest.fixture(autouse=True)
def _note_test(request):
    _ran.setdefault(request.module.__name__, set()).add(request.function.__name__)


@pytest.fixture
def check_all_read(request):
    """`check_all_read(recording, explained)` fails if the file's other tests left recorded arrays unread.

    `explained` are patterns of keys that need no test. Skips where not all other tests of the file ran before, and with
    other recordings than the reduced ones: what those hold besides is no fault of theirs.
    """

    def check(recording: Recording, explained: dict[str, str]) -> None:
        """`explained`: regular expression of whole keys -> why they need no test."""
        if golden_folder() != REDUCED:
            pytest.skip("the reduced recordings alone are known to the last array")
        tests = {name for name in vars(request.module) if name.startswith("test_")}
        if tests - _ran[request.module.__name__]:
            pytest.skip("not all other tests of this file ran")
        left = [key for key in recording.unread() if not any(re.fullmatch(p, key) for p in (_ENTRIES, *explained))]
        assert not left, f"{recording.path.name} holds {len(left)} arrays that no test reads: {', '.join(left[:20])}"

    return check
