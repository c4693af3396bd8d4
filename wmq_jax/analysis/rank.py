"""Rank correlation with ties, and an interval that respects which values belong together."""

import numpy as np

from wmq_jax.analysis.stats import Interval

RESAMPLES = 500  # bootstrap draws of an interval


def midranks(values: np.ndarray) -> np.ndarray:
    """Ranks 1..n of `values` (n,), equal values sharing the mean of their ranks (n,) float64."""
    return _weighted_midranks(np.asarray(values, dtype=float), np.ones((1, len(values))))[0]


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rho: Pearson's correlation of the midranks (so ties are handled exactly).

    Args:
      x: (n,) finite values.
      y: (n,) finite values.

    Returns:
      rho in [-1, 1]; NaN where it is undefined (fewer than two values, or a side that is constant).

    Raises:
      ValueError: shapes that differ, or a value that is not finite.
    """
    x, y = _checked(x, y)
    return float(_weighted_spearman(x, y, np.ones((1, len(x))))[0])


def spearman_interval(x: np.ndarray, y: np.ndarray, clusters: np.ndarray, confidence: float = 0.95) -> Interval:
    """Percentile interval of Spearman's rho under resampling whole clusters (Efron & Tibshirani, 1993, ch. 13).

    Values of one episode depend on each other, so episodes are drawn, not values. The draws are fixed: equal data gives
    an equal interval. A draw is a vector of integer weights, ranked by weighted midranks, so no draw is copied out.

    Args:
      x: (n,) finite values.
      y: (n,) finite values.
      clusters: (n,) labels, equal for values that belong together.
      confidence: coverage, inside (0, 1).

    Returns:
      The Interval, NaN at both ends where rho is undefined in most draws (as with fewer than three clusters).

    Raises:
      ValueError: shapes that differ, or a value that is not finite.
    """
    x, y = _checked(x, y)
    labels, index = np.unique(np.asarray(clusters), return_inverse=True)
    if len(index) != len(x):
        raise ValueError(f"spearman needs one cluster label a value, got {len(index)} for {len(x)}")
    if len(labels) < 3:
        return Interval(float("nan"), float("nan"))
    draws = np.random.default_rng(0).multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=RESAMPLES)
    rho = _weighted_spearman(x, y, draws[:, index].astype(float))
    defined = rho[np.isfinite(rho)]
    if len(defined) < RESAMPLES // 2:
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(defined, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(low), float(high))


def _checked(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"spearman needs two vectors of one length, got shapes {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("spearman needs finite values; drop the pairs that are not before ranking")
    return x, y


def _weighted_midranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Midranks (B, n) of the samples in which value i stands weights[b, i] times; values (n,), weights (B, n)."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    if len(starts) == 0:
        return np.zeros(weights.shape)
    count = np.add.reduceat(weights[:, order], starts, axis=1)  # (B, groups): how often each distinct value stands
    below = np.cumsum(count, axis=1) - count
    return (below + (count + 1) / 2)[:, group]


def _weighted_spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """rho (B,) of every weighted sample; NaN where a side has no spread."""
    total = weights.sum(axis=1, keepdims=True)
    if x.size == 0:
        return np.full(len(weights), np.nan)
    centred = []
    for side in (x, y):
        ranks = _weighted_midranks(side, weights)
        centred.append(ranks - (weights * ranks).sum(axis=1, keepdims=True) / total)
    rx, ry = centred
    spread = np.sqrt((weights * rx * rx).sum(axis=1) * (weights * ry * ry).sum(axis=1))
    covariance = (weights * rx * ry).sum(axis=1)
    # Ranks are halves of integers: a spread below half a rank can only be rounding.
    safe = np.where(spread > 1e-9, spread, 1.0)
    return np.where(spread > 1e-9, np.clip(covariance / safe, -1.0, 1.0), np.nan)
