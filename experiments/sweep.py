"""Plans with many quantized variants of a world model on the same episodes, and reports who survives.

    python -m experiments.sweep --config=configs/wall.py:small
    python -m experiments.sweep --config=configs/wall.py:small --config.variants='w4 w4g32' --workdir=results/mine

Any field of the config can be set as --config.path=value; the file documents them. The same command again resumes where
it was stopped, or says that all is done. Rows, config, pictures and report.html are in the workdir.
"""

import contextlib
from typing import Any

from absl import flags

from configs import wall
from experiments import fields
from wmq_jax import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the results; results/<name of the config> if not given.")
_PROCESS = flags.DEFINE_integer("process", 0, "Number of this process, if several share a workdir: 0 to processes - 1.")
_PROCESSES = flags.DEFINE_integer(
    "processes", 1, "How many processes share the cells; each is started with its own number."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Take process and processes from the pod, as jax.distributed finds them."
)


def main(config: dict[str, Any]) -> None:
    """Checks, prepares, computes, reports."""
    with contextlib.ExitStack() as stack:
        with cli.one_sentence_errors():
            # JAX may only be touched once the number of CPU devices is set, hence the late imports.
            from wmq_jax.runtime.devices import configure

            configure(config["engine"]["devices"], _DISTRIBUTED.value)
            from wmq_jax import sweep as sweeps

            process, processes = _PROCESS.value, _PROCESSES.value
            if _DISTRIBUTED.value:
                import jax

                process, processes = jax.process_index(), jax.process_count()
            sweep = sweeps.prepare(sweeps.check_settings(config), config, process, processes)
            workdir = cli.named_folder("workdir", _WORKDIR.value, f"results/{sweep.settings.name}")
            # First, so that the folder's config is that of the run which has it.
            stack.enter_context(sweeps.ResultsFolder(workdir, process).locked())
            folder = sweeps.open_folder(sweep, workdir)
        print(f"{sweeps.describe(sweep)}\n{sweeps.standing(sweep, folder)}", flush=True)
        if not sweeps.run_sweep(sweep, folder):
            missing = sweeps.missing_text(sweep, folder)
            print(f"this process's share is done; {missing} are left to the other processes of {folder.path}")
            return
        from wmq_jax import analysis

        with cli.one_sentence_errors(OSError):
            summary = analysis.write_report(folder.path)
    print(summary.table)
    print(f"results in {folder.path}; open {folder.path / 'report.html'}")


if __name__ == "__main__":
    cli.run(main, config="configs/wall.py:small", fields=fields.SWEEP, like=wall.get_config("small"), free=("env",))
