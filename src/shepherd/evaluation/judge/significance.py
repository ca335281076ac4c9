"""Tests of paired differences that are printed beside the t test, the bootstrap interval, and Holm's adjustment.

All are two-sided, of float[questions], and unchanged by exchanging the two systems.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

FEW = 20
"""Below this number of questions all signs can be permuted."""
MOST_BOOTSTRAPPED = 5000
"""The jackknife of BCa takes the square of the number of questions."""


def sign(wins: int, losses: int) -> float:
    """p of the exact sign test; ties do not count."""
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def wilcoxon(differences: np.ndarray) -> float:
    """p of Wilcoxon's signed-rank test with ties ranked among the rest (Pratt, 1959), by the normal approximation."""
    from scipy.stats import wilcoxon

    if not differences.any():
        return 1.0
    return float(wilcoxon(differences, zero_method="pratt", method="approx").pvalue)


def permutation(differences: np.ndarray) -> float:
    """p of the exact sign-permutation test of the mean: all 2ⁿ signs of n differences (Fisher, 1935). n < 20."""
    if len(differences) >= FEW:
        raise ValueError(f"{len(differences)} differences have too many signs to permute")
    sums = np.zeros(1)
    for value in differences:
        sums = np.concatenate([sums + value, sums - value])
    observed = abs(differences.sum())
    return float(np.mean(np.abs(sums) >= observed - 1e-9 * np.abs(differences).sum()))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """p values adjusted for all of them (Holm, 1979): the family-wise error stays below the level. None stays None."""
    there = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    for done, (p, place) in enumerate(there):
        largest = max(largest, min(1.0, (len(there) - done) * p))
        adjusted[place] = largest
    return adjusted


def bca_ratio(
    a: np.ndarray, b: np.ndarray, rng: np.random.Generator, resamples: int = 9999
) -> tuple[float, float] | None:
    """The 95 % BCa bootstrap interval (Efron, 1987) of Σ b / Σ a over questions; None where it does not exist."""
    from scipy.stats import bootstrap

    if not 2 <= len(a) <= MOST_BOOTSTRAPPED or not a.sum() or not np.ptp(b * a.sum() - a * b.sum()):
        return None
    with warnings.catch_warnings(), np.errstate(all="ignore"):  # a resample without points of a, or all resamples equal
        warnings.simplefilter("ignore")
        found = bootstrap(
            (b, a),
            lambda b, a, axis: b.sum(axis=axis) / a.sum(axis=axis),
            paired=True,
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, 2**22 // len(a)),
            method="BCa",
            random_state=rng,
        ).confidence_interval
    ends = float(found.low), float(found.high)
    return ends if np.isfinite(ends).all() else None
