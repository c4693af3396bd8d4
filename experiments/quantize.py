"""Quantizes a world model, saves it with packed integers, and says what that cost: sites, blocks, sizes.

    python -m experiments.quantize --config=configs/quantize.py:small --config.variant=awq:w4g32
    python -m experiments.quantize --config=configs/quantize.py:small \\
        --config.variant=encoder=w8,predictor=omniquant:w4 --statistics=results/quantize-small-awq-w4g32/statistics.npz

Any field of the config can be set as --config.path=value; the file documents them. The workdir holds the checkpoint in
model/, the figures in summary.json, and statistics.npz, with which further runs need no calibration. The same command
again goes on where it was stopped, or says that all is done.
"""

import contextlib
from typing import Any

from absl import flags

from configs import quantize
from experiments import fields
from wmq_jax import cli

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the result; results/<name of the config>-<variant> if not given."
)
_STATISTICS = flags.DEFINE_list(
    "statistics", [], "statistics.npz of earlier runs on the same model, instead of calibrating; several are merged."
)


def main(config: dict[str, Any]) -> None:
    """Checks, quantizes, prints the figures."""
    with contextlib.ExitStack() as stack:
        with cli.one_sentence_errors():
            # JAX may only be touched once the number of CPU devices is set, hence the late imports.
            from wmq_jax.runtime.devices import configure

            configure(config["engine"]["devices"])
            from wmq_jax import io, quantized
            from wmq_jax import sweep as sweeps

            job = sweeps.prepare_quantization(config, _STATISTICS.value)
            usual = sweeps.default_workdir(job.sweep.settings.name, job.spec)
            workdir = io.make_workdir(cli.named_folder("workdir", _WORKDIR.value, usual))
            stack.enter_context(io.locked(workdir))
            sweeps.open_workdir(job, workdir)
        print(sweeps.describe_quantization(job), flush=True)
        summary = sweeps.run_quantization(job, workdir)
    print(quantized.format_summary(summary))
    print(f"model in {workdir / 'model'}, figures in {workdir / 'summary.json'}")


if __name__ == "__main__":
    cli.run(
        main,
        config="configs/quantize.py:small",
        fields=fields.QUANTIZE,
        like=quantize.get_config("small"),
        free=("env",),
    )
