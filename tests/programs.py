"""Programs started as a user starts them."""

import contextlib
import io
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

from absl import flags

ROOT = Path(__file__).parents[1]


def command(name: str, *arguments) -> list[str]:
    """The words that start ``experiments/<name>.py`` from the repository's root."""
    return [sys.executable, "-m", f"experiments.{name}", *map(str, arguments)]


def program(name: str, *arguments, **kwargs) -> subprocess.CompletedProcess:
    """What ``python -m experiments.<name>`` prints and returns, from the repository's root."""
    return subprocess.run(command(name, *arguments), cwd=ROOT, capture_output=True, text=True, timeout=300, **kwargs)


def program_here(name: str, *arguments) -> subprocess.CompletedProcess:
    """What `program` gives, run in this process and in the current folder: a hundred times as fast.

    It is for commands that end before they compute anything: the settings of JAX that programs make first come too late
    here, where it is in use, and are left out.
    """
    argv = [f"experiments/{name}.py", *map(str, arguments)]
    before, out, err, code = set(flags.FLAGS), io.StringIO(), io.StringIO(), 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch("wmq_jax.runtime.devices.configure"))
        stack.enter_context(mock.patch.object(sys, "argv", argv))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        try:
            runpy.run_module(f"experiments.{name}", run_name="__main__")
        except SystemExit as ended:
            code = ended.code or 0
        finally:
            # Each program defines its own, some of the same names.
            for flag in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, flag)
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())
