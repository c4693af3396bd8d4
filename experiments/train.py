"""Trains a world model: generates data, pretrains and freezes an encoder, trains predictor and decoder, validates,
exports.

    python -m experiments.train --config=configs/train_wall.py:small
    python -m experiments.train --config=configs/train_wall.py:small --config.seed=1 --workdir=results/seed1
    python -m experiments.train --config=configs/train_wall.py:small --config.dataset=wall_single.zip
    python -m experiments.train --config=configs/train_wall.py:finetune --config.init.checkpoint=models/wall \\
        --config.dataset=wall_single.zip

The last one goes on with a converted model, whose encoder stays as it is. Any field of the config can be set as
--config.path=value; the file documents them. The same command again resumes where it was stopped, or says that all is
done. The trained model is the folder model/ of the workdir, and can be given to a sweep as its checkpoint.
"""

import contextlib
from typing import Any

from absl import flags

from experiments import fields
from wmq_jax import cli

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; results/<name of the config>-seed<seed> if not given."
)


def main(config: dict[str, Any]) -> None:
    """Checks, then trains what is not trained yet."""
    with contextlib.ExitStack() as stack:
        with cli.one_sentence_errors():
            # JAX may only be touched after this.
            from wmq_jax.runtime.devices import available_cores, configure

            configure(devices=1)
            from wmq_jax import io, training
            from wmq_jax.runtime import provenance
            from wmq_jax.runtime.starts import record_start

            config, given = training.take_given(config, cli.overridden())
            settings = training.check_settings(config)
            usual = f"results/{settings.name}-seed{settings.seed}"
            folder = cli.named_folder("workdir", _WORKDIR.value, usual)
            # Locked first, so that the folder's config is that of the run which has it.
            stack.enter_context(io.locked(io.make_workdir(folder)))
            made_with = {**provenance.record(1), "cores": available_cores()}
            folder = training.open_workdir(folder, config, made_with)
            note = None if training.check_folder(folder) else record_start(folder, made_with)
        print(training.describe_training(settings, config, folder), flush=True)
        if note:
            print(note, flush=True)
        training.train(settings, folder, given=given)


if __name__ == "__main__":
    cli.run(main, config="configs/train_wall.py:small", fields=fields.TRAIN)
