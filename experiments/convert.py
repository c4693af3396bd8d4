"""Converts a published DINO-WM run and its backbone to a checkpoint that sweeps load, and back; without PyTorch.

    python -m experiments.convert --run_dir=outputs.zip/wall_single --backbone=dinov2_vits14_pretrain.pth \\
        --dataset=wall_single.zip --out=models/wall
    python -m experiments.convert --to=torch --run_dir=models/wall --out=outputs/wall

The run folder holds hydra.yaml and checkpoints/; it may be inside a zip file, of which the rest stays packed. The
backbone is a file of the original DINOv2 release or Hugging Face's safetensors. The data set gives the statistics of
actions and proprioception that the run was trained with; without it a sweep must be given one (PushT's are constants).
Nothing in any of these files runs as code.

The way back writes hydra.yaml, checkpoints/model_latest.pth, the backbone's file, and wmq_jax.json with what these
have no place for: the statistics and the backbone's head count. Its folder converts again without further flags, bit
for bit.
"""

from pathlib import Path

from absl import flags

from wmq_jax import cli

_RUN_DIR = flags.DEFINE_string("run_dir", None, "Folder of the run; with --to=torch our checkpoint.", required=True)
_BACKBONE = flags.DEFINE_string(
    "backbone", None, "DINOv2's weights (.pth or .safetensors), unless the run trained its own or has them beside it."
)
_DATASET = flags.DEFINE_string("dataset", None, "The run's data set (folder or zip file), for its statistics.")
_OUT = flags.DEFINE_string("out", None, "New folder to write.", required=True)
_TO = flags.DEFINE_enum("to", "ours", ["ours", "torch"], "Direction.")
_EPOCH = flags.DEFINE_string("epoch", "latest", "Which checkpoint of the run: latest, or a number.")
_HEADS = flags.DEFINE_integer(
    "encoder_heads", None, "Attention heads of a backbone of unpublished width.", lower_bound=1
)
_SHA256 = flags.DEFINE_list(
    "sha256",
    [],
    "SHA-256 that files must have, checked before any is parsed; each must be that of a file that is given (the zip "
    "file of a run or data set; of a run's folder its files; a data set in a folder has none).",
)


def _size(count: int) -> str:
    """A number of bytes for a person."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def to_ours() -> None:
    """Official files to our checkpoint."""
    from wmq_jax.checkpoints import convert
    from wmq_jax.checkpoints.native import is_checkpoint
    from wmq_jax.checkpoints.opening import OfficialOptions, read_run
    from wmq_jax.io import check_new_folder

    with cli.one_sentence_errors():
        check_new_folder(_OUT.value, "a checkpoint")  # before minutes of reading
        if _RUN_DIR.value == "bundled":
            raise ValueError(
                "bundled is the model that ships here, no official run: use it as --config.checkpoint=bundled"
            )
        if not _RUN_DIR.value:
            raise ValueError("--run_dir is empty: it must be the folder of a run, on disk or in a zip file")
        if is_checkpoint(_RUN_DIR.value):
            raise ValueError(f"--run_dir={_RUN_DIR.value} is a checkpoint of ours already; --to=torch takes it back")
        sums = ",".join(_SHA256.value)
        options = OfficialOptions(_BACKBONE.value or "", _EPOCH.value, _HEADS.value or 0, sums)
        run = read_run(_RUN_DIR.value, _DATASET.value, options)
        mapped = convert.convert_run(run.model, _OUT.value, run.normalizer, run.files)
    for path, digest in run.files.items():
        print(f"read       {path} ({_size(Path(path).stat().st_size)})\n           sha256 {digest}")
    config = run.model.config
    print(
        f"model      history {config.num_hist}, {config.num_patches} patches of width {config.encoder.width}, "
        f"encoder of {config.encoder.depth} layers and {config.encoder.heads} heads, "
        f"predictor of {config.predictor.depth} layers, {config.predictor.heads} heads and width {config.predictor_dim}"
    )
    for module, size in mapped.parameters.items():
        print(f"mapped     {module:<16} {mapped.weights[module]:>4} weights, {size:>12,} parameters")
    if mapped.unused:
        print(f"kept aside {len(mapped.unused)} weights that the model never reads: {', '.join(mapped.unused)}")
    if run.normalizer is None:
        print("statistics none: give --dataset here, or --config.dataset to a sweep")
    else:
        source = f"of {_DATASET.value}: " if _DATASET.value else ""
        print(f"statistics {source}action std {run.normalizer.action_std}, proprio std {run.normalizer.proprio_std}")
    print(f"written    {_OUT.value} ({_size(mapped.bytes)} of parameters)\n           sha256 {mapped.sha256}")


def to_torch() -> None:
    """Our checkpoint to official files."""
    from wmq_jax.checkpoints import convert
    from wmq_jax.io import check_new_folder, sha256_of

    with cli.one_sentence_errors():
        check_new_folder(_OUT.value, "a run")
        unused = [flag.name for flag in (_BACKBONE, _DATASET, _EPOCH, _HEADS, _SHA256) if flag.present]
        if unused:
            raise ValueError(f"--{unused[0]} means nothing with --to=torch, which reads our checkpoint alone")
        modules = convert.export_torch(_RUN_DIR.value, _OUT.value)
        files = convert.written_files(_OUT.value)
    for module, state in modules.items():
        print(f"mapped     {module:<16} {len(state):>4} weights, {sum(w.size for w in state.values()):>12,} parameters")
    for file in files:
        print(f"written    {file} ({_size(file.stat().st_size)})\n           sha256 {sha256_of(file)}")


def main() -> None:
    """Converts and says what was mapped."""
    if _TO.value == "torch":
        to_torch()
    else:
        to_ours()


if __name__ == "__main__":
    cli.run(main)
