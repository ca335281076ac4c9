"""Ratios of sums over rows: a weighted mean and its standard error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Ratio:
    """Σ values / Σ weights over rows, and its linearised standard error (NaN below two rows or without weight).

    rows: those with a weight above 0. effective_rows: (Σ w)² / Σ w² (Kish, 1965), which is `rows` for equal weights.
    """

    value: float
    stderr: float
    rows: int
    effective_rows: float


def ratio(values: np.ndarray, weights: np.ndarray) -> Ratio:
    """The ratio of sums of float64[rows] by the delta method (Cochran, Sampling Techniques, 3rd ed., 1977, chapter 6).

    se² = n / (n − 1) · Σ (v_i − R w_i)² / (Σ w)², with R = Σ v / Σ w: the standard error of a mean for equal weights.
    """
    rows, total = int(np.count_nonzero(weights)), float(weights.sum())
    if not total:
        return Ratio(float("nan"), float("nan"), rows, 0.0)
    value = float(values.sum() / total)
    effective = float(total**2 / np.square(weights, dtype=np.float64).sum())
    if rows < 2:
        return Ratio(value, float("nan"), rows, effective)
    squares = np.square(values - value * weights).sum()
    return Ratio(value, float(np.sqrt(rows / (rows - 1) * squares) / total), rows, effective)
