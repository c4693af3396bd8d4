"""The table in its three forms."""

import csv
import dataclasses
import io

import pytest

from wmq_jax.analysis import format_table, load_results
from wmq_jax.analysis.paired import Difference, Rate
from wmq_jax.analysis.summary import compare
from wmq_jax.analysis.table import csv_table, difference_text, markdown_table, rate_text, shown_iterations


@pytest.fixture(scope="module")
def results(sweep_folder):
    return load_results(sweep_folder)


def test_fits_a_terminal(results):
    text = format_table(results)
    assert text.isascii() and max(map(len, text.splitlines())) <= 120
    assert "one checkpoint, one CEM seed" in text


def test_one_line_a_variant_with_its_bits_and_granularity(results):
    names = [v.name for v in results.variants] + ["true simulator", "random actions"]
    lines = {
        name: line for line in format_table(results).splitlines() for name in names if line[2:].startswith(f"{name} ")
    }
    fields = {
        name: lines[name][2 + len(name) :].split() for name in ("FP32", "W4 g32", "W8A8 per-tensor", "encoder W4")
    }
    assert fields["FP32"][:5] == ["32/32", "32/32", "-", "-", "1.84"]
    assert fields["W4 g32"][:5] == ["4/32", "4/32", "g32", "-", "0.30"]
    assert fields["W8A8 per-tensor"][:5] == ["8/8", "8/8", "channel", "tensor", "0.49"]
    assert fields["encoder W4"][:5] == ["4/32", "32/32", "channel", "-", "1.34"]
    assert lines["W3"].startswith("x ") and lines["W3"].endswith("!")
    assert "true simulator" in lines and "random actions" in lines


def test_nonfinite_variants_say_where_it_began(results):
    assert "! W3: plans became non-finite in" in format_table(results) and "first in MPC iteration 2" in format_table(
        results
    )


@pytest.mark.parametrize(
    "iterations, shown", [(1, (1,)), (2, (1, 2)), (4, (1, 2, 3, 4)), (5, (1, 2, 3, 5)), (10, (1, 2, 3, 5, 10))]
)
def test_columns_of_iterations(iterations, shown):
    assert shown_iterations(iterations) == shown


def test_several_seeds_are_named(tmp_path, synthetic):
    folder = synthetic.write_sweep(tmp_path / "r", episodes=4, seeds=2, horizons=(3, 5), iterations=2, variants=3)
    text = format_table(load_results(folder))
    assert "2 CEM seeds" in text and "one CEM seed" not in text
    assert "horizon 3" in text and "horizon 5" in text


def test_unfinished_sweeps_say_so(tmp_path, synthetic):
    folder = synthetic.write_folder(tmp_path / "r", [], synthetic.variant_entries(2))
    (folder / "rows.jsonl").unlink()
    synthetic.write_lines(
        folder / "journal" / "rows-0.jsonl",
        [synthetic.make_row("FP32", e) for e in range(3)] + [synthetic.make_row("W8")],
    )
    text = format_table(load_results(folder))
    assert "1 episode, horizon 5" in text and text.endswith(
        "2 finished cells of later ones are left out, since successes finish first."
    )
    (folder / "journal" / "rows-0.jsonl").write_text("")
    assert format_table(load_results(folder)) == "No episode is finished yet."


def test_csv_holds_every_number(results):
    comparison = compare(results, 5)
    records = {record["variant"]: record for record in csv.DictReader(io.StringIO(csv_table([comparison])))}
    assert list(records) == [line.name for line in comparison.lines + comparison.references]
    for line in comparison.lines:
        record = records[line.name]
        for k, rate in enumerate(line.success, start=1):
            assert float(record[f"success_{k}_low"]) == pytest.approx(rate.low, rel=1e-5)
            assert float(record[f"success_{k}"]) == pytest.approx(rate.estimate, rel=1e-5)
        if line.difference is not None:
            assert float(record["difference_p_adjusted"]) == pytest.approx(line.difference.p_adjusted, rel=1e-5)
    assert records["W4 g32"]["encoder_group_size"] == "32" and records["FP32"]["encoder_weight_bits"] == ""
    assert records["W3"]["nonfinite_from"] == "2" and records["true simulator"]["size_bytes"] == ""


def test_markdown_is_rectangular(results):
    comparison = compare(results, 5)
    lines = [line for line in markdown_table(comparison).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(comparison.lines) + len(comparison.references)
    assert len({line.count("|") for line in lines}) == 1


def test_rounding_hides_neither_a_failure_nor_on_which_side_of_the_margin_a_loss_is():
    difference = Difference(-1 / 54, -0.0977, 0.05, 54, 0, 1, 1.0, 1.0)
    assert difference_text(difference) == "-2 (-9.8..+5)"
    assert difference_text(dataclasses.replace(difference, low=-0.0999999)) == "-2 (-9.9..+5)"
    assert difference_text(dataclasses.replace(difference, low=-0.1)) == "-2 (-10..+5)"
    texts = {0.0: "0", 0.0004: "0.1", 0.004: "0.4", 0.5: "50", 0.997: "99.7", 0.9999: "99.9", 1.0: "100"}
    assert {share: rate_text(Rate(share, share, share)).split()[0] for share in texts} == texts
