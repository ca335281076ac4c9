"""Differences of two systems at equal lengths of their answers.

The regression of Dubois et al., Length-Controlled AlpacaEval (arXiv 2404.04475, equation 2), without its terms for the
difficulty of an instruction, and linear, as the points here are ratings as well as preferences:

    d = θ + φ tanh(Δ / sd(Δ)) + ε

with d the points of b less those of a, and Δ the length of b's answer less that of a's. θ is the expected difference
where both are equally long.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shepherd.evaluation.judge.points import Matched
from shepherd.evaluation.judge.statistics import Estimate, two_way

FEWEST = 4
"""Below this number of questions a regression with two coefficients has no interval worth the name."""


@dataclass(frozen=True)
class LengthControl:
    """controlled: θ, in points. slope: φ, in points per unit of the tanh."""

    controlled: Estimate
    slope: float


def length_gaps(points: Matched) -> np.ndarray | None:
    """Characters of b's answer − a's, float[seeds, questions]; None where a length is not recorded."""
    lengths = {(one.seed, one.question): one.lengths for one in points.used}
    if not lengths or None in lengths.values():
        return None
    gaps = {cell: pair[1] - pair[0] for cell, pair in lengths.items() if pair}
    return np.array([[gaps[seed, question] for question in points.questions] for seed in points.seeds], float)


def length_controlled(differences: np.ndarray, gaps: np.ndarray) -> LengthControl | None:
    """θ and φ by least squares over float[seeds, questions]; None where all lengths differ alike, or questions are few.

    differences: points of b − a. gaps: characters of b's answer − a's. The standard error of θ is linearised: two-way,
    of the cells' influence on θ, which does not assume equal variances (White, 1980, with the factor n / (n − 2)).
    """
    if differences.shape[1] < FEWEST or not np.ptp(gaps):
        return None
    x = np.tanh(gaps / gaps.std())
    centred = x - x.mean()
    slope = float((centred * differences).sum() / np.square(centred).sum())
    theta = float(differences.mean() - slope * x.mean())
    residuals = differences - theta - slope * x
    count = differences.size
    influence = residuals * (1 - x.mean() * centred * count / np.square(centred).sum())
    found = two_way(influence * np.sqrt((count - 1) / (count - 2)))
    return LengthControl(Estimate(theta, found.stderr, found.degrees), slope)
