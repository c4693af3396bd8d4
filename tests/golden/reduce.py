"""Makes the reduced copy of the recordings that the repository carries: `python -m tests.golden.reduce FOLDER`.

Weights, inputs and small outputs stay whole. Large outputs keep evenly spaced entries; cases of methods that the
library does not have, and cases that repeat another, are dropped. Every test runs on the reduced
copy as it does on the full one.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import re
import shutil
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wmq_jax.io import Module, load_torch

# Entries kept of a tensor that is thinned out.
ENTRIES = 1000

# Sites of weights, whose scales follow from the weights themselves; those of first blocks stay where methods move them.
WEIGHT_SITES = r".*(qkv|proj|fc1|fc2|to_out\.0|net\.[14])/"
LATER_WEIGHT_SITES = rf".*(blocks|layers)\.[1-9]\d*\.{WEIGHT_SITES}"


@dataclasses.dataclass(frozen=True)
class Rule:
    """What to leave out of a recording; each field is a regular expression that a key must contain to be meant.

    Attributes:
      drop: keys that are left out.
      thin: whole tensors of which evenly spaced entries are kept.
      entries: how many entries are kept of a large tensor.
      first: sub-sampled tensors, and whole ones, of which the first element of the batch is kept.
      sums: sums of sub-sampled tensors that are kept.
    """

    drop: str = "$^"
    thin: str = "$^"
    entries: int = ENTRIES
    first: str = "$^"
    sums: str = "$^"


RULES = {
    "world_model.npz": Rule(drop="mask_token$"),
    "encoder.npz": Rule(drop="^resize/224to196/", first="^img224/(?!encoder_image_size|pos_embed_interp)"),
    "predictor.npz": Rule(drop="^n196/T[12]/", thin="^(n16/T.|c0)/y$"),
    "wm_ops.npz": Rule(
        thin="^concat./(encode_obs_visual|sep_visual|replaced|predict|rollout_n[23]/visual|rollout_n1/z)$"
        "|^concat0/rollout_n1/visual$|^repeat_.*/z$"
    ),
    "decoder.npz": Rule(thin="^vqvae_quantize./(y|upsample)$"),
    "preprocess.npz": Rule(),
    "training.npz": Rule(drop="/sum$"),
    "env_wall.npz": Rule(),
    "quant_inputs.npz": Rule(),
    "quant_weights.npz": Rule(
        # Learnable clipping of one matrix: rows at 3 bits, groups at 4.
        drop="^[abd]/.*/(omse|awq_[a-z]+)/|^c/b[68]_.*/(omse|awq_[a-z]+)/|/lwc_.*_[42]/"
        "|^(?!a/b3_g-1/|a/b4_g128/).*/lwc_"
    ),
    "quant_acts.npz": Rule(),
    "quant_model.npz": Rule(
        drop="^w(3a16|6a6|8a8)[^/]*_omse|^w4a16_omse|^w4a8_omse_layer_(g64|predonly)/|/sens/"
        f"|^w(3|6|8|4a8)[^/]*/site/{WEIGHT_SITES}"
    ),
    "smoothquant.npz": Rule(
        drop="^alpha0.75/(w|param)|^alpha0.5/w(6a6|4a8|8a8_token)/|/sens/|^fp32/"
        rf"|/param/.*\.(qkv|to_qkv|fc1|net\.1)\.weight|/site/{LATER_WEIGHT_SITES}"
    ),
    "awq.npz": Rule(
        drop="^(encoder|predictor)/b3_g|^encoder/b4_g64/|^predictor/b4_g64/(param|block_out)"
        "|_order_w4a16/sens|^clip_layer/b(4_g-1|3)|/block_out_float/|/param/.*(qkv|fc1|net.1|proj).weight"
    ),
    "omniquant.npz": Rule(
        drop="^repaired_w3a16/|/sens/|^encoder/|^epochs0_key_fixed_token_wise/|/param/.*(qkv|fc1|net.1).weight"
        f"|/site/{LATER_WEIGHT_SITES}|^epochs0_released.*/site/"
    ),
    "cem.npz": Rule(),
    "mpc_wall.npz": Rule(sums="^obs._visual/"),
}


class Samples(NamedTuple):
    """Some entries of a tensor: its shape, their flat indices, their values."""

    shape: np.ndarray
    index: np.ndarray
    values: np.ndarray


def thinned(samples: Samples, entries: int) -> Samples:
    """Evenly spaced ones of the entries."""
    chosen = np.unique(np.linspace(0, len(samples.index) - 1, entries).round().astype(np.int64))
    return Samples(samples.shape, samples.index[chosen].astype(np.int32), samples.values[chosen])


def first_of(samples: Samples) -> Samples:
    """The entries in the first element of the batch: their flat indices are below its size."""
    inside = samples.index < np.prod(samples.shape[1:])
    return Samples(np.concatenate([[1], samples.shape[1:]]), samples.index[inside], samples.values[inside])


def reduced(arrays: dict[str, np.ndarray], rule: Rule) -> dict[str, np.ndarray]:
    """The arrays of a recording after its rule."""
    out: dict[str, np.ndarray] = {}
    for key, array in arrays.items():
        tensor, _, part = key.rpartition("/")
        is_sampled = f"{tensor}/idx" in arrays
        is_first = re.search(rule.first, key) is not None
        if re.search(rule.drop, key) or (is_sampled and part in ("shape", "val", "mean_abs")):
            continue
        if is_sampled and part == "sum" and not re.search(rule.sums, key):
            continue
        if is_sampled and part == "idx":
            samples = Samples(arrays[f"{tensor}/shape"], array, arrays[f"{tensor}/val"])
            _store(out, tensor, thinned(first_of(samples) if is_first else samples, rule.entries))
        elif re.search(rule.thin, key):
            whole = Samples(np.array(array.shape), np.arange(array.size), array.reshape(-1))
            _store(out, key, thinned(whole, rule.entries))
        else:
            out[key] = array[:1] if is_first else array
    return out


def _store(out: dict[str, np.ndarray], key: str, samples: Samples) -> None:
    out |= {f"{key}/shape": samples.shape, f"{key}/idx": samples.index, f"{key}/val": samples.values}


def save_packed(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a `.npz` file that LZMA packs, a twentieth smaller than deflate does; `np.load` reads it as any other."""
    with zipfile.ZipFile(path, "w") as file:
        for key, array in arrays.items():
            data = io.BytesIO()
            np.lib.format.write_array(data, np.asanyarray(array), allow_pickle=False)
            # The same bytes whenever it is made: an entry has a fixed date.
            file.writestr(zipfile.ZipInfo(f"{key}.npy"), data.getvalue(), zipfile.ZIP_LZMA)


def pack_wall_data(source: Path, target: Path, preprocess: dict[str, np.ndarray]) -> None:
    """Packs the trajectories of the data set, and the frames of the two episodes that are compared, into a zip file.

    Frames of the wall are mostly white: packed they take a twentieth.
    """
    item = preprocess["wall_split/train_indices"][preprocess["wall_item0/slice"][0]]
    episodes = {int(item), int(preprocess["wall_traj_valid0/episode"])}
    frames = [source / f"obses/episode_{episode:03d}.pth" for episode in sorted(episodes)]
    with zipfile.ZipFile(target, "w") as file:
        for path in (*sorted(source.glob("*.pth")), *frames):
            # The same bytes whenever it is made: an entry has a fixed date.
            entry = zipfile.ZipInfo(path.relative_to(source.parent).as_posix())
            file.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)


def copy_checkpoint(source: Path, target: Path) -> None:
    """Copies the run folder, with fewer entries of its weights; the checkpoint loses storages of optimizers and masks.

    The backbone is left out: its weights are those of the encoder in `world_model.npz`.
    """
    for path in source.glob("outputs/*/hydra.yaml"):
        run = target / path.parent.relative_to(source)
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, run / path.name)
        for file in path.parent.glob("checkpoints/*.pth"):
            copy_weights(file, run / "checkpoints" / file.name)
    with np.load(source / "state_dicts.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    save_packed(target / "state_dicts.npz", reduced(arrays, Rule(entries=100)))


def copy_weights(source: Path, target: Path) -> None:
    """Copies a torch file, entry by entry, without the storages that no weight of a module is in."""
    modules = [value for value in load_torch(source).values() if isinstance(value, Module)]
    kept = {weight.tobytes() for module in modules for weight in module.weights.values()}
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if "/data/" not in info.filename or data in kept:
                new.writestr(info.filename, data)


def main() -> None:
    """Reads a folder of recordings, writes the reduced copy beside this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the full recordings")
    source = parser.parse_args().folder
    target = Path(__file__).parent / "data"
    target.mkdir(exist_ok=True)
    for name, rule in RULES.items():
        with np.load(source / name, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        save_packed(target / name, reduced(arrays, rule))
        print(f"{name}: {(source / name).stat().st_size:>9,} -> {(target / name).stat().st_size:>9,} bytes")
        if name == "preprocess.npz":
            pack_wall_data(source / "dataset_wall/wall_single", target / "dataset_wall.zip", arrays)
    copy_checkpoint(source / "checkpoint", target / "checkpoint")
    print(f"total: {sum(path.stat().st_size for path in target.rglob('*') if path.is_file()):,} bytes")


if __name__ == "__main__":
    main()
