"""Rank correlation against its definition, a textbook value, and a bootstrap that copies its samples out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmq_jax.analysis.rank import midranks, spearman, spearman_interval

SMALL = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=30)


@given(st.lists(st.integers(-3, 3), max_size=20))
def test_midranks_count_smaller_and_equal_values(values):
    expected = [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]
    assert midranks(np.array(values, float)).tolist() == expected


def test_spearman_textbook():
    """IQ against hours of television, rho = -29/165."""
    iq = np.array([106, 100, 86, 101, 99, 103, 97, 113, 112, 110])
    hours = np.array([7, 27, 2, 50, 28, 29, 20, 12, 6, 17])
    assert spearman(iq, hours) == pytest.approx(-29 / 165, abs=1e-12)


@given(SMALL)
def test_spearman_is_pearson_of_midranks(pairs):
    x, y = np.array(pairs, float).T
    rho = spearman(x, y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert np.isnan(rho)
    else:
        assert rho == pytest.approx(np.corrcoef(midranks(x), midranks(y))[0, 1], abs=1e-9)


@given(st.permutations(range(8)))
def test_spearman_without_ties_is_the_formula_of_squared_differences(order):
    squares = sum((i - j) ** 2 for i, j in enumerate(order))
    assert spearman(np.arange(8), np.array(order)) == pytest.approx(1 - 6 * squares / (8 * 63), abs=1e-12)


@given(SMALL)
def test_spearman_sees_only_order(pairs):
    x, y = np.array(pairs, float).T
    same = dict(rel=1e-9, abs=1e-9, nan_ok=True)
    assert spearman(np.exp(x), 3 * y - 1) == pytest.approx(spearman(x, y), **same)
    assert spearman(x, -y) == pytest.approx(-spearman(x, y), **same)


def _clustered(seed, clusters=25, size=3):
    rng = np.random.default_rng(seed)
    shared = np.repeat(rng.normal(size=clusters), size)
    x = np.round(shared + rng.normal(size=clusters * size), 1)
    return x, np.round(x + rng.normal(size=clusters * size), 1), np.repeat(np.arange(clusters), size)


def test_interval_equals_a_bootstrap_that_copies_its_samples():
    x, y, clusters = _clustered(0)
    draws = np.random.default_rng(0).multinomial(25, np.full(25, 1 / 25), size=500)
    copied = [spearman(np.repeat(x, draw[clusters]), np.repeat(y, draw[clusters])) for draw in draws]
    assert spearman_interval(x, y, clusters) == pytest.approx(np.quantile(copied, [0.025, 0.975]), abs=1e-9)


def test_interval_knows_that_copies_inside_a_cluster_are_no_news():
    x, y, clusters = _clustered(1)
    once = spearman_interval(x, y, clusters)
    assert spearman_interval(np.tile(x, 4), np.tile(y, 4), np.tile(clusters, 4)) == pytest.approx(once, abs=1e-9)
    low, high = spearman_interval(np.tile(x, 4), np.tile(y, 4), np.arange(4 * len(x)))
    assert high - low < 0.8 * (once.high - once.low)


@settings(max_examples=10)
@given(st.integers(0, 100))
def test_interval_holds_the_estimate_and_repeats(seed):
    x, y, clusters = _clustered(seed)
    low, high = spearman_interval(x, y, clusters)
    assert -1 <= low <= spearman(x, y) <= high <= 1
    assert spearman_interval(x, y, clusters) == (low, high)


def test_too_little_to_say_is_nan():
    assert np.isnan(spearman(np.array([]), np.array([])))
    assert np.isnan(spearman_interval(np.arange(4.0), np.arange(4.0), np.array([0, 0, 1, 1]))).all()
    assert np.isnan(spearman_interval(np.ones(9), np.arange(9.0), np.arange(9))).all()


@pytest.mark.parametrize("x, y", [([1.0, 2.0], [1.0]), ([1.0, np.nan], [1.0, 2.0]), ([[1.0]], [[1.0]])])
def test_bad_input_is_a_sentence(x, y):
    with pytest.raises(ValueError, match="spearman needs"):
        spearman(np.array(x), np.array(y))
