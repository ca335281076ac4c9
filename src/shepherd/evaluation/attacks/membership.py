"""Membership inference: how well a score separates rows that were trained on from rows that were not.

The score is the loss under the base minus that under the tuned model: the loss that tuning took away, calibrated by how
hard the row is (Carlini et al., 2022, 2112.03570, §V; Watson et al., 2022, 2111.08440).
"""

from __future__ import annotations

from typing import Any

import numpy as np

FEWEST = 100
"""Rows never trained on below which a false positive rate of 1 % does not exist."""
FALSE_POSITIVES = 0.01
_ALPHA = 0.05


def auc(inside: np.ndarray, outside: np.ndarray) -> dict[str, Any]:
    """The probability that a trained row scores higher than one that was not, ties counting half: {"auc", "ci95"}.

    inside float[m], outside float[n]. The 95 % interval is DeLong's (DeLong et al., 1988), cut to [0, 1]. Where all
    pairs agree it is that of min(m, n) independent pairs (Clopper and Pearson, 1934).
    """
    above, below = _placements(inside, outside)
    value, pairs = float(above.mean()), min(len(inside), len(outside))
    if value in (0.0, 1.0):
        bound = (_ALPHA / 2) ** (1 / pairs)
        return {"auc": value, "ci95": [bound, 1.0] if value else [0.0, 1 - bound]}
    if pairs < 2:
        return {"auc": value, "ci95": [0.0, 1.0]}
    half = 1.959963984540054 * float(np.sqrt(above.var(ddof=1) / len(inside) + below.var(ddof=1) / len(outside)))
    return {"auc": value, "ci95": [max(0.0, value - half), min(1.0, value + half)]}


def auc_within(
    inside: np.ndarray, outside: np.ndarray, groups_in: np.ndarray, groups_out: np.ndarray
) -> dict[str, Any] | None:
    """The same over pairs of one group: {"auc", "pairs"}; None where no group has rows on both sides.

    Categories that differ in difficulty do not enter it. groups: of each row.
    """
    won = pairs = 0.0
    for group in set(groups_in.tolist()) & set(groups_out.tolist()):
        above, _ = _placements(inside[groups_in == group], outside[groups_out == group])
        many = int(np.count_nonzero(groups_out == group))
        won, pairs = won + float(above.sum() * many), pairs + len(above) * many
    return {"auc": won / pairs, "pairs": int(pairs)} if pairs else None


def true_positive_rate(inside: np.ndarray, outside: np.ndarray, rate: float = FALSE_POSITIVES) -> dict[str, Any]:
    """The share of trained rows that score above all but a share `rate` of the others: {"tpr", "ci95", "threshold",
    "false_positives"}.

    The threshold is the lowest score of an outsider that at most rate · n outsiders exceed; a tie with it does not
    count. The interval is exact for this threshold (Clopper and Pearson, 1934). Raises ValueError below 1/rate rows
    outside, where the rate does not exist.
    """
    if len(outside) * rate < 1:
        raise ValueError(f"{len(outside)} rows outside, and a false positive rate of {rate:g} needs {1 / rate:.0f}")
    allowed = int(rate * len(outside) + 1e-9)
    threshold = float(np.sort(outside)[::-1][allowed])
    hits = int(np.count_nonzero(inside > threshold))
    return {
        "tpr": hits / len(inside),
        "ci95": list(clopper_pearson(hits, len(inside))),
        "threshold": threshold,
        "false_positives": int(np.count_nonzero(outside > threshold)),
    }


def clopper_pearson(hits: int, trials: int, alpha: float = _ALPHA) -> tuple[float, float]:
    """The exact interval of a share of `hits` in `trials`, which covers with at least 1 − alpha."""
    from scipy.special import betaincinv  # imported here for the start-up time of light commands

    low = float(betaincinv(hits, trials - hits + 1, alpha / 2)) if hits else 0.0
    high = float(betaincinv(hits + 1, trials - hits, 1 - alpha / 2)) if hits < trials else 1.0
    return low, high


def _placements(inside: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(float[m], the share of outsiders that each trained row exceeds; float[n], the share that exceeds each)."""
    inside, outside = np.asarray(inside, np.float64), np.asarray(outside, np.float64)
    ordered_in, ordered_out = np.sort(inside), np.sort(outside)
    above = (np.searchsorted(ordered_out, inside, "left") + np.searchsorted(ordered_out, inside, "right")) / 2
    below = (np.searchsorted(ordered_in, outside, "left") + np.searchsorted(ordered_in, outside, "right")) / 2
    return above / len(outside), 1 - below / len(inside)
