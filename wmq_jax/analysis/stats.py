"""Intervals and tests for success rates, over counts alone.

Every variant plans the same episodes with the same noise, so rates are compared *in pairs*. Counts may be fractional: a
count divided by its `design_effect` is an effective count (Rao & Scott, 1992), which is how several seeds of one
episode enter the intervals without being counted as independent episodes.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A two-sided confidence interval; `low <= high`, in the unit of what it bounds."""

    low: float
    high: float


class PairedTable(NamedTuple):
    """Outcomes of two arms on the same cells, as counts (non-negative, may be fractional)."""

    both: float
    first_only: float
    second_only: float
    neither: float

    @property
    def total(self) -> float:
        return sum(self)

    def scaled(self, factor: float) -> "PairedTable":
        """The table with every count multiplied by `factor`."""
        return PairedTable(*(count * factor for count in self))


def wilson_interval(successes: float, trials: float, confidence: float = 0.95) -> Interval:
    """Score interval of a proportion.

    (p + z^2/2n -+ z sqrt(p (1-p)/n + z^2/4n^2)) / (1 + z^2/n),  p = successes / n,  n = trials
    (Wilson, 1927; method 3 of Newcombe, Statistics in Medicine 17:857-872, 1998).

    Args:
      successes: count in 0..trials.
      trials: count, > 0.
      confidence: coverage, inside (0, 1).

    Returns:
      An Interval inside [0, 1] that contains successes / trials.

    Raises:
      ValueError: counts or confidence out of range.
    """
    if not (trials > 0 and 0 <= successes <= trials):
        raise ValueError(f"successes must be within 0..trials and trials positive, got {successes} of {trials}")
    z = _two_sided_quantile(confidence)
    p = successes / trials
    centre = p + z * z / (2 * trials)
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # The formula touches 0 and 1 exactly at the ends; rounding must not push the bound past the estimate.
    return Interval(max(0.0, min(p, (centre - half) / scale)), min(1.0, max(p, (centre + half) / scale)))


def newcombe_paired_interval(table: PairedTable, confidence: float = 0.95) -> Interval:
    """Score-based interval of the difference p1 - p2 of two paired proportions.

    Method 10 of Newcombe, "Improved confidence intervals for the difference between binomial proportions based on
    paired data", Statistics in Medicine 17:2635-2650, 1998. With Wilson intervals (l_i, u_i) of p_i and the correlation
    phi, theta = p1 - p2 lies in (theta - delta, theta + epsilon):
      delta^2   = (p1-l1)^2 - 2 phi (p1-l1)(u2-p2) + (u2-p2)^2
      epsilon^2 = (u1-p1)^2 - 2 phi (u1-p1)(p2-l2) + (p2-l2)^2

    Args:
      table: outcomes of the first and the second arm on the same cells, total > 0.
      confidence: coverage, inside (0, 1).

    Returns:
      An Interval inside [-1, 1] that contains p1 - p2.

    Raises:
      ValueError: a negative count, an empty table, or confidence out of range.
    """
    if min(table) < 0 or table.total <= 0:
        raise ValueError(f"a paired table needs non-negative counts with a positive total, got {tuple(table)}")
    n = table.total
    first, second = table.both + table.first_only, table.both + table.second_only
    l1, u1 = wilson_interval(min(first, n), n, confidence)
    l2, u2 = wilson_interval(min(second, n), n, confidence)
    p1, p2 = first / n, second / n
    phi = _continuity_corrected_phi(table)
    delta = _third_side(p1 - l1, u2 - p2, phi)
    epsilon = _third_side(u1 - p1, p2 - l2, phi)
    return Interval(max(-1.0, p1 - p2 - delta), min(1.0, p1 - p2 + epsilon))


def mcnemar_exact(first_only: int, second_only: int) -> float:
    """Two-sided exact McNemar p-value from the two discordant counts.

    Under the null a discordant pair favours either arm with probability 1/2:
    p = min(1, 2 P(X <= min(b, c))),  X ~ Binomial(b + c, 1/2).

    Args:
      first_only: pairs that only the first arm solved, >= 0.
      second_only: pairs that only the second arm solved, >= 0.

    Returns:
      The p-value; 1 when no pair is discordant, 0 where it is below the smallest float.

    Raises:
      ValueError: a negative count.
    """
    if first_only < 0 or second_only < 0:
        raise ValueError(f"discordant counts must not be negative, got {first_only} and {second_only}")
    n = first_only + second_only
    tail = sum(math.comb(n, k) for k in range(min(first_only, second_only) + 1))
    return min(1.0, float(2 * tail / 2**n)) if n else 1.0


def sign_flip_test(differences: Sequence[int]) -> float:
    """Two-sided exact sign-flip (permutation) p-value of a sum of integer differences.

    Under the null each difference is as likely as its negative: p = P(|sum_i s_i d_i| >= |sum_i d_i|) over independent
    signs s_i. Differences in {-1, 0, 1} make it the exact McNemar test; an episode's difference summed over seeds makes
    it that test's form for clustered pairs. The distribution is built by convolution, without sampling.

    Args:
      differences: one integer an independent unit (an episode).

    Returns:
      The p-value; 0 where it is below the smallest float.
    """
    sizes = [abs(int(d)) for d in differences if d]
    reach = sum(sizes)
    observed = abs(sum(int(d) for d in differences))
    chance = np.zeros(2 * reach + 1)  # chance[reach + s]: probability of the partial sum s
    chance[reach] = 1.0
    for size in sizes:  # no partial sum leaves -reach..reach, so nothing rolls over the ends
        chance = 0.5 * (np.roll(chance, size) + np.roll(chance, -size))
    sums = np.arange(-reach, reach + 1)
    return min(1.0, float(chance[np.abs(sums) >= observed].sum()))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Step-down adjusted p-values, in the order given (Holm, Scand. J. Statist. 6:65-70, 1979).

    For sorted p_(1) <= ... <= p_(m): adjusted p_(i) = max over j <= i of min(1, (m - j + 1) p_(j)).

    Args:
      p_values: the family's p-values, each in [0, 1].

    Returns:
      Adjusted p-values; rejecting those below a level controls the family-wise error at that level.

    Raises:
      ValueError: a value outside [0, 1].
    """
    p = np.asarray(p_values, dtype=float)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"p-values must lie in 0..1, got {list(p_values)}")
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1.0, p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(stepped) if len(p) else stepped
    return tuple(float(value) for value in adjusted)


def intraclass_correlation(values: Sequence[float], clusters: Sequence[int]) -> float:
    """How alike values of one cluster are.

    The analysis-of-variance estimate (B - W) / (B + (m - 1) W) from the mean squares between clusters B and within them
    W, with m the mean cluster size, held within 0..1 (Donner, Int. Stat. Rev. 54:67-82, 1986).

    Args:
      values: n numbers.
      clusters: their labels.

    Returns:
      0 where clusters have one value each or nothing in common; 1 where nothing varies at all, the cautious end.

    Raises:
      ValueError: the labels are not as many as the values.
    """
    v = np.asarray(values, dtype=float)
    if v.shape != np.shape(clusters):
        raise ValueError(f"as many cluster labels as values are needed, got {np.shape(clusters)} and {v.shape}")
    _, index, sizes = np.unique(np.asarray(clusters), return_inverse=True, return_counts=True)
    if len(sizes) == v.size:
        return 0.0
    if len(sizes) == 1 or np.ptp(v) == 0:
        return 1.0
    means = np.bincount(index, weights=v) / sizes
    between = float(np.sum(sizes * (means - v.mean()) ** 2)) / (len(sizes) - 1)
    within = float(np.sum((v - means[index]) ** 2)) / (v.size - len(sizes))
    m = v.size / len(sizes)
    return min(1.0, max(0.0, (between - within) / (between + (m - 1) * within)))


def design_effect(clusters: Sequence[int], correlation: float) -> float:
    """How much the variance of a mean grows because its values come in clusters: 1 + (m - 1) correlation.

    m = sum m_i^2 / sum m_i over the cluster sizes m_i (Kish, Survey Sampling, 1965). Counts divided by it are effective
    counts (Rao & Scott, Biometrics 48:577-585, 1992).

    Args:
      clusters: n labels, n >= 1.
      correlation: within clusters, in 0..1.

    Returns:
      A factor >= 1; exactly 1 when every cluster has one value.

    Raises:
      ValueError: no labels.
    """
    if not len(clusters):
        raise ValueError("design_effect needs at least one value")
    _, sizes = np.unique(np.asarray(clusters), return_counts=True)
    return 1.0 + (float(np.sum(sizes**2) / np.sum(sizes)) - 1.0) * correlation


def _two_sided_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be inside (0, 1), got {confidence}")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _continuity_corrected_phi(table: PairedTable) -> float:
    """Correlation of the two arms, its numerator drawn towards 0 by n/2 when positive (Newcombe's method 10)."""
    e, f, g, h = table
    marginals = (e + f) * (g + h) * (e + g) * (f + h)
    if marginals <= 0:
        return 0.0
    agreement = e * h - f * g
    if agreement > 0:
        agreement = max(agreement - table.total / 2, 0.0)
    return agreement / math.sqrt(marginals)


def _third_side(a: float, b: float, cosine: float) -> float:
    """sqrt(a^2 - 2 cosine a b + b^2), rounding kept from leaving the root negative."""
    return math.sqrt(max(0.0, a * a - 2 * cosine * a * b + b * b))
