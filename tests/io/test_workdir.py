"""A folder of results takes one configuration and names the first difference to another."""

import errno
import json
import multiprocessing
import os

import pytest

from wmq_jax.io import adopt_config, new_folder

ROUNDS = 20


def test_config_must_match(tmp_path):
    config = {"config": {"planner": {"samples": 64, "steps": 8}}, "tile": 1, "versions": {"jax": "1"}}
    adopt_config(tmp_path, config, ("config", "tile"))
    adopt_config(tmp_path, {**config, "versions": {"jax": "2"}}, ("config", "tile"))
    with pytest.raises(ValueError) as caught:
        adopt_config(tmp_path, {**config, "config": {"planner": {"samples": 32, "steps": 8}}}, ("config", "tile"))
    assert str(caught.value) == (
        f"workdir {tmp_path} holds results of another config: config.planner.samples is 64 there and 32 now; "
        "choose another --workdir"
    )
    with pytest.raises(ValueError, match="tile is 1 there and 2 now"):
        adopt_config(tmp_path, {**config, "tile": 2}, ("config", "tile"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged; remove the folder or choose another --workdir"):
        adopt_config(tmp_path, config, ("config",))


def start_often(folder, mine, barrier, answers):
    """A process that starts in one new folder after the other, each time at once with another process."""
    adopted = []
    for turn in range(ROUNDS):
        place = folder / str(turn)
        place.mkdir(exist_ok=True)
        barrier.wait(60)
        try:
            adopt_config(place, {"config": {"samples": mine}}, ("config",))
            adopted.append(turn)
        except ValueError as error:
            assert "config.samples is" in str(error)
    answers.put((mine, adopted))


def test_of_two_starts_at_once_one_has_the_folder(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    processes = [context.Process(target=start_often, args=(tmp_path, n, barrier, answers)) for n in (1, 2)]
    for process in processes:
        process.start()
    adopted = dict(answers.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    assert sorted(adopted[1] + adopted[2]) == list(range(ROUNDS)), "in every folder one was refused"
    for mine, turns in adopted.items():
        for turn in turns:
            assert json.loads((tmp_path / str(turn) / "config.json").read_text()) == {"config": {"samples": mine}}
            assert os.listdir(tmp_path / str(turn)) == ["config.json"]


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    for _ in range(2):
        adopt_config(tmp_path, {"config": 1}, ("config",))
    with pytest.raises(ValueError, match="config is 1 there and 2 now"):
        adopt_config(tmp_path, {"config": 2}, ("config",))
    assert os.listdir(tmp_path) == ["config.json"]


def test_a_new_folder_is_there_when_all_of_it_is(tmp_path):
    """What is stopped leaves nothing, what is killed leaves what the next start clears away."""
    out = tmp_path / "above" / "out"
    with pytest.raises(KeyboardInterrupt), new_folder(out, "a run") as folder:
        (folder / "half").touch()
        raise KeyboardInterrupt
    assert [*out.parent.iterdir()] == []
    (out / ".part").mkdir(parents=True)
    (out / ".part" / "half").touch()
    with new_folder(out, "a run") as folder:
        (folder / "whole").touch()
        assert [*out.iterdir()] == [folder]
    assert [*out.parent.iterdir()] == [out] and [*out.iterdir()] == [out / "whole"]


def test_a_new_folder_may_be_an_empty_one_elsewhere(tmp_path):
    """It stays where it is, also when what is written is stopped."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "volume")
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "link", "a run") as folder:
        (folder / "half").touch()
        raise KeyboardInterrupt
    assert [*(tmp_path / "volume").iterdir()] == []
    with new_folder(tmp_path / "link", "a run") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "whole").touch()
    assert (tmp_path / "link").is_symlink() and [*(tmp_path / "volume").rglob("*")] == [
        tmp_path / "volume" / "inner",
        tmp_path / "volume" / "inner" / "whole",
    ]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("full", "it exists and is not empty"),
        ("full/file", "full/file is a file"),
        ("full/file/new", "full/file is a file"),
        ("/proc/new", "No such file or directory"),
    ],
)
def test_where_no_new_folder_can_be(tmp_path, path, reason):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    with pytest.raises(ValueError, match=f"^cannot write a run to {tmp_path / path}: .*{reason}$"):
        with new_folder(tmp_path / path, "a run"):
            raise AssertionError
    assert [file.read_text() for file in tmp_path.rglob("*") if file.is_file()] == ["kept"]
