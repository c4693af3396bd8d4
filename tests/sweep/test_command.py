"""The command line as a user meets it, on a tiny checkpoint."""

import json
import os
import signal
import socket
import subprocess
import time

import pytest

from tests.programs import ROOT, command, program
from wmq_jax.runtime.devices import available_cores

pytestmark = pytest.mark.slow

SMALL = [
    "--config=configs/wall.py:small",
    "--config.variants=w4 w8a8-tensor",
    "--config.planner.samples=8",
    "--config.planner.elites=3",
    "--config.planner.steps=2",
    "--config.planner.iterations=2",
    "--config.episodes.count=3",
    "--config.pictures=2",
]


def sweep(*arguments, **kwargs):
    return program("sweep", *arguments, **kwargs)


@pytest.fixture(scope="module")
def finished(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "tiny"
    run = sweep(*SMALL, f"--config.checkpoint={checkpoint}", f"--workdir={folder}")
    assert run.returncode == 0, run.stderr
    return folder, run


def test_what_a_sweep_prints_and_leaves(finished):
    folder, run = finished
    for word in ("variants   3: FP32, W4, W8A8 per-tensor", "starting 9 cells", "9/9 cells"):
        assert word in run.stdout + run.stderr
    for name in ("FP32", "W4", "W8A8 per-tensor", "true simulator", "random actions"):
        assert name in run.stdout
    files = (
        "config.json",
        "variants.json",
        "episodes.json",
        "rows.jsonl",
        "reference.jsonl",
        "traces.npz",
        "report.html",
    )
    assert [name for name in files if not (folder / name).exists()] == []
    config = json.loads((folder / "config.json").read_text())
    assert config["versions"]["jax"] and config["tile"] == 1 and config["device"]["platform"] == "cpu"
    assert "xla_cpu_multi_thread_eigen=false" in config["xla_flags"]
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert [(row["variant"], row["episode"]) for row in rows] == [
        (name, n) for name in ("FP32", "W4", "W8A8 per-tensor") for n in range(3)
    ]
    for row in rows:
        assert len(row["predicted_cost"]) == len(row["distance"]) == row["iterations"]
        assert len(row["success"]) == 2 and len(row["path"]) == 1 + 5 * row["iterations"]


def test_the_same_command_again_says_that_all_is_done(finished, checkpoint):
    folder, _ = finished
    before = (folder / "rows.jsonl").read_bytes()
    run = sweep(*SMALL, f"--config.checkpoint={checkpoint}", f"--workdir={folder}")
    assert run.returncode == 0, run.stderr
    assert "all 9 cells are done" in run.stdout and "/9 cells" not in run.stderr
    assert (folder / "rows.jsonl").read_bytes() == before


# Of all mistakes, see `test_mistakes.py`: one that absl finds, one before JAX is set up, one at its devices, one after.
@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--nope=1"], "Unknown command line flag 'nope'"),
        (["--config=configs/bench.py:qwix"], "--config=configs/bench.py:qwix is no config of this program: it lacks "),
        (["--config.engine.devices=60000"], "engine.devices must be 0..{cores} (what this process has), not 60000"),
        (["--config.checkpoint=nowhere"], "no model checkpoint at nowhere: it has no model.json"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, arguments, sentence):
    if "lacks" in sentence:
        sentence += "variants, references, pictures, engine.noise_floor_tile, checkpoint and 42 more"
    run = sweep(f"--workdir={tmp_path / 'w'}", *arguments)
    assert (run.returncode, run.stderr) == (2, f"error: {sentence.format(cores=available_cores())}\n")
    assert not (tmp_path / "w").exists()


FAST = ["--config.episodes.count=256", "--config.references=False", "--config.pictures=0"]


@pytest.fixture
def interruptible():
    """Processes that start here can be interrupted: background jobs of a shell ignore SIGINT, and so would theirs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_in_a_sentence_and_the_same_command_goes_on(checkpoint, tmp_path):
    journal = tmp_path / "journal" / "rows-0.jsonl"
    arguments = [*SMALL, f"--config.checkpoint={checkpoint}", f"--workdir={tmp_path}", *FAST]
    with subprocess.Popen(command("sweep", *arguments), cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (journal.exists() and journal.stat().st_size):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert errors.endswith("stopped; the same command goes on from what is saved\n") and "Traceback" not in errors
    done = len(journal.read_text().splitlines())
    assert 0 < done < 768
    run = sweep(*arguments)
    assert run.returncode == 0 and f"{done} of 768 cells are done" in run.stdout
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 768


def test_results_of_another_config_are_kept(finished, checkpoint):
    folder, _ = finished
    before = (folder / "config.json").read_bytes()
    run = sweep(*SMALL, f"--config.checkpoint={checkpoint}", f"--workdir={folder}", "--config.planner.alpha=0.5")
    assert (run.returncode, run.stderr) == (
        2,
        f"error: workdir {folder} holds results of another config: rows.planner.alpha is 1.0 there and 0.5 now; "
        "choose another --workdir\n",
    )
    assert (folder / "config.json").read_bytes() == before


def test_help_explains_itself():
    run = sweep("--help")
    text = run.stdout + run.stderr
    for word in ("--config", "--workdir", "resumes", "--config.path=value", "report.html"):
        assert word in text


def test_processes_of_a_pod_share_the_cells(finished, checkpoint, tmp_path):
    """Two processes, as Open MPI starts them, leave the rows of one process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pod = {
        **os.environ,
        "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://127.0.0.1:1",
        "OMPI_COMM_WORLD_SIZE": "2",
        "JAX_COORDINATOR_PORT": str(port),
    }
    arguments = ["--distributed", *SMALL, f"--config.checkpoint={checkpoint}", f"--workdir={tmp_path}"]
    processes = [
        subprocess.Popen(
            command("sweep", *arguments),
            cwd=ROOT,
            env={**pod, "OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    journals = [(tmp_path / "journal" / f"rows-{rank}.jsonl").read_text().splitlines() for rank in range(2)]
    assert min(map(len, journals)) >= 4, "nine cells were not shared"
    assert (tmp_path / "rows.jsonl").read_bytes() == (finished[0] / "rows.jsonl").read_bytes()
