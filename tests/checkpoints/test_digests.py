"""Checksums of what a conversion takes: all of its files, before any is parsed."""

import pytest

from wmq_jax.checkpoints.digests import check_digests, file_digests
from wmq_jax.io import sha256_of

# None of these can be parsed: whoever tries, fails.
FILES = ("hydra.yaml", "wmq_jax.json", "dinov2_vits14_pretrain.pth", "checkpoints/model_latest.pth")


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    for name in (*FILES, "notes.txt", "checkpoints/model_3.pth"):
        (folder / name).write_text(f"contents of {name}")
    (tmp_path / "backbone.pth").write_text("a backbone")
    return folder


def test_the_files_of_a_folder(run):
    assert file_digests(run) == {str(run / name): sha256_of(run / name) for name in FILES}
    other = file_digests(run, epoch="3")
    assert str(run / "checkpoints" / "model_3.pth") in other and str(run / FILES[-1]) not in other


def test_a_given_backbone_replaces_the_runs_own(run, tmp_path):
    found = file_digests(run, tmp_path / "backbone.pth")
    assert str(tmp_path / "backbone.pth") in found and str(run / "dinov2_vits14_pretrain.pth") not in found


def test_zip_files_are_not_opened(run, tmp_path):
    for name in ("outputs.zip", "wall_single.zip"):
        (tmp_path / name).write_text(f"no zip file {name}")
    found = file_digests(
        tmp_path / "outputs.zip" / "wall_single",
        tmp_path / "backbone.pth",
        tmp_path / "wall_single.zip" / "wall_single",
    )
    names = ("outputs.zip", "backbone.pth", "wall_single.zip")
    assert found == {str(tmp_path / name): sha256_of(tmp_path / name) for name in names}


def test_a_data_set_in_a_folder_has_none(run, tmp_path):
    assert file_digests(run, dataset=run.parent) == file_digests(run)


def test_what_is_missing_is_named(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*gone.pth"):
        file_digests(run, tmp_path / "gone.pth")
    with pytest.raises(FileNotFoundError, match="there is no run folder"):
        file_digests(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="no checkpoints/model_9.pth"):
        file_digests(run, epoch="9")


def test_expected_digests(run):
    found = file_digests(run)
    check_digests(found, [digest.upper() for digest in found.values()])
    check_digests(found, [])
    with pytest.raises(ValueError, match="no file has the SHA-256 00; found: .*latest.pth [0-9a-f]{64}, .*a data set"):
        check_digests(found, [*found.values(), "00"])
