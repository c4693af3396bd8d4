"""Folders on disk and in zip files; what comes out of a zip file made to do harm is bounded by what it holds."""

import tempfile
import zipfile

import numpy as np
import pytest

from tests.data.official_files import make_wall, zipped
from wmq_jax.checkpoints.official_run import load_official
from wmq_jax.data import open_dataset
from wmq_jax.io.place import open_place

BOMB = 96 << 20  # of zeros, which deflate to a thousandth
METHODS = {"bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}


def write_zip(path, members, method=zipfile.ZIP_DEFLATED):
    """A zip file; a number stands for so many zeros, written without holding them."""
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as file:
        for name, content in members.items():
            with file.open(name, "w", force_zip64=True) as member:
                if isinstance(content, bytes):
                    member.write(content)
                else:
                    for _ in range(content >> 20):
                        member.write(bytes(1 << 20))
    return path


@pytest.fixture
def written(monkeypatch):
    """Sizes of the temporary files that are made, once closed."""
    sizes, make = [], tempfile.TemporaryFile

    class Counted:
        def __enter__(self):
            self._file = make()
            return self._file

        def __exit__(self, *_):
            sizes.append(self._file.seek(0, 2))
            self._file.close()

    monkeypatch.setattr("wmq_jax.io.place.tempfile.TemporaryFile", Counted)
    return sizes


def test_a_bomb_among_the_files_of_a_data_set(tmp_path, written):
    make_wall(tmp_path / "wall_single")
    bomb = zipped(tmp_path / "wall_single", "wall_single/")
    with zipfile.ZipFile(bomb) as file:
        members = {name: file.read(name) for name in file.namelist()}
    write_zip(bomb, members | {"wall_single/obses/episode_001.pth": BOMB})
    assert bomb.stat().st_size < 2 << 20
    dataset = open_dataset(bomb)
    with pytest.raises(ValueError, match="episode_001.pth cannot be read from its zip file: its .* bytes would expand"):
        dataset.frames(1)
    assert dataset.frames(0).shape[0] == len(dataset.states[0]) and max(written) < 1 << 20
    write_zip(bomb, members | {"wall_single/states.pth": BOMB})
    with pytest.raises(ValueError, match="states.pth cannot be read from its zip file"):
        open_dataset(bomb)


def test_a_bomb_as_a_run(tmp_path, written):
    bomb = write_zip(tmp_path / "outputs.zip", {"run/hydra.yaml": b"a: 1", "run/checkpoints/model_latest.pth": BOMB})
    with pytest.raises(
        ValueError, match="model_latest.pth cannot be read from its zip file: .* would expand to 100663296"
    ):
        load_official(bomb)
    assert sum(written) == 0


def test_sizes_that_lie_do_not_help(tmp_path, written):
    """A member that declares less than it expands to ends there; one that claims more packed bytes than the file has
    is measured by the file.
    """
    path = write_zip(tmp_path / "a.zip", {"x": BOMB})
    data = path.read_bytes()
    at = data.index(b"PK\x01\x02")
    extra = data.index(b"\x01\x00\x18\x00", at) if b"\x01\x00\x18\x00" in data[at:] else None
    assert extra is None, "sizes are in the entry itself"
    less = data[: at + 24] + (100).to_bytes(4, "little") + data[at + 28 :]
    more = data[: at + 20] + (BOMB).to_bytes(4, "little") + data[at + 24 :]
    for forged, words in ((less, "Bad CRC-32"), (more, "would expand")):
        path.write_bytes(forged)
        with pytest.raises(ValueError, match=words), open_place(path, ["x"], "thing").open("x"):
            pass
    assert max(written) <= 100


def test_what_compresses_well_and_is_small_is_read(tmp_path):
    """White frames of an episode."""
    path = write_zip(tmp_path / "a.zip", {"x": 8 << 20})
    assert path.stat().st_size < 1 << 16
    with open_place(path, ["x"], "thing").open("x") as file:
        assert file.read() == bytes(8 << 20)


def test_large_files_of_numbers_are_read(tmp_path):
    """Weights, an optimizer's zeros beside them: beyond what may expand freely."""
    weights = np.random.default_rng(0).bytes(8 << 20)
    path = write_zip(tmp_path / "a.zip", {"x": weights + bytes(72 << 20)})
    with open_place(path, ["x"], "thing").open("x") as file:
        assert file.seek(0, 2) == 80 << 20


@pytest.mark.parametrize("method", METHODS)
def test_other_methods_are_named(tmp_path, method):
    path = write_zip(tmp_path / "a.zip", {"x": b"1"}, METHODS[method])
    with pytest.raises(ValueError, match="x cannot be read from its zip file: it is neither stored nor deflated"):
        with open_place(path, ["x"], "thing").open("x"):
            pass


@pytest.mark.parametrize("path, missing", [("a.zip/run", "a.zip"), ("a.zip", "a.zip"), ("a/b/c", "a")])
def test_what_does_not_exist_is_named(tmp_path, path, missing):
    with pytest.raises(FileNotFoundError) as error:
        open_place(tmp_path / path, ["marker"], "run folder")
    message = f"there is no run folder {tmp_path / path}: {tmp_path / missing} does not exist"
    assert str(error.value) == message
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "marker").touch()
    with pytest.raises(FileNotFoundError) as error:
        open_place(tmp_path / path, ["marker"], "run folder")
    assert str(error.value) == f"{message}; {tmp_path} has beside"
