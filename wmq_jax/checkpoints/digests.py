"""SHA-256 of the files that a conversion takes, known and checked before any of them is parsed."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from wmq_jax.checkpoints.run_folder import BESIDE, SETTINGS, checkpoint_name, open_run
from wmq_jax.io import sha256_of
from wmq_jax.io.place import archive_of


def file_digests(
    run_dir: str | os.PathLike,
    backbone: str | os.PathLike | None = None,
    dataset: str | os.PathLike | None = None,
    epoch: str = "latest",
) -> dict[str, str]:
    """The SHA-256 of every file that a conversion may read, by its path.

    Args:
      run_dir, backbone, epoch: as of `load_official`. A run inside a zip file is covered by that file's digest, a
        folder by those of its files.
      dataset: the run's data set; covered as a zip file only, since a folder of thousands of files has no digest.

    Raises:
      FileNotFoundError, ValueError: there is no such run folder, checkpoint or backbone.
    """
    paths = _run_files(run_dir, with_backbone=backbone is None, epoch=epoch)
    paths += [Path(backbone)] if backbone is not None else []
    archive = archive_of(dataset) if dataset else None
    paths += [archive] if archive is not None else []
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"there is no file {missing[0]}")
    return {str(path): sha256_of(path) for path in dict.fromkeys(paths)}


def _run_files(run_dir: str | os.PathLike, with_backbone: bool, epoch: str) -> list[Path]:
    """The zip file that a run is in, or the files of its folder that matter."""
    archive = archive_of(run_dir)
    if archive is not None:
        return [archive]
    run = open_run(run_dir)
    names = [SETTINGS, checkpoint_name(run, epoch)] + [name for name in (BESIDE,) if run.has(name)]
    # Which of them is the run's own, hydra.yaml tells, which is not parsed yet.
    names += [name for name in run.files(".") if with_backbone and name.endswith("_pretrain.pth")]
    return [run.root / name for name in names]


def check_digests(files: Mapping[str, str], expected: Sequence[str]) -> None:
    """Checks that every expected SHA-256 is that of a file.

    Args:
      files: from `file_digests`.
      expected: in any case of letters.

    Raises:
      ValueError: one is of no file; what was found is listed.
    """
    for digest in expected:
        if digest.lower() not in files.values():
            found = ", ".join(f"{path} {of_file}" for path, of_file in files.items())
            raise ValueError(f"no file has the SHA-256 {digest}; found: {found} (a data set in a folder has none)")
