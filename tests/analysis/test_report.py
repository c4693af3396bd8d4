"""The written report: complete, self-contained, equal when repeated, and quiet."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmq_jax.analysis import load_results, style, write_report
from wmq_jax.analysis.plots import log_ticks

ROOT = Path(__file__).parents[2]
VOID = {"meta", "img", "br"}


@pytest.fixture(scope="module")
def written(sweep_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "results"
    shutil.copytree(sweep_folder, folder)
    return folder, write_report(folder)


class _Reader(HTMLParser):
    """Checks that tags close in order, and collects ids and everything that could be loaded."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.loads, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.loads += [
            value for name, value in attrs.items() if name in ("src", "href", "xlink:href", "data", "srcset")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def _parse(path):
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert not reader.open
    return reader


def test_writes_page_pictures_and_tables(written):
    folder, summary = written
    assert summary.report == folder / "report.html" and all(path.is_file() for path in summary.files)
    names = {path.stem for path in (folder / "pictures").glob("*.png")}
    assert {
        "survival",
        "success_by_iteration",
        "success_by_size",
        "alignment",
        "plans",
        "rollout_fp32_success",
        "rollout_fp32_failure",
    } <= names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (folder / "pictures").glob("*.png"))
    assert (folder / "table.csv").read_text().startswith("horizon,variant,")
    assert summary.headline in (folder / "report.html").read_text() and "W8A8 per-token" in summary.table


def test_page_is_well_formed_and_loads_nothing(written):
    reader = _parse(written[0] / "report.html")
    assert len(set(reader.ids)) == len(reader.ids)
    internal = {f"#{identifier}" for identifier in reader.ids}
    assert all(load in internal or load.startswith("data:image/png;base64,") for load in reader.loads)
    page = (written[0] / "report.html").read_text()
    assert "<script" not in page and "@import" not in page and not re.search(r"url\((?!#)", page)


def test_charts_take_their_colours_from_the_page(written):
    charts = re.findall(r"<svg.*?</svg>", (written[0] / "report.html").read_text(), flags=re.DOTALL)
    assert len(charts) == 5
    for tone, chart in itertools.product(style.TONES.values(), charts):
        assert tone.light not in chart.lower()


def test_page_says_what_the_numbers_rest_on(written):
    text = " ".join(_parse(written[0] / "report.html").text)
    for phrase in (
        "Who survives?",
        "one checkpoint, one CEM seed",
        "latent space",
        "harder ones",
        "Numerical-noise floor",
        "(1 and 2 cells)",
        "non-finite from 2",
        "true simulator",
        "0123456789abcdef",
        "jax 0.10.2",
        "--xla_cpu_multi_thread_eigen=false",
        "Newcombe (1998)",
    ):
        assert phrase in text, phrase


def test_starts_with_other_code_are_listed(tmp_path, synthetic):
    folder = synthetic.write_sweep(tmp_path / "r", episodes=4, iterations=2, variants=2)
    of = lambda revision: {"time": f"2026-01-0{len(revision)}", "git_revision": revision}
    synthetic.write_lines(folder / "starts.jsonl", [of("0123456789abcdef"), of("new"), {}])
    with open(folder / "starts.jsonl", "a") as file:
        file.write('{"time": ')
    write_report(folder)
    text = " ".join(_parse(folder / "report.html").text)
    assert "git revision since 2026-01-03" in text and text.count("revision since") == 1


def test_writing_again_gives_equal_files(tmp_path, synthetic):
    folder = synthetic.write_sweep(tmp_path / "r", episodes=4, iterations=2, variants=2)
    before = {path: path.read_bytes() for path in write_report(folder).files}
    write_report(folder)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    "case", ["nothing finished", "one variant", "no full precision", "all fail", "not finite", "plain path"]
)
def test_unusual_sweeps_have_a_report(tmp_path, synthetic, case):
    row = synthetic.make_row
    rows = {
        "nothing finished": [],
        "one variant": [row("FP32")],
        "no full precision": [row("W8", e) for e in range(3)],
        "all fail": [row(name, e, success=(False, False)) for name in ("FP32", "W8") for e in range(3)],
        "not finite": [row("FP32", e) for e in range(3)]
        + [
            row("W8", e, success=(False, False), nonfinite=1)
            | {"predicted_cost": [None, None], "realised_cost": [None, None]}
            for e in range(3)
        ],
        "plain path": [row("FP32", e) for e in range(3)],
    }[case]
    folder = synthetic.write_folder(tmp_path / "r", rows)
    if case == "plain path":
        sweep = synthetic.write_sweep(tmp_path / "s", episodes=4, iterations=2, variants=1)
        shutil.copy(sweep / "traces.npz", folder)
        index = [
            {key: value for key, value in entry.items() if key != "extent"}
            for entry in json.loads((sweep / "traces.json").read_text())
        ]
        (folder / "traces.json").write_text(json.dumps(index[:1]))
    summary = write_report(folder)
    assert summary.headline in " ".join(_parse(summary.report).text)


def test_names_are_escaped(tmp_path, synthetic):
    entry = synthetic.variant_entries(1)[0] | {"name": '<b>&"|$x$'}
    folder = synthetic.write_folder(tmp_path / "r", [synthetic.make_row(entry["name"], e) for e in range(2)], [entry])
    reader = _parse(write_report(folder).report)
    assert any('<b>&"|$x$' in text for text in reader.text)


def test_loads_matplotlib_late_and_leaves_it_as_it_was(tmp_path, synthetic):
    folder = synthetic.write_folder(tmp_path / "r", [synthetic.make_row()])
    check = f"""
import sys, wmq_jax.analysis
assert not {{'matplotlib', 'jax', 'scipy'}} & set(sys.modules)
import matplotlib
before = matplotlib.rcParams.copy()
wmq_jax.analysis.write_report({str(folder)!r})
assert matplotlib.rcParams.copy() == before
assert not {{'matplotlib.pyplot', 'jax', 'scipy'}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@given(st.floats(1e-6, 1e3), st.floats(1.02, 1e9))
def test_logarithmic_axes_have_a_few_ticks(low, factor):
    ticks = log_ticks(low, low * factor)
    assert 2 <= len(ticks) <= 6 and ticks == sorted(set(ticks))
    assert low * (1 - 1e-9) <= ticks[0] and ticks[-1] <= low * factor * (1 + 1e-9)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=14))
def test_labels_meet_neither_each_other_nor_points(points):
    with style.figure(6, 4) as fig:
        ax = fig.subplots()
        ax.set_xlim(-0.2, 1.2)
        ax.set_ylim(-0.2, 1.2)
        fig.draw_without_rendering()
        x, y = zip(*points)
        style.label_points(ax, x, y, [f"variant {i}" for i in range(len(points))], [style.INK] * len(points))
        boxes = [text.get_window_extent() for text in ax.texts]
        pixels = ax.transData.transform(points)
    assert boxes
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert not any(box.contains(*pixel) for box in boxes for pixel in pixels)


def test_program_prints_the_table_and_wrong_folders_are_a_sentence(tmp_path, synthetic):
    folder = synthetic.write_folder(tmp_path / "r", [synthetic.make_row("FP32", e) for e in range(3)])

    def run(where):
        command = [sys.executable, "-W", "error", "-m", "experiments.report", f"--results={where}"]
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
        )

    done = run(folder)
    assert done.returncode == 0 and done.stderr == "" and "FP32" in done.stdout and (folder / "report.html").is_file()
    wrong = run(tmp_path / "nowhere")
    assert wrong.returncode != 0 and wrong.stderr.startswith("error: ") and wrong.stderr.count("\n") == 1
    assert load_results(folder).rows


@pytest.mark.parametrize(
    "planner, same",
    [({}, True), (dict(executed=5), True), (dict(executed=1), False), (dict(objective="all"), False)],
)
def test_costs_of_different_things_are_not_compared(tmp_path, synthetic, planner, same):
    """Predicted ones are of the whole plan and objective, realised ones of the frame that was reached."""
    folder = synthetic.write_sweep(tmp_path / "r", episodes=6, iterations=2, variants=2)
    config = json.loads((folder / "config.json").read_text())
    config.setdefault("config", {})["planner"] = planner
    (folder / "config.json").write_text(json.dumps(config))
    write_report(folder)
    text = (folder / "report.html").read_text()
    assert ("Above the dashed line" in text) == same
    assert ("two are not the same quantity" in text) == (not same)
