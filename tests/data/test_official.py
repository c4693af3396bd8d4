"""Official data sets: three layouts, from folders and zip files, lazily, and named where they do not fit."""

import pickle
import shutil

import numpy as np
import pytest

from tests.data.official_files import SIDE, N, T, floats, make_maze, make_pusht, make_wall, write, zipped
from wmq_jax.data import Normalizer, Portion, open_dataset, wall_parts
from wmq_jax.data.official import fixed_normalizer
from wmq_jax.io import save_torch


@pytest.fixture
def wall(tmp_path):
    return make_wall(tmp_path / "wall_single")


@pytest.mark.parametrize("where", ["folder", "parent", "zip", "zip of one above", "path into a zip"])
def test_wall(tmp_path, wall, where):
    folder = tmp_path / "wall_single"
    if where == "folder":
        path = folder
    elif where == "parent":
        path = tmp_path
    else:
        path = zipped(folder, "" if where == "zip" else "data/wall_single/")
        path = path / "wall_single" if where.startswith("path") else path
    dataset = open_dataset(path)
    assert (dataset.layout, len(dataset)) == ("wall_single", N)
    np.testing.assert_array_equal(dataset.states, wall["states"])
    np.testing.assert_array_equal(dataset.proprio, wall["states"])
    np.testing.assert_array_equal(dataset.actions, wall["actions"])
    assert dataset.lengths.tolist() == [T] * N and dataset.extras["door_y"].tolist() == [10, 10, 20, 10, 10]
    frames = dataset.frames(3, [0, 5])
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, np.moveaxis(wall["frames"][3][[0, 5]], 1, -1))


def test_only_the_episodes_that_are_asked_for_are_read(tmp_path, wall):
    for i in (0, 1, 2, 4):
        (tmp_path / "wall_single" / "obses" / f"episode_{i:03d}.pth").write_bytes(b"not a torch file")
    dataset = open_dataset(tmp_path / "wall_single")
    assert dataset.frames(3).shape == (T, SIDE, SIDE, 3)
    with pytest.raises(ValueError, match="episode_002.pth: it is no zip file"):
        dataset.frames(2)
    with pytest.raises(IndexError, match="episodes 0 to 4, not 5"):
        dataset.frames(5)


def test_point_maze_statistics_skip_the_padding(tmp_path):
    arrays = make_maze(tmp_path / "point_maze")
    dataset = open_dataset(tmp_path / "point_maze")
    assert dataset.layout == "point_maze" and dataset.lengths.tolist() == arrays["seq_lengths"].tolist()
    valid = np.concatenate([rows[:n] for rows, n in zip(arrays["states"], arrays["seq_lengths"])])
    np.testing.assert_allclose(dataset.normalizer.proprio_mean, valid.mean(0), rtol=1e-5)
    np.testing.assert_allclose(dataset.normalizer.proprio_std, valid.std(0, ddof=1), rtol=1e-5)
    np.testing.assert_array_equal(dataset.frames(1), arrays["frames"][1])
    cut = dataset.trajectories([0, 2], frameskip=3)
    steps = min(arrays["seq_lengths"][i] for i in (0, 2)) - 1
    assert cut.states.shape == (2, steps + 1, 4) and cut.actions.shape == (2, steps, 2)
    np.testing.assert_array_equal(cut.actions, arrays["actions"][[0, 2], :steps])


@pytest.mark.parametrize("lengths", [None, np.array([12, 7, 9, 12, 6]), [np.int64(n) for n in (12, 7, 9, 12, 6)]])
def test_pusht(tmp_path, lengths):
    train, val = (make_pusht(tmp_path / "pusht_noise" / part, lengths) for part in ("train", "val"))
    (tmp_path / "pusht_noise" / "val" / "shapes.pkl").write_bytes(pickle.dumps(["T", "T", "L", "T", "T"]))
    for part, arrays in (("train", train), ("val", val)):
        dataset = open_dataset(tmp_path / "pusht_noise", part)
        assert dataset.layout == "pusht_noise" and dataset.lengths.tolist() == [12, 7, 9, 12, 6]
        np.testing.assert_array_equal(dataset.states, np.concatenate([arrays["states"], arrays["velocities"]], -1))
        np.testing.assert_array_equal(dataset.proprio, dataset.states[..., [0, 1, 5, 6]])
        np.testing.assert_allclose(dataset.actions, arrays["rel_actions"] / 100, rtol=1e-6)
        assert dataset.normalizer is fixed_normalizer("pusht")
        split = dataset.split()
        assert (len(split.train), len(split.valid)) == ((N, 0) if part == "train" else (0, N))
        assert dataset.extras["shape"][2] == ("L" if part == "val" else "T")


@pytest.mark.parametrize("payload", [("os", "system"), ("builtins", "eval"), ("numpy", "load")])
def test_pickles_of_lengths_run_nothing(tmp_path, payload):
    make_pusht(tmp_path / "pusht_noise" / "train")
    evil = f"\x80\x02c{payload[0]}\n{payload[1]}\nX\x04\x00\x00\x00echo\x85R.".encode("latin-1")
    (tmp_path / "pusht_noise" / "train" / "seq_lengths.pkl").write_bytes(evil)
    with pytest.raises(ValueError, match=f"seq_lengths.pkl: it asks for '{payload[0]}.{payload[1]}', which is refused"):
        open_dataset(tmp_path / "pusht_noise")


@pytest.mark.parametrize(
    "break_it, words",
    [
        (lambda d: (d / "actions.pth").unlink(), "not complete: there is no file .*actions.pth"),
        (lambda d: write(d / "actions.pth", floats(N, T - 1, 2)), r"actions.pth has shape \(5, 11, 2\)"),
        (lambda d: write(d / "states.pth", floats(N, T)), "states.pth holds no tensor"),
        (lambda d: save_torch(d / "new.pth", {}) or shutil.move(d / "new.pth", d / "states.pth"), "holds no tensor"),
        (lambda d: write(d / "states.pth", floats(N, T, 2) * np.float32("nan")), "states.pth has NaN"),
        (
            lambda d: (d / "door_locations.pth").unlink(),
            "it has none of .* door_locations.pth .wall_single",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, wall, break_it, words):
    break_it(tmp_path / "wall_single")
    with pytest.raises(ValueError, match=words):
        open_dataset(tmp_path / "wall_single")


def test_lengths_are_checked(tmp_path):
    make_maze(tmp_path / "point_maze")
    write(tmp_path / "point_maze" / "seq_lengths.pth", np.array([12, 7, 9, 13, 6]))
    with pytest.raises(ValueError, match="seq_lengths.pth must hold 5 lengths of 1 to 12 steps"):
        open_dataset(tmp_path / "point_maze")


def test_data_sets_that_are_there_are_listed(tmp_path, wall):
    make_maze(tmp_path / "point_maze")
    for path in (tmp_path, tmp_path / "wall"):
        with pytest.raises(FileNotFoundError, match="point_maze, wall_single"):
            open_dataset(path)
    with pytest.raises(ValueError, match="one of train, val, not 'test'"):
        open_dataset(tmp_path / "point_maze", "test")


def test_walls_for_training_have_their_layouts_in_their_states(tmp_path, wall):
    dataset = open_dataset(tmp_path / "wall_single").taken(Portion(split_ratio=0.6))
    parts = wall_parts(dataset, frameskip=5)
    for part, episodes in zip(parts.values(), dataset.split()):
        assert part.states.shape == (len(episodes), 12, 4) and part.actions.shape == (len(episodes), 11, 2)
        np.testing.assert_array_equal(part.states[..., :2], dataset.states[episodes])
        np.testing.assert_array_equal(part.states[:, 5, 2], wall["door_locations"][episodes, 0, 0])
        assert (part.states[..., 3] == 32).all()
    with pytest.raises(ValueError, match="has 5 episodes, of which none is left for validation"):
        wall_parts(dataset.taken(Portion(split_ratio=1.0)), frameskip=5)
    make_maze(tmp_path / "point_maze")
    with pytest.raises(ValueError, match="layout point_maze"):
        wall_parts(open_dataset(tmp_path / "point_maze"), frameskip=5)


def test_a_run_takes_the_first_trajectories(tmp_path, wall):
    """Before statistics and split, as officially; of the frames, the same files."""
    dataset = open_dataset(tmp_path / "wall_single").taken(Portion(n_rollout=3, split_ratio=0.7))
    assert len(dataset) == 3 and dataset.extras["door_y"].tolist() == [10, 10, 20]
    expected = Normalizer.fit(wall["actions"][:3], wall["states"][:3])
    assert dataset.normalizer.to_dict() == expected.to_dict()
    train, valid = dataset.split()
    assert (len(train), len(valid)) == (2, 1) and sorted([*train, *valid]) == [0, 1, 2]
    np.testing.assert_array_equal(dataset.frames(2), np.moveaxis(wall["frames"][2], 1, -1))
    with pytest.raises(IndexError, match="episodes 0 to 2, not 3"):
        dataset.frames(3)
    assert len(open_dataset(tmp_path / "wall_single").taken(Portion(n_rollout=99))) == N


def test_of_folders_each_is_cut(tmp_path):
    make_pusht(tmp_path / "pusht_noise" / "train")
    dataset = open_dataset(tmp_path / "pusht_noise").taken(Portion(n_rollout=2, split_ratio=0.5))
    assert [len(part) for part in dataset.split()] == [2, 0] and dataset.lengths.tolist() == [12, 7]


def test_the_identity_of_a_data_set_names_what_is_another(tmp_path, wall):
    dataset = open_dataset(tmp_path / "wall_single")
    before = dataset.identity([1])
    assert before == open_dataset(tmp_path / "wall_single").identity([1]) and before != dataset.identity()

    def changed():
        now = open_dataset(tmp_path / "wall_single").identity([1])
        return {name for name in before if now[name] != before[name]}

    frames = (tmp_path / "wall_single" / "obses" / "episode_001.pth").read_bytes()
    write(tmp_path / "wall_single" / "obses" / "episode_001.pth", 1 + wall["frames"][1])
    assert changed() == {"frames"}
    (tmp_path / "wall_single" / "obses" / "episode_001.pth").write_bytes(frames)
    write(tmp_path / "wall_single" / "actions.pth", 1 + wall["actions"])
    assert changed() == {"actions"}
    other = dataset.taken(Portion(split_ratio=0.5)).identity([1])
    assert {name for name in before if other[name] != before[name]} == {"split_ratio"}


@pytest.mark.parametrize(
    "values, words",
    [
        ({"n_rollout": 0}, "n_rollout must be a whole number of 1 or more, or null, not 0"),
        ({"n_rollout": True}, "n_rollout must be"),
        ({"split_ratio": 1.5}, "split_ratio must be a number from 0 to 1, not 1.5"),
        ({"split_ratio": float("nan")}, "split_ratio must be"),
        ({"split_ratio": "\n"}, r"split_ratio must be a number from 0 to 1, not '\\n'"),
        ({"seed": 1}, "has the fields n_rollout, split_ratio and no others"),
        ([], "has the fields n_rollout"),
    ],
)
def test_portions_are_checked(values, words):
    with pytest.raises(ValueError, match=words):
        Portion.from_dict(values)
    portion = Portion(7, 0.5)
    assert Portion.from_dict(portion._asdict()) == portion and Portion.from_dict({}) == Portion()
