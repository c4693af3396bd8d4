"""The results folder survives a kill at any byte."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmq_jax.io import object_of
from wmq_jax.sweep.rows import from_line, row_key, to_line
from wmq_jax.sweep.store import ResultsFolder

ROWS = [
    {"variant": name, "seed": seed, "horizon": 5, "episode": n, "success": [n % 2 == 0], "distance": [0.1 * n]}
    for name in ("FP32", "W4 g32")
    for seed in (0, 1)
    for n in range(3)
]
KEYS = [row_key(row) for row in ROWS]
NOTE = "note: an earlier start in this folder had other {}; starts.jsonl tells"


def written(path, rows):
    folder = ResultsFolder(path)
    for row in rows:
        folder.append("rows", row)
    return folder


def test_a_line_is_its_row():
    for row in ROWS:
        assert from_line(to_line(row)) == row
        assert "\n" not in to_line(row)


@pytest.mark.parametrize("line", ["", "{", '{"variant":"a"}', "[1]", "3", to_line(ROWS[0])[:-1]])
def test_a_torn_line_is_no_row(line):
    assert from_line(line) is None


def test_a_start_with_other_versions_is_noticed(tmp_path):
    folder, path = ResultsFolder(tmp_path), tmp_path / "starts.jsonl"
    same = {"git_revision": "abc", "versions": {"jax": "1"}}
    assert folder.start(same) is None and folder.start(same) is None
    with open(path, "a") as file:
        file.write('{"process": 0, "git_rev')  # torn by a kill
    assert ResultsFolder(tmp_path, 1).start({**same, "versions": {"jax": "2"}}) == NOTE.format("versions")
    assert folder.start({**same, "git_revision": None}) == NOTE.format("git revision and versions")
    starts = [object_of(line) for line in path.read_text().splitlines()]
    assert [start["process"] for start in starts if start] == [0, 0, 1, 0] and all(
        s is None or s["time"] for s in starts
    )


def test_every_torn_journal_resumes_to_the_same_table(tmp_path):
    """Cut the journal after any byte, compute what is missing, finish: nothing is lost or doubled."""
    whole = written(tmp_path / "whole", ROWS)
    whole.finish("rows", KEYS)
    expected = (whole.path / "rows.jsonl").read_bytes()
    journal = (whole.path / "journal" / "rows-0.jsonl").read_bytes()
    length = len(to_line(ROWS[0]))
    cuts = [*range(0, 2 * length), *range(2 * length, len(journal), 17), len(journal) - 1, len(journal)]
    folder = ResultsFolder(tmp_path / "torn")
    for cut in cuts:
        (folder.path / "journal" / "rows-0.jsonl").write_bytes(journal[:cut])
        done = folder.load("rows")
        complete = journal[:cut].count(b"\n")
        # A line that lacks only its newline is whole.
        assert len(done) in (complete, complete + 1)
        for row in ROWS:
            if row_key(row) not in done:
                folder.append("rows", row)
        folder.finish("rows", KEYS)
        assert (folder.path / "rows.jsonl").read_bytes() == expected
        lines = (folder.path / "journal" / "rows-0.jsonl").read_text().splitlines()
        whole_rows = [from_line(line) for line in lines if from_line(line)]
        assert len(whole_rows) == len(ROWS)


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(len(ROWS))), split=st.integers(0, len(ROWS)))
def test_order_and_process_do_not_matter(tmp_path_factory, order, split):
    path = tmp_path_factory.mktemp("folder")
    for process, part in enumerate((order[:split], order[split:])):
        folder = ResultsFolder(path, process)
        for index in part:
            folder.append("rows", ROWS[index])
    folder.finish("rows", KEYS)
    assert [json.loads(line) for line in (path / "rows.jsonl").read_text().splitlines()] == ROWS


def test_a_missing_row_cannot_be_finished(tmp_path):
    with pytest.raises(KeyError):
        written(tmp_path, ROWS[1:]).finish("rows", KEYS)


def test_two_runs_cannot_share_a_folder(tmp_path):
    first, second = ResultsFolder(tmp_path), ResultsFolder(tmp_path)
    with first.locked():
        with pytest.raises(ValueError, match="is in use by another run"), second.locked():
            pass
        with ResultsFolder(tmp_path, process=1).locked():
            pass
    with second.locked():
        pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError) as caught:
        ResultsFolder(tmp_path / "file" / "sub")
    assert str(caught.value) == f"workdir {tmp_path / 'file' / 'sub'} cannot be created: Not a directory"
