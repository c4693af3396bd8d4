"""Files of calibration statistics. They say whose they are: a model is not quantized with another one's, and nothing is
counted twice where several are merged.
"""

import dataclasses
import io
import json
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from wmq_jax import quant
from wmq_jax.io import write_bytes
from wmq_jax.io.place import METHODS, ZIP_ERRORS, check_expansion
from wmq_jax.io.wording import plain

# Parts of a statistics file: what methods look at, and inputs of other episodes that only block errors look at.
CALIBRATION, HELD_OUT = "calibration", "held_out"
PARTS = (CALIBRATION, HELD_OUT)
PLANNER = "planner"  # how the source of a planner's episodes begins
_ORIGIN = "origin"
_DAMAGE = (ValueError, TypeError, KeyError, AttributeError, RecursionError, *ZIP_ERRORS)


@dataclasses.dataclass(frozen=True)
class Stream:
    """What one calibration saw.

    Attributes:
      source: where episodes come from: ``PLANNER`` and its environment, or the path of a data set.
      seed: of the planner's noise, and of the samples drawn; of a data set also of the episodes.
      episodes: part of the file -> its episodes: seeds of the environment, or numbers of a data set's trajectories.
    """

    source: str
    seed: int
    episodes: Mapping[str, Sequence[int]]


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Statistics with their origin.

    Attributes:
      parts: ``{CALIBRATION: ..., HELD_OUT: ...}``, trees of ``quant.calibrate``; the second may be missing.
      params_sha256: of the model's parameters.
      streams: of all calibrations that they were merged of.
    """

    parts: Mapping[str, Any]
    params_sha256: str
    streams: tuple[Stream, ...]


def save_statistics(path: Path, statistics: Statistics) -> None:
    """Writes statistics as named arrays, atomically; identical ones give identical files."""
    streams = [dataclasses.asdict(stream) for stream in statistics.streams]
    origin = json.dumps({"params_sha256": statistics.params_sha256, "streams": streams}, sort_keys=True)
    buffer = io.BytesIO()
    np.savez(buffer, **quant.statistics_to_arrays(statistics.parts), **{_ORIGIN: origin})
    write_bytes(path, buffer.getvalue())


def load_statistics(paths: Sequence[str | os.PathLike]) -> Statistics:
    """Statistics of files of :func:`save_statistics`, merged.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a file holds no statistics or does not say whose; or two are of different models or shapes, or saw the
        same.
    """
    files = [_load(path) for path in paths]
    for number, (path, other) in enumerate(zip(paths, files)):
        for earlier, one in zip(paths[:number], files):
            _check_mergeable(one, other, f"statistics {earlier} and {path}")
    present = [part for part in PARTS if any(part in file.parts for file in files)]
    return Statistics(
        parts={part: quant.merge_statistics(*(f.parts[part] for f in files if part in f.parts)) for part in present},
        params_sha256=files[0].params_sha256,
        streams=tuple(stream for file in files for stream in file.streams),
    )


def _load(path: str | os.PathLike) -> Statistics:
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no statistics file {path}")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no statistics file (it is no .npz file, which experiments.quantize writes)")
    try:
        arrays = _arrays(path)
        origin = json.loads(str(arrays.pop(_ORIGIN))) if _ORIGIN in arrays else None
        parts = quant.statistics_from_arrays(arrays)
        if origin is None:
            raise ValueError("it does not say of which model; calibrate again")
        return Statistics(parts, str(origin["params_sha256"]), tuple(map(_stream, origin["streams"])))
    except zipfile.BadZipFile:
        raise ValueError(f"{path} is no statistics file (its arrays cannot be read)") from None
    except _DAMAGE as error:
        raise ValueError(f"{path} is no statistics file ({plain(error)})") from None


def _arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a file, which may state no more bytes than it can hold.

    numpy allocates what an array's header asks for before it reads: that may be no more than its member has.
    """
    found = {}
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(info.compress_type not in METHODS for info in members):
            raise ValueError("its arrays are neither stored nor deflated")
        check_expansion(Path(path).stat().st_size, sum(info.file_size for info in members))
        for info in members:
            with archive.open(info) as member:
                shape, _, dtype = _header(member)
                if math.prod(shape) * dtype.itemsize > info.file_size:
                    raise ValueError(f"{info.filename} has fewer values than its shape {shape}")
            with archive.open(info) as member:
                found[info.filename.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
    return found


def _header(member: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and dtype of an array in numpy's format, whose own errors are advice for numpy's callers."""
    try:
        version = np.lib.format.read_magic(member)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, order, dtype = read(member)
    except (ValueError, KeyError):
        raise ValueError("its arrays cannot be read") from None
    if dtype.hasobject:
        raise ValueError("its arrays cannot be read")
    return shape, order, dtype


def _stream(stream: Mapping[str, Any]) -> Stream:
    episodes = {part: [int(number) for number in numbers] for part, numbers in stream["episodes"].items()}
    return Stream(str(stream["source"]), int(stream["seed"]), episodes)


def _check_mergeable(one: Statistics, other: Statistics, names: str) -> None:
    if one.params_sha256 != other.params_sha256:
        raise ValueError(
            f"{names} are of different models, {one.params_sha256[:12]} and {other.params_sha256[:12]}: they cannot be "
            "merged"
        )
    for part in one.parts.keys() & other.parts.keys():
        shapes = [jax.tree.map(np.shape, file.parts[part]) for file in (one, other)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{names} are of other settings: they cannot be merged")
    for a in one.streams:
        for b in other.streams:
            if a.source == b.source:
                _check_episodes(a, b, names)


def _check_episodes(a: Stream, b: Stream, names: str) -> None:
    """Checks that nothing was seen twice, and that no block error is measured on what methods look at.

    Another seed gives a planner's episode other futures; those of a data set stay what they are.
    """
    for part, kept in a.episodes.items():
        for other_part, others in b.episodes.items():
            shared = sorted(set(kept) & set(others))
            if shared and (part != other_part or a.seed == b.seed or not a.source.startswith(PLANNER)):
                raise ValueError(
                    f"{names} both saw episode {shared[0]} (calibration.seed {a.seed} and {b.seed}): merge statistics "
                    "of other episodes"
                )
