"""Small data sets in the official layouts."""

import pickle
import zipfile

import numpy as np

from tests.io.torch_files import Storage, tensor, write_torch

N, T, SIDE = 5, 12, 4
RANDOM = np.random.default_rng(0)


def floats(*shape):
    """Random numbers."""
    return RANDOM.normal(size=shape).astype(np.float32)


def write(path, value):
    """A torch file of one tensor."""
    kind = {"float32": "FloatStorage", "uint8": "ByteStorage", "int64": "LongStorage"}[value.dtype.name]
    strides = tuple(step // value.itemsize for step in value.strides)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_torch(path, tensor(Storage(kind, "0", value.size), value.shape, strides), {"0": value.tobytes()})


def make_wall(folder, side=SIDE, steps=T):
    """Writes wall_single; returns its arrays."""
    arrays = {"states": 10 + floats(N, steps, 2), "actions": floats(N, steps, 2)}
    arrays["door_locations"] = np.broadcast_to(np.float32([10, 10, 20, 10, 10])[:, None, None], (N, steps, 1)).copy()
    arrays["wall_locations"] = np.full((N, steps, 1), 32, np.float32)
    for name, value in arrays.items():
        write(folder / f"{name}.pth", value)
    arrays["frames"] = RANDOM.integers(0, 256, (N, steps, 3, side, side), np.uint8)
    for i, frames in enumerate(arrays["frames"]):
        write(folder / "obses" / f"episode_{i:03d}.pth", frames)
    return arrays


def make_maze(folder):
    """Writes point_maze, padded beyond the lengths; returns its arrays."""
    arrays = {"states": floats(N, T, 4), "actions": floats(N, T, 2), "seq_lengths": np.array([12, 7, 9, 12, 6])}
    for name, value in arrays.items():
        write(folder / f"{name}.pth", value)
    arrays["frames"] = RANDOM.integers(0, 256, (N, T, SIDE, SIDE, 3), np.uint8)
    for i, frames in enumerate(arrays["frames"]):
        write(folder / "obses" / f"episode_{i:03d}.pth", frames)
    return arrays


def make_pusht(folder, lengths=None):
    """Writes one part of pusht_noise; returns its arrays."""
    arrays = {"states": floats(N, T, 5), "velocities": floats(N, T, 2), "rel_actions": 100 * floats(N, T, 2)}
    for name, value in arrays.items():
        write(folder / f"{name}.pth", value)
    arrays["lengths"] = [12, 7, 9, 12, 6] if lengths is None else lengths
    (folder / "seq_lengths.pkl").write_bytes(pickle.dumps(arrays["lengths"]))
    (folder / "obses").mkdir()
    for i in range(N):
        (folder / "obses" / f"episode_{i:03d}.mp4").write_bytes(b"video")
    return arrays


def zipped(folder, above):
    """A zip file of a folder, whose paths in it start with `above`."""
    path = folder.parent / f"{folder.name}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for member in folder.rglob("*"):
            if member.is_file():
                file.write(member, f"{above}{member.relative_to(folder).as_posix()}")
    return path
