"""Differences between two models on the same rows: an estimate, a 95 % interval and p, or the reason for their absence.

The estimate is a ratio of sums, its standard error is linearised over rows, and interval and p come from one Student t.
A bootstrap over rows is reported with the interval as a cross-check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from shepherd.evaluation.ratios import Ratio, ratio

if TYPE_CHECKING:
    from shepherd.evaluation.row_losses import RowLosses

_ROUNDING = 16 * np.finfo(np.float64).eps


def paired_difference(a: RowLosses, b: RowLosses, rng: np.random.Generator | None = None) -> dict[str, Any]:
    """Loss of a − loss of b on the same rows: `difference_of_sums` of their losses over the target tokens.

    With `rng` the result includes "bootstrap95". Raises ValueError when a and b are not of the same rows.
    """
    if not np.array_equal(a.tokens, b.tokens):
        raise ValueError("the two losses are not of the same rows: their response tokens differ")
    return difference_of_sums(a.nll, b.nll, a.tokens, rng)


def difference_of_sums(
    a: np.ndarray, b: np.ndarray, weights: np.ndarray, rng: np.random.Generator | None = None
) -> dict[str, Any]:
    """Σ (a − b) / Σ weights over rows, each float[rows], with a 95 % interval and p from Student's t.

    difference ± t₀.₉₇₅(n − 1) · stderr, and the two-sided p of difference / stderr under the same t, without a floor.
    Rows of weight 0 do not count. Keys: difference, ci95 [low, high], p, stderr, rows, effective_rows, no_interval;
    with `rng` also bootstrap95. Where no interval exists ci95 is [None, None], p None and no_interval the reason:
    fewer than two rows, no weight, a value that is not finite (then no difference exists either), or an equal
    difference per weight on every row, that is zero variance.
    """
    a, b, weights = (np.asarray(part, np.float64)[np.asarray(weights) > 0] for part in (a, b, weights))
    with np.errstate(invalid="ignore"):
        between = a - b
    found = ratio(between, weights)
    reason = _no_interval(a, b, between, weights, found)
    result: dict[str, Any] = {
        "difference": found.value if np.isfinite(found.value) else None,
        "ci95": [None, None],
        "p": None,
        "stderr": None if reason else found.stderr,
        "rows": found.rows,
        "effective_rows": found.effective_rows,
        "no_interval": reason,
    }
    if reason is None:
        from scipy.special import stdtr, stdtrit  # imported here for the start-up time of light commands

        degrees = found.rows - 1
        half = float(stdtrit(degrees, 0.975)) * found.stderr
        result["ci95"] = [found.value - half, found.value + half]
        result["p"] = 2 * float(stdtr(degrees, -abs(found.value) / found.stderr))
    if rng is not None:
        result["bootstrap95"] = [None, None] if reason else bootstrap_interval(between, weights, rng)
    return result


def bootstrap_interval(
    values: np.ndarray, weights: np.ndarray, rng: np.random.Generator, resamples: int = 2000
) -> list[float]:
    """The 2.5 % and 97.5 % quantiles of Σ values / Σ weights over resampled rows (paired bootstrap; Koehn, 2004)."""
    n, draws = len(values), np.empty(resamples)
    step = max(1, 2**22 // n)  # so that memory does not grow with rows × resamples
    for start in range(0, resamples, step):
        part = draws[start : start + step]
        counts = rng.multinomial(n, np.full(n, 1 / n), size=len(part)).astype(np.float64)
        part[:] = (counts @ values) / (counts @ weights)
    low, high = np.quantile(draws, [0.025, 0.975])
    return [float(low), float(high)]


def _no_interval(a: np.ndarray, b: np.ndarray, between: np.ndarray, weights: np.ndarray, found: Ratio) -> str | None:
    """The reason for a missing interval, or None where one exists."""
    if not found.rows:
        return "there is nothing to compare on"
    if broken := int(np.count_nonzero(~(np.isfinite(between)))):
        return f"{broken} of {found.rows} rows have no finite value"
    if found.rows == 1:
        return "a single row has no spread"
    # Where all rows agree, the rest is rounding, of a − b and of the product.
    if (np.abs(between - found.value * weights) <= _ROUNDING * np.maximum(np.abs(a), np.abs(b))).all():
        return "the two are equal on every row" if found.value == 0 else "the difference is the same on every row"
    return None
