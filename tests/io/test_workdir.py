"""A folder of results takes one configuration and names the first difference to another."""

import pytest

from wmq_jax.io import adopt_config, new_folder


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
