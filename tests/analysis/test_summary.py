"""Verdicts and comparisons: pairs, families, seeds, and what the words claim."""

import dataclasses

import pytest

from wmq_jax.analysis import load_results, stats
from wmq_jax.analysis.summary import baseline_caveat, compare, headline, main_comparison, verdict_sentences
from wmq_jax.analysis.table import footnotes

WON, LOST = (False, True), (False, False)


def _load(tmp_path, synthetic, outcomes, seeds=1, references=()):
    """A folder in which each variant solves the episodes that `outcomes` says; the same in every seed."""
    rows = [
        synthetic.make_row(name, episode, seed, success=WON if solved else LOST)
        for name, episodes in outcomes.items()
        for seed in range(seeds)
        for episode, solved in enumerate(episodes)
        if solved is not None
    ]
    folder = synthetic.write_folder(tmp_path / f"seeds{seeds}", rows)
    if references:
        synthetic.write_lines(
            folder / "reference.jsonl",
            [
                synthetic.make_row(name, episode, success=WON if solved else LOST)
                for name, episodes in references
                for episode, solved in enumerate(episodes)
            ],
        )
    return load_results(folder)


def test_verdicts(tmp_path, synthetic):
    full = [True] * 90 + [False] * 10
    outcomes = {"FP32": full, "W8": full, "W6": [True] * 84 + [False] * 16, "W3": [True] * 20 + [False] * 80}
    comparison = compare(_load(tmp_path, synthetic, outcomes), 5)
    verdicts = {line.name: line.verdict for line in comparison.lines}
    assert verdicts["FP32"] == "baseline" and verdicts["W8"] == "survives" and verdicts["W3"] == "falls"
    assert verdicts["W6"] == "undecided"  # 6 points worse, and 12 are not excluded
    assert verdicts["W4"] is None and comparison.line("W4").cells == 0
    assert (
        "1 of 3 quantized variants survives, 1 is undecided, 1 falls. Full precision reaches the goal in 90% of 100 "
        "cells; W8" in headline(comparison)
    )
    sentences = verdict_sentences(comparison)
    assert list(sentences) == ["survives", "undecided", "falls"] and sentences["falls"].startswith("Falls: W3 (")


@pytest.mark.parametrize(("solved", "failed"), [(2, 0), (20, 0), (34, 0), (35, 0), (48, 0), (60, 0), (24, 24), (5, 15)])
def test_what_the_number_of_episodes_lets_survive(tmp_path, synthetic, solved, failed):
    """The sentence about too few episodes, and that it is true."""
    full = [True] * solved + [False] * failed
    outcomes = {"FP32": full, "W8": full, "W6": [False] + full[1:], "W3": [False] * len(full)}
    comparison = compare(_load(tmp_path, synthetic, outcomes), 5)
    none, one = (comparison.line(name).verdict == "survives" for name in ("W8", "W6"))
    sentences = " ".join(verdict_sentences(comparison).values())
    assert (f"with {len(full)} episodes no variant can survive" in sentences) == (not none)
    assert (f"with {len(full)} episodes only a variant that loses none can survive" in sentences) == (none and not one)


def test_differences_use_cells_that_both_have(tmp_path, synthetic):
    outcomes = {"FP32": [True, True, False, True, None], "W8": [None, False, True, True, True]}
    difference = compare(_load(tmp_path, synthetic, outcomes), 5).line("W8").difference
    assert (difference.pairs, difference.gained, difference.lost) == (3, 1, 1)
    assert (difference.low, difference.high) == stats.newcombe_paired_interval(stats.PairedTable(1, 1, 1, 0))


def test_holm_counts_the_quantized_variants_and_not_the_references(tmp_path, synthetic):
    full, worse = [True] * 30, [True] * 22 + [False] * 8
    outcomes = {"FP32": full, "W8": full, "W6": full, "W4": worse}
    references = [("true simulator", worse), ("random actions", [False] * 30)]
    comparison = compare(_load(tmp_path, synthetic, outcomes, references=references), 5)
    difference = comparison.line("W4").difference
    planned = len(comparison.lines) - 1  # also those without a row yet: verdicts of an unfinished sweep must not flip
    assert planned > len(outcomes) - 1
    assert difference.p_value == stats.mcnemar_exact(0, 8)
    assert difference.p_adjusted == pytest.approx(planned * difference.p_value)
    reference = comparison.references[0]
    assert reference.name == "true simulator" and reference.difference.p_adjusted is None and reference.verdict is None


def test_repeating_every_cell_under_other_seeds_adds_no_certainty(tmp_path, synthetic):
    outcomes = {
        "FP32": [True] * 18 + [False] * 6,
        "W8": [True] * 12 + [False] * 6 + [True] * 6,
        "W4": [True] * 8 + [False] * 16,
    }
    once, thrice = (compare(_load(tmp_path, synthetic, outcomes, seeds), 5) for seeds in (1, 3))
    assert thrice.seeds == 3 and thrice.episodes == 24
    for name in outcomes:
        one, three = once.line(name), thrice.line(name)
        assert three.cells == 3 * one.cells and vars(three.success[-1]) == pytest.approx(vars(one.success[-1]))
        if name != "FP32":
            assert three.difference.p_value == pytest.approx(one.difference.p_value)
            assert (three.difference.low, three.difference.high) == pytest.approx(
                (one.difference.low, one.difference.high)
            )


def test_what_is_said_of_a_variant_depends_on_no_other(tmp_path, synthetic):
    """Seeds of one episode are alike to a degree that each variant's own cells tell."""
    import random

    draw = random.Random(0).random
    rates = {"FP32": 0.9, "W8": 0.85, "W3": 0.0, "random actions": 0.0}
    won = {(n, e, s): draw() < rate for n, rate in rates.items() for e in range(30) for s in range(3)}
    rows = {n: [synthetic.make_row(n, e, s, success=WON if won[n, e, s] else LOST) for e in range(30) for s in range(3)]
            for n in rates}  # fmt: skip

    def line(folder, *names):
        path = synthetic.write_folder(tmp_path / folder, [row for name in names for row in rows[name]])
        if folder == "references":
            synthetic.write_lines(path / "reference.jsonl", rows["random actions"])
        return compare(load_results(path), 5).line("W8")

    alone = line("alone", "FP32", "W8")
    assert line("beside", "FP32", "W8", "W3") == alone == line("references", "FP32", "W8")
    independent = stats.wilson_interval(sum(won["W8", e, s] for e in range(30) for s in range(3)), 90)
    assert alone.success[-1].high - alone.success[-1].low < 1.2 * (independent.high - independent.low)


def test_a_loss_that_survives_is_named(tmp_path, synthetic):
    rows = [synthetic.make_row("FP32", e) for e in range(1000)]
    rows += [synthetic.make_row("W8", e, success=LOST if e < 60 else WON) for e in range(1000)]
    rows += [synthetic.make_row("W6", e, success=LOST if e < 2 else WON) for e in range(1000)]
    comparison = compare(load_results(synthetic.write_folder(tmp_path / "r", rows)), 5)
    assert verdict_sentences(comparison)["survives"] == (
        "Survives: W8, W6 (a loss of 10 points or more is excluded with 95% confidence, for each by itself; yet worse "
        "than full precision, Holm-adjusted p < 0.05: W8)."
    )


def test_full_precision_alone_is_said_to_be(tmp_path, synthetic):
    rows = [synthetic.make_row("FP32", e) for e in range(3)]
    folder = synthetic.write_folder(tmp_path / "r", rows, synthetic.variant_entries(1))
    comparison = compare(load_results(folder), 5)
    said = "Full precision reaches the goal in 100% of 3 cells; there is no other variant to compare with it."
    assert headline(comparison) == said and not verdict_sentences(comparison)
    assert not any("McNemar" in note for note in footnotes(comparison))


def test_one_failure_among_many_seeds_is_no_proof_of_independence(tmp_path, synthetic):
    def rate(failures):
        rows = [
            synthetic.make_row("FP32", e, s, success=LOST if (e, s) in failures else WON)
            for e in range(30)
            for s in range(3)
        ]
        folder = synthetic.write_folder(tmp_path / f"{len(failures)}", rows)
        return compare(load_results(folder), 5).lines[0].success[-1]

    assert rate([]).low == stats.wilson_interval(30, 30).low, "three seeds that agree are one"
    assert rate([(0, 0)]).low < rate([]).low + 0.02


def test_rates_at_every_iteration(tmp_path, synthetic):
    rows = [
        synthetic.make_row("FP32", e, success=s)
        for e, s in enumerate([(True, True), (False, True), (False, False), (False, True)])
    ]
    line = compare(load_results(synthetic.write_folder(tmp_path / "r", rows)), 5).lines[0]
    assert [rate.estimate for rate in line.success] == [0.25, 0.75]
    assert (line.success[1].low, line.success[1].high) == stats.wilson_interval(3, 4)


def test_nonfinite_cells_are_counted_with_their_first_iteration(tmp_path, synthetic):
    rows = [synthetic.make_row("FP32", e) for e in range(3)]
    rows += [synthetic.make_row("W3", e, success=LOST, nonfinite=n) for e, n in enumerate([None, 2, 1])]
    line = compare(load_results(synthetic.write_folder(tmp_path / "r", rows)), 5).line("W3")
    assert (line.nonfinite_cells, line.nonfinite_from) == (2, 1)


def test_a_planner_no_better_than_chance_has_nothing_to_survive(tmp_path, synthetic):
    chance = [True] * 3 + [False] * 17
    weak = compare(_load(tmp_path, synthetic, {"FP32": chance}, references=[("random actions", chance)]), 5)
    assert "not clearly better than random actions" in baseline_caveat(weak)
    strong = compare(_load(tmp_path, synthetic, {"FP32": [True] * 20}, references=[("random actions", chance)]), 5)
    assert baseline_caveat(strong) is None


def test_a_planner_that_fails_has_nothing_to_survive(tmp_path, synthetic):
    failing = compare(_load(tmp_path, synthetic, {"FP32": [False] * 20, "W4": [False] * 20}), 5)
    assert baseline_caveat(failing) == (
        "Full precision hardly ever reaches the goal here, so that surviving says nothing."
    )


def test_without_full_precision_there_are_rates_only(tmp_path, synthetic):
    results = _load(tmp_path, synthetic, {"W8": [True, False], "W4": [False, False]})
    comparison = main_comparison(results)
    assert all(line.difference is None for line in comparison.lines)
    assert "no full-precision" in headline(comparison) and not verdict_sentences(comparison)


def test_the_longest_horizon_is_the_main_one(tmp_path, synthetic):
    rows = [synthetic.make_row("FP32", e, horizon=h) for h in (3, 5) for e in range(2)]
    results = load_results(synthetic.write_folder(tmp_path / "r", rows))
    assert results.horizons == (3, 5) and main_comparison(results).horizon == 5
    assert compare(results, 3).lines[0].cells == 2


def test_the_true_simulator_is_no_ceiling_of_gradient_descent(tmp_path, synthetic):
    """Folders of earlier versions have its rows."""
    outcomes = [("true simulator", [False] * 4), ("random actions", [False] * 4)]
    cem = _load(tmp_path / "cem", synthetic, {"FP32": [True] * 4}, references=outcomes)
    found = compare(cem, 5)
    assert [line.name for line in found.references] == ["true simulator", "random actions"]
    assert found.reference_note == "" and not any("gradient" in note for note in footnotes(found))
    planner = {**cem.protocol.get("planner", {}), "optimizer": "gd"}
    found = compare(dataclasses.replace(cem, protocol={**cem.protocol, "planner": planner}), 5)
    assert [line.name for line in found.references] == ["random actions"]
    assert any(note.startswith("No reference of the true simulator: ") for note in footnotes(found))
    assert any("one checkpoint, one planner seed." in note for note in footnotes(found))
