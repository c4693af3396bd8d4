"""Files are whole or absent, and lines survive one another."""

import json
import os
import stat

import pytest

from wmq_jax import io


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "value.json"
    for value in ({"a": 1}, {"b": [1, 2.5, None]}):
        io.write_json(path, value)
        assert json.loads(path.read_text()) == value
    assert os.listdir(tmp_path) == ["value.json"]


@pytest.mark.parametrize("when", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, when):
    path = tmp_path / "text"
    io.write_text(path, "old")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, when, fail)
    with pytest.raises(OSError, match="disk full"):
        io.write_text(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["text"]


def test_the_file_mode_is_that_of_an_ordinary_file(tmp_path):
    io.write_bytes(tmp_path / "ours", b"")
    (tmp_path / "plain").write_bytes(b"")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "plain")}
    assert len(modes) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_what_json_has_no_form_for_is_refused_and_nothing_is_written(tmp_path, value):
    with pytest.raises((ValueError, TypeError)):
        io.write_json(tmp_path / "x.json", {"x": value})
    assert not os.listdir(tmp_path)


def test_lines_are_appended_in_order(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = ['{"a": 1}', "", "ü"]
    for line in lines:
        io.append_line(path, line)
    assert path.read_text("utf-8") == "".join(line + "\n" for line in lines)


def test_a_torn_line_does_not_swallow_the_next(tmp_path):
    path = tmp_path / "rows.jsonl"
    io.append_line(path, "first")
    path.write_bytes(path.read_bytes() + b"to")
    io.append_line(path, "second")
    assert path.read_text().splitlines() == ["first", "to", "second"]


def test_a_line_holds_no_newline(tmp_path):
    with pytest.raises(ValueError, match="newline"):
        io.append_line(tmp_path / "rows.jsonl", "a\nb")
