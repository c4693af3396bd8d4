"""Files of statistics: what they keep, and which may be merged."""

import dataclasses
import io
import tracemalloc
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmq_jax.quant.statistics import Range
from wmq_jax.sweep.statistics_file import Statistics, Stream, load_statistics, save_statistics


def statistics(model="a" * 64, source="planner name=wall", seed=0, calibration=(2, 101), held_out=(200,), low=-1.0):
    """Statistics of one site with this origin."""
    seen = {"site": {"input": Range(jnp.int32(3), jnp.float32(low), jnp.float32(1))}}
    episodes = {"calibration": list(calibration), "held_out": list(held_out)}
    return Statistics({"calibration": seen, "held_out": seen}, model, (Stream(source, seed, episodes),))


@pytest.fixture
def saved(tmp_path):
    """``saved(*statistics)``: the files' paths."""

    def save(*parts):
        paths = [tmp_path / f"{number}.npz" for number in range(len(parts))]
        for path, part in zip(paths, parts):
            save_statistics(path, part)
        return paths

    return save


def test_a_file_gives_back_what_was_saved(saved):
    one = statistics()
    found = load_statistics(saved(one))
    assert (found.params_sha256, found.streams) == (one.params_sha256, one.streams)
    jax.tree.map(np.testing.assert_array_equal, found.parts, one.parts)


def test_merged_statistics_keep_all_origins(saved):
    found = load_statistics(saved(statistics(low=-1), statistics(seed=1, low=-5), statistics(source="set", low=-2)))
    assert [(stream.source, stream.seed) for stream in found.streams] == [
        ("planner name=wall", 0),
        ("planner name=wall", 1),
        ("set", 0),
    ]
    merged = found.parts["calibration"]["site"]["input"]
    assert merged.count == 9 and merged.minimum == -5
    again = saved(found, statistics(seed=2))
    assert len(load_statistics(again).streams) == 4
    with pytest.raises(ValueError, match="both saw episode 2"):
        load_statistics(saved(found, statistics(seed=1)))


def test_a_part_that_one_file_lacks_is_the_other_ones(saved):
    first = statistics()
    second = statistics(seed=1, held_out=())
    second = dataclasses.replace(second, parts={"calibration": second.parts["calibration"]})
    found = load_statistics(saved(first, second))
    assert found.parts["calibration"]["site"]["input"].count == 6
    assert found.parts["held_out"]["site"]["input"].count == 3


@pytest.mark.parametrize(
    "second, words",
    [
        (dict(), "both saw episode 2 .calibration.seed 0 and 0."),
        (dict(calibration=(7, 101)), "both saw episode 101"),
        (dict(seed=1, calibration=(5, 200), held_out=(300,)), "both saw episode 200"),
        (dict(model="b" * 64), "are of different models, aaaaaaaaaaaa and bbbbbbbbbbbb"),
    ],
)
def test_what_cannot_be_merged_is_named(saved, second, words):
    with pytest.raises(ValueError, match=f"statistics .*0.npz and .*1.npz {words}"):
        load_statistics(saved(statistics(), statistics(**second)))


def test_episodes_of_a_data_set_are_the_same_under_every_seed(saved):
    with pytest.raises(ValueError, match="both saw episode 2"):
        load_statistics(saved(statistics(source="/data/set"), statistics(source="/data/set", seed=1)))


def test_statistics_of_other_shapes_are_named(saved):
    wide = {"site": {"input": Range(jnp.int32(3), jnp.zeros(2), jnp.ones(2))}}
    other = dataclasses.replace(statistics(seed=1), parts={"calibration": wide})
    with pytest.raises(ValueError, match="are of other settings"):
        load_statistics(saved(statistics(), other))


@pytest.mark.parametrize("origin", [None, "[]", "{}", '{"params_sha256": "a", "streams": [{"episodes": 3}]}', "{"])
def test_a_file_that_does_not_say_whose_it_is_is_refused(saved, origin):
    (path,) = saved(statistics())
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files if name != "origin"}
    np.savez(path, **arrays, **({} if origin is None else {"origin": origin}))
    with pytest.raises(ValueError, match=r"0.npz is no statistics file \("):
        load_statistics([path])


def test_what_is_no_statistics_file_is_said_in_our_own_words(saved, tmp_path):
    (path,) = saved(statistics())
    text, packed, objects = tmp_path / "text", path.read_bytes(), tmp_path / "objects.npz"
    text.write_text("root:x:0:0\n")
    np.savez(objects, a=np.array([{}]))
    place = packed.index(b"\x93NUMPY")
    path.write_bytes(packed[:place] + b"x" + packed[place + 1 :])
    unpacked = "(it is no .npz file, which experiments.quantize writes)"
    for file, reason in (
        (text, unpacked),
        (tmp_path, unpacked),
        (objects, "(its arrays cannot be read)"),
        (path, "(its arrays cannot be read)"),
    ):
        with pytest.raises(ValueError) as caught:
            load_statistics([file])
        assert str(caught.value) == f"{file} is no statistics file {reason}"
    with pytest.raises(FileNotFoundError) as caught:
        load_statistics([tmp_path / "none.npz"])
    assert str(caught.value) == f"there is no statistics file {tmp_path / 'none.npz'}"


def refused_within(path, words, megabytes):
    """Checks that a file is refused in one sentence, before much is allocated."""
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"is no statistics file \(.*{words}") as error:
        load_statistics([path])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "\n" not in str(error.value) and peak < megabytes << 20


def test_a_small_file_does_not_become_a_large_one(tmp_path):
    np.savez_compressed(tmp_path / "one.npz", zeros=np.zeros(100 << 20, np.uint8))
    refused_within(tmp_path / "one.npz", "would expand to", 4)
    np.savez_compressed(tmp_path / "many.npz", **{f"a{i}": np.zeros(10 << 20, np.uint8) for i in range(10)})
    refused_within(tmp_path / "many.npz", "would expand to", 4)


def test_a_header_gets_no_more_than_there_is(tmp_path):
    path = tmp_path / "header.npz"
    for shape in ((1 << 50,), (1 << 24,), (1 << 40, 1 << 40)):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a.npy", header.getvalue())
        refused_within(path, "a.npy has fewer values than its shape", 1)


def test_a_deeply_nested_origin_is_refused(saved):
    (path,) = saved(statistics())
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    np.savez(path, **arrays | {"origin": "[" * 100_000})
    refused_within(path, "recursion", 4)
