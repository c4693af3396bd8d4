"""Methods against each other: which variants are compared, with what, and what is called better and best."""

import re

import pytest

from wmq_jax.analysis import load_results, stats, write_report
from wmq_jax.analysis.methods import compare_methods, methods_sentence
from wmq_jax.analysis.summary import main_comparison
from wmq_jax.analysis.table import difference_text

WON, LOST = (False, True), (False, False)
MODULE = {"group_size": None, "act_bits": None, "act_granularity": None}
NOTHING = {**MODULE, "weight_bits": None, "method": None}


def entry(spec, encoder=None, predictor=None):
    """variants.json's entry of a spec whose modules have these methods."""
    parts = {"encoder": encoder, "predictor": predictor}
    modules = {k: {**MODULE, "weight_bits": 4, "method": m} if m else NOTHING for k, m in parts.items()}
    return {"name": f"name of {spec}", "spec": spec, "size_bytes": 1000, **modules}


def both(method, setting="w4"):
    return entry(setting if method == "rtn" else f"{method}:{setting}", method, method)


@pytest.fixture
def folder(tmp_path, synthetic):
    """``folder(entries, solved)``: results in which a spec solves the first ``solved[spec]`` of 40 episodes."""

    def make(entries, solved, horizons=(5,)):
        rows = [
            synthetic.make_row(variant["name"], e, horizon=h, success=WON if e < solved[variant["spec"]] else LOST)
            for variant in entries
            if variant["spec"] in solved
            for h in horizons
            for e in range(40)
        ]
        return synthetic.write_folder(tmp_path / "results", rows, entries)

    return make


def table_of(folder):
    results = load_results(folder)
    return compare_methods(results, main_comparison(results))


ENTRIES = [
    entry("fp"),
    both("rtn"),
    both("awq"),
    both("omse"),
    both("smoothquant"),
    both("omse", "w3"),
    both("rtn", "w3"),
    both("rtn", "w2"),
    entry("encoder=awq:w4", encoder="awq"),
]
SOLVED = {"fp": 40, "w4": 20, "awq:w4": 38, "omse:w4": 34, "smoothquant:w4": 4, "omse:w3": 9, "w3": 8, "w2": 0}


def test_variants_that_differ_in_the_method_alone_are_compared_with_rounding(folder):
    table = table_of(folder(ENTRIES, SOLVED))
    assert table.methods == ("rtn", "awq", "omse", "smoothquant")
    assert table.settings == ("w4", "w3"), "w2 and the encoder alone have one method each"
    assert table.entries["w3", "omse"].line.name == "name of omse:w3" and ("w3", "awq") not in table.entries
    difference = table.entries["w4", "awq"].difference
    assert (difference.pairs, difference.gained, difference.lost) == (40, 18, 0)
    assert difference.p_value == stats.mcnemar_exact(18, 0)
    assert (difference.low, difference.high) == stats.newcombe_paired_interval(stats.PairedTable(20, 18, 0, 2))
    assert table.entries["w4", "rtn"].difference is None


def test_tests_are_adjusted_over_all_that_is_shown(folder):
    table = table_of(folder(ENTRIES, SOLVED))
    shown = [table.entries["w4", m].difference for m in ("awq", "omse", "smoothquant")]
    shown.append(table.entries["w3", "omse"].difference)
    assert table.comparisons == len(shown)
    expected = stats.holm([stats.mcnemar_exact(d.gained, d.lost) for d in shown])
    assert [d.p_adjusted for d in shown] == pytest.approx(list(expected))


def test_best_is_who_is_better_by_the_test_and_highest(folder):
    table = table_of(folder(ENTRIES, SOLVED))
    marks = {key: (found.effect, found.best) for key, found in table.entries.items()}
    assert marks["w4", "awq"] == ("better", True) and marks["w4", "omse"] == ("better", False)
    assert marks["w4", "smoothquant"] == ("worse", False) and marks["w4", "rtn"] == (None, False)
    assert marks["w3", "omse"] == (None, False), "one episode more is no difference"
    assert methods_sentence(table) == (
        "A method is better in 2 (awq at w4, omse at w4) and worse in 1 (smoothquant at w4) of 4 comparisons with "
        "round-to-nearest, after Holm's adjustment over all of them."
    )


def test_what_is_not_computed_yet_counts_in_the_adjustment(folder):
    unfinished = {spec: count for spec, count in SOLVED.items() if spec != "smoothquant:w4"}
    table = table_of(folder(ENTRIES, unfinished))
    assert ("w4", "smoothquant") not in table.entries and table.comparisons == 4
    assert table.entries["w4", "awq"].difference.p_adjusted == pytest.approx(4 * stats.mcnemar_exact(18, 0))


def test_methods_of_modules_that_differ_are_named_together(folder):
    mixed = [entry("fp"), both("rtn"), entry("encoder=w4,predictor=awq:w4", "rtn", "awq")]
    mixed.append(entry("encoder=w4,predictor=w4", "rtn", "rtn"))
    table = table_of(folder(mixed, {variant["spec"]: 20 for variant in mixed}))
    assert table.settings == ("encoder=w4,predictor=w4",) and table.methods == ("rtn", "rtn/awq")


def test_without_rounding_there_are_rates_only(folder):
    table = table_of(folder([both("awq"), both("omse")], {"awq:w4": 30, "omse:w4": 3}))
    assert table.comparisons == 0 and all(found.difference is None for found in table.entries.values())
    assert "success rates only" in methods_sentence(table)


def test_the_report_compares_methods_if_there_are_several(folder):
    written = folder(ENTRIES, SOLVED, horizons=(3, 5))
    summary = write_report(written)
    assert (written / "pictures" / "methods.png") in summary.files
    page, markdown = summary.report.read_text(), (written / "table.md").read_text()
    assert "Which method?" in page and "awq at w4" in page
    difference = difference_text(table_of(written).entries["w4", "awq"].difference)
    cell = re.search(r'<td class="verdict survives">95 \(83-99\)<small>([^<]*)</small></td>', page)
    assert cell and cell.group(1) == f"{difference.replace('..', ' to ')} best"
    assert markdown.count(f"| w4 | 50 (35-65) | 95 (83-99); {difference} best |") == 2, "once a horizon"


def test_a_sweep_of_one_method_is_not_compared(folder):
    written = folder([entry("fp"), both("rtn"), both("rtn", "w3")], {"fp": 40, "w4": 20, "w3": 3})
    assert table_of(written) is None
    write_report(written)
    assert "Which method?" not in (written / "report.html").read_text()
    assert not (written / "pictures" / "methods.png").exists()
    assert "same setting" not in (written / "table.md").read_text()
