"""A lower bound of ε from releases with and without a canary update: a smoke alarm for noise that is too small.

The canary is a random direction at the clip, and the attack the dot product of a release with it (Andrew et al., 2023,
2302.03098). A bound above the ε that is claimed shows a fault; one below shows nothing: few releases give a low one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from shepherd.evaluation.attacks.membership import clopper_pearson


def lower_bound(inside: np.ndarray, outside: np.ndarray, delta: float, alpha: float = 0.05) -> dict[str, Any]:
    """ε that any attack on releases with (float[n]) and without the canary (float[n]) shows at least, at confidence
    1 − alpha: {"epsilon", "threshold", "tpr", "fpr"}.

    ε ≥ ln((TPR − δ) / FPR), with exact bounds of both (Clopper and Pearson, 1934; Jagielski et al., 2020, 2006.07709).
    The threshold is chosen on the first half of the releases and applied to the second.
    """
    half_in, half_out = len(inside) // 2, len(outside) // 2
    threshold = max(
        np.quantile(outside[:half_out], 1 - np.geomspace(1 / half_out, 0.5, 60)),
        key=lambda t: _epsilon(inside[:half_in] > t, outside[:half_out] > t, delta, alpha),
    )
    hits, errors = inside[half_in:] > threshold, outside[half_out:] > threshold
    return {
        "epsilon": max(0.0, _epsilon(hits, errors, delta, alpha)),
        "threshold": float(threshold),
        "tpr": float(hits.mean()),
        "fpr": float(errors.mean()),
    }


def fitted(inside: np.ndarray, outside: np.ndarray, delta: float) -> float:
    """ε of two normal distributions with the means and the spread that were measured: an estimate, not a bound."""
    spread = math.sqrt((inside.var(ddof=1) + outside.var(ddof=1)) / 2)
    return gaussian_epsilon(abs(float(inside.mean() - outside.mean())) / spread, delta) if spread else math.inf


def gaussian_epsilon(shift: float, delta: float) -> float:
    """ε at δ between N(0, 1) and N(shift, 1): of one release whose noise is 1/shift of its sensitivity.

    Balle and Wang, 2018 (1805.06530), theorem 8: δ = Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ).
    """
    from scipy.special import log_ndtr  # imported here for the start-up time of light commands

    def excess(epsilon: float) -> float:
        a, b = (float(log_ndtr(sign * shift / 2 - epsilon / shift)) for sign in (1, -1))
        return math.exp(a) - math.exp(min(epsilon + b, 0.0)) - delta

    if shift <= 0 or excess(0.0) <= 0:
        return 0.0
    low, high = 0.0, 1.0
    while excess(high) > 0:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high


def _epsilon(hits: np.ndarray, errors: np.ndarray, delta: float, alpha: float) -> float:
    """ln((TPR − δ) / FPR) at the exact bounds, each at alpha/2 one-sided."""
    true = clopper_pearson(int(hits.sum()), len(hits), alpha)[0] - delta
    false = clopper_pearson(int(errors.sum()), len(errors), alpha)[1]
    return math.log(true / false) if true > 0 else -math.inf
