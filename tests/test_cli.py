"""What every program does with an interruption, and with --help."""

import subprocess
import sys


def test_an_interruption_is_one_sentence():
    code = "def main():\n    raise KeyboardInterrupt\nfrom wmq_jax import cli\ncli.run(main)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert run.returncode == 130
    assert run.stderr == "stopped; the same command goes on from here\n"


def test_help_is_no_failure():
    code = "from wmq_jax import cli\ncli.run(lambda: None)"
    run = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, timeout=100)
    assert run.returncode == 0
    assert "--helpfull" in run.stdout
