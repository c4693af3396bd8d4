"""What every program does with an interruption, and with --help."""

import shlex
import subprocess
import sys


def test_an_interruption_is_one_sentence():
    code = "def main():\n    raise KeyboardInterrupt\nfrom wmq_jax import cli\ncli.run(main)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert run.returncode == 130
    assert run.stderr == "stopped; the same command goes on from what is saved\n"


def test_help_is_no_failure():
    code = "from wmq_jax import cli\ncli.run(lambda: None)"
    run = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, timeout=100)
    assert run.returncode == 0
    assert "--helpfull" in run.stdout


def test_help_lists_the_fields_as_they_are_set(tmp_path):
    """Each in a line that a shell takes as it stands, without its quotes being lost."""
    (tmp_path / "c.py").write_text(
        "import ml_collections\n"
        "def get_config(mode='a'):\n"
        "    return ml_collections.ConfigDict(dict(variants='w4 w3', inner=dict(count=2, on=True), empty=''))\n"
    )
    code = "from wmq_jax import cli\ncli.run(lambda config: print(config), config='c.py')"
    command = lambda *words: subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=100, cwd=tmp_path
    )
    lines = [line.strip() for line in command("--help").stdout.splitlines() if "--config." in line]
    assert lines == [
        "--config.empty=''",
        "--config.variants='w4 w3'",
        "--config.inner.count=2",
        "--config.inner.on=true",
    ]
    again = command(*(word for line in lines for word in shlex.split(line)))
    assert again.stdout == command().stdout != "", again.stderr


def test_home_is_found_where_a_shell_leaves_it_to_the_program(tmp_path):
    code = (
        "from absl import flags\nfrom wmq_jax import cli\nflags.DEFINE_string('out', None, '')\n"
        "cli.run(lambda: print(flags.FLAGS.out))"
    )
    for given, expected in (("~/m", f"{tmp_path}/m"), ("~", str(tmp_path)), ("a~/m", "a~/m")):
        run = subprocess.run(
            [sys.executable, "-c", code, f"--out={given}"], capture_output=True, text=True, env={"HOME": str(tmp_path)}
        )
        assert run.stdout == f"{expected}\n", run.stderr


def test_what_the_system_refuses_is_said_without_its_number():
    code = "from wmq_jax import cli\nwith cli.one_sentence_errors():\n    open('/nowhere/at/all')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (2, "error: /nowhere/at/all: No such file or directory\n")
