"""Trains a world model: generates data, pretrains and freezes an encoder, trains predictor and decoder, validates,
exports.

    python -m experiments.train --config=configs/train_wall.py:small
    python -m experiments.train --config=configs/train_wall.py:small --config.seed=1 --workdir=results/seed1
    python -m experiments.train --config=configs/train_wall.py:small --config.dataset=wall_single.zip \\
        --config.env.door_y=...

Any field of the config can be set as --config.path=value; the file documents them. The same command again resumes
where it was stopped, or says that all is done. The trained model is the folder model/ of the workdir, and can be
given to a sweep as its checkpoint.
"""

from typing import Any

from absl import flags

from wmq_jax import cli

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; results/<name of the config>-seed<seed> if not given."
)


def use_dataset(config: dict[str, Any]) -> dict[str, Any]:
    """Trajectories of the config's official data set; the config's sizes of data become theirs."""
    from wmq_jax.data import wall_parts

    env = config["env"]
    parts = wall_parts(config["dataset"], env["door_y"], env["wall_x"], config["model"]["frameskip"])
    config["data"] |= {name: len(part.states) for name, part in parts.items()}
    config["data"]["walk"]["steps"] = min(part.actions.shape[1] for part in parts.values())
    return parts


def main(config: dict[str, Any]) -> None:
    """Checks, then trains what is not trained yet."""
    with cli.one_sentence_errors():
        from wmq_jax import training
        from wmq_jax.data import save_trajectories
        from wmq_jax.sweep.provenance import git_revision, versions

        parts = use_dataset(config) if config["dataset"] else {}
        settings = training.check_settings(config)
        folder = _WORKDIR.value or f"results/{settings.name}-seed{settings.seed}"
        folder = training.open_workdir(folder, config, {"versions": versions(), "git_revision": git_revision()})
        training.check_folder(folder)
    for name, part in parts.items():
        path = folder / "data" / f"{name}.npz"
        path.parent.mkdir(exist_ok=True)
        save_trajectories(path, part, {"dataset": config["dataset"], **config["env"]})
    training.train(settings, folder)


if __name__ == "__main__":
    cli.run(main, config="configs/train_wall.py:small")
