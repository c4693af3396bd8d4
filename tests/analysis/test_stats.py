"""Intervals and tests against textbook values, their definitions, and brute force."""

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmq_jax.analysis import stats

settings.register_profile("analysis", deadline=None, max_examples=60)
settings.load_profile("analysis")

COUNT = st.integers(0, 40)


@pytest.mark.parametrize(
    "successes, trials, low, high",
    [  # Newcombe, Statistics in Medicine 17:857-872 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_textbook(successes, trials, low, high):
    assert stats.wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilson_ends_solve_the_score_equation(trials, share, confidence):
    successes = round(share * trials)
    p, z = successes / trials, NormalDist().inv_cdf(0.5 + confidence / 2)
    low, high = stats.wilson_interval(successes, trials, confidence)
    assert 0 <= low <= p <= high <= 1
    for end in (low, high):
        if 1e-12 < end < 1 - 1e-12:
            assert abs(p - end) == pytest.approx(z * math.sqrt(end * (1 - end) / trials), rel=1e-6)


@given(st.integers(1, 500), st.floats(0, 1))
def test_wilson_mirrors_success_and_failure(trials, share):
    successes = round(share * trials)
    low, high = stats.wilson_interval(successes, trials)
    assert stats.wilson_interval(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_newcombe_textbook():
    """Response before and after consolidation: Fagerland, Lydersen & Laake, Contingency Tables (2017), ch. 8."""
    assert stats.newcombe_paired_interval(stats.PairedTable(59, 6, 16, 80)) == pytest.approx(
        (-0.1186, -0.0046), abs=5e-5
    )


@given(COUNT, COUNT, COUNT, COUNT)
def test_newcombe_of_weakly_agreeing_arms_squares_and_adds_wilson_ends(e, f, g, h):
    """Where the correction takes the whole correlation away, method 10 is that of independent arms."""
    n = e + f + g + h
    if not (n and 0 <= e * h - f * g <= n / 2):
        return
    p1, p2 = (e + f) / n, (e + g) / n
    (l1, u1), (l2, u2) = stats.wilson_interval(e + f, n), stats.wilson_interval(e + g, n)
    expected = (p1 - p2 - math.hypot(p1 - l1, u2 - p2), p1 - p2 + math.hypot(u1 - p1, p2 - l2))
    assert stats.newcombe_paired_interval(stats.PairedTable(e, f, g, h)) == pytest.approx(
        np.clip(expected, -1, 1), abs=1e-12
    )


@given(st.integers(1, 40), COUNT, COUNT, st.integers(1, 40))
def test_newcombe_widens_as_pairs_disagree_more(e, f, g, h):
    """Equal rates, one agreeing pair of each kind turned into two that disagree."""
    closer = stats.newcombe_paired_interval(stats.PairedTable(e, f, g, h))
    apart = stats.newcombe_paired_interval(stats.PairedTable(e - 1, f + 1, g + 1, h - 1))
    assert apart.low <= closer.low + 1e-12 and apart.high >= closer.high - 1e-12


@given(COUNT, COUNT, COUNT, COUNT)
def test_newcombe_contains_the_estimate_and_mirrors(e, f, g, h):
    if e + f + g + h == 0:
        return
    table = stats.PairedTable(e, f, g, h)
    low, high = stats.newcombe_paired_interval(table)
    assert -1 <= low <= (f - g) / table.total + 1e-12 and (f - g) / table.total - 1e-12 <= high <= 1
    swapped = stats.newcombe_paired_interval(stats.PairedTable(e, g, f, h))
    assert swapped == pytest.approx((-high, -low), abs=1e-9)


def test_newcombe_covers_the_true_difference():
    """About 95% of simulated samples of 50 pairs have the truth inside."""
    chances = np.array([0.55, 0.2, 0.1, 0.15])
    samples = np.random.default_rng(0).multinomial(50, chances, size=1500)
    intervals = [stats.newcombe_paired_interval(stats.PairedTable(*sample)) for sample in samples]
    covered = np.mean([low <= chances[1] - chances[2] <= high for low, high in intervals])
    assert 0.93 <= covered <= 0.98


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_enumerates_the_binomial(b, c):
    n = b + c
    extreme = sum(math.comb(n, k) for k in range(n + 1) if abs(2 * k - n) >= abs(b - c))
    assert stats.mcnemar_exact(b, c) == pytest.approx(extreme / 2**n, rel=1e-12)


def test_mcnemar_textbook():
    assert stats.mcnemar_exact(1, 7) == pytest.approx(
        0.0703, abs=5e-5
    )  # Bentur et al. in Fagerland et al. (2017), chapter 8
    assert stats.mcnemar_exact(0, 0) == 1.0


@given(st.lists(st.integers(-4, 4), max_size=9))
def test_sign_flip_enumerates_all_signs(differences):
    observed = abs(sum(differences))
    sums = [
        sum(s * d for s, d in zip(signs, differences)) for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    assert stats.sign_flip_test(differences) == pytest.approx(np.mean([abs(s) >= observed for s in sums]), rel=1e-12)


@given(st.lists(st.integers(-1, 1), max_size=60))
def test_sign_flip_of_single_pairs_is_mcnemar(differences):
    expected = stats.mcnemar_exact(differences.count(1), differences.count(-1))
    assert stats.sign_flip_test(differences) == pytest.approx(expected, rel=1e-9)


def test_holm_textbook():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert stats.holm([]) == ()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_bonferroni_test(p):
    """A hypothesis' adjusted p-value is the largest Bonferroni p-value over all intersections that contain it."""
    indices = range(len(p))
    subsets = [s for size in range(1, len(p) + 1) for s in itertools.combinations(indices, size)]
    closed = [max(min(1.0, len(s) * min(p[j] for j in s)) for s in subsets if i in s) for i in indices]
    assert stats.holm(p) == pytest.approx(closed, rel=1e-12)


def test_intraclass_correlation_extremes():
    clusters = np.repeat(np.arange(200), 3)
    alike = np.repeat(np.random.default_rng(0).integers(0, 2, 200), 3)
    unrelated = np.random.default_rng(1).integers(0, 2, 600)
    assert stats.intraclass_correlation(alike, clusters) == 1.0
    assert stats.intraclass_correlation(unrelated, clusters) < 0.1
    assert stats.intraclass_correlation(unrelated, np.arange(600)) == 0.0
    assert stats.intraclass_correlation(np.ones(600), clusters) == 1.0


@given(st.integers(2, 5), st.floats(0.1, 0.9), st.integers(0, 1000))
@settings(max_examples=15)
def test_intraclass_correlation_recovers_a_known_one(size, correlation, seed):
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(3000, 1)) * math.sqrt(correlation)
    values = (shared + rng.normal(size=(3000, size)) * math.sqrt(1 - correlation)).ravel()
    clusters = np.repeat(np.arange(3000), size)
    assert stats.intraclass_correlation(values, clusters) == pytest.approx(correlation, abs=0.07)


@given(st.integers(1, 6), st.integers(1, 20), st.floats(0, 1))
def test_design_effect_of_equal_clusters(size, clusters, correlation):
    labels = np.repeat(np.arange(clusters), size)
    assert stats.design_effect(labels, correlation) == pytest.approx(1 + (size - 1) * correlation)


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: stats.wilson_interval(3, 2), "successes must be within 0..trials"),
        (lambda: stats.wilson_interval(0, 0), "trials positive"),
        (lambda: stats.wilson_interval(1, 2, 1.5), "confidence must be inside"),
        (lambda: stats.newcombe_paired_interval(stats.PairedTable(0, 0, 0, 0)), "positive total"),
        (lambda: stats.newcombe_paired_interval(stats.PairedTable(1, -1, 2, 2)), "non-negative"),
        (lambda: stats.mcnemar_exact(-1, 2), "must not be negative"),
        (lambda: stats.holm([0.2, 1.2]), "p-values must lie in 0..1"),
        (lambda: stats.holm([float("nan")]), "p-values must lie in 0..1"),
        (lambda: stats.design_effect([], 0.5), "at least one"),
        (lambda: stats.intraclass_correlation([1, 2], [1]), "as many cluster labels as values"),
    ],
)
def test_bad_input_is_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
