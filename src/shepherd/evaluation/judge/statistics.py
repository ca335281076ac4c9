"""Statistics of a comparison of two systems, b − a, over questions and seeds.

The estimate is a mean over questions, the relative score a ratio of sums; their interval counts the variation of
questions and of seeds (two-way), under Student's t with Satterthwaite's degrees of freedom. `significance.py`
has the tests that are printed with it, `power.py` what a design can see.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from shepherd.evaluation.judge import significance
from shepherd.evaluation.judge.power import smallest_difference

Interval = tuple[float, float]
Judged = Literal["higher", "lower", "equal within the margin", "not distinguishable", "no interval"]
LEVEL = 0.05
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A mean over questions and seeds with its two-way standard error and Satterthwaite's degrees of freedom.

    stderr and degrees are None where no interval exists: fewer than two questions, or no spread at all.
    """

    value: float
    stderr: float | None
    degrees: float | None

    def interval(self, level: float = LEVEL) -> Interval | None:
        """value ± t · stderr, which covers with probability 1 − level."""
        if self.stderr is None:
            return None
        from scipy.special import stdtrit  # imported here for the start-up time of light commands

        half = float(stdtrit(self.degrees, 1 - level / 2)) * self.stderr
        return self.value - half, self.value + half

    def p(self, null: float = 0.0) -> float | None:
        """Two-sided p of value = null, without a floor."""
        if self.stderr is None:
            return None
        from scipy.special import stdtr

        return 2 * float(stdtr(self.degrees, -abs(self.value - null) / self.stderr))

    def smallest(self) -> float | None:
        """The true value that would differ from 0 with 80 % power."""
        if self.stderr is None or self.degrees is None:
            return None
        return smallest_difference(self.stderr, self.degrees)


@dataclass(frozen=True)
class Comparison:
    """Points of b against those of a. In points per question, except for the ratios.

    difference: mean of b − a. relative: Σ b / Σ a, inverse: Σ a / Σ b, so that exchanging the two exchanges all
    figures; None for a sum of 0. wins, losses, ties: questions where b has more, fewer or as many points, in the mean
    over seeds. permutation_p: with fewer than 20 questions. equal_p: two one-sided tests against the margin, with one.
    smallest: the difference that this design would find with 80 % power. holm_p, verdict: from `table`.
    """

    questions: int
    seeds: int
    total_a: float
    total_b: float
    difference: Estimate
    relative: Estimate | None
    inverse: Estimate | None
    p: float | None
    wins: int
    losses: int
    ties: int
    sign_p: float
    wilcoxon_p: float
    permutation_p: float | None
    smallest: float | None
    equal_p: float | None = None
    holm_p: float | None = None
    verdict: Judged | None = None

    @property
    def scope(self) -> str:
        """What the verdict holds for."""
        return "over seeds" if self.seeds > 1 else "for this training; other seeds may turn it"


def two_way(values: np.ndarray) -> Estimate:
    """The mean of float[seeds, questions], with a standard error for other seeds and other questions.

    V_q is the variance of question means / Q; V_s the variance of seed means / S less the residual / (Q S), at least 0;
    se = √(V_q + V_s). Satterthwaite (1946): degrees = se⁴ / (V_q² / (Q − 1) + V_s² / (S − 1)). One seed: V_q alone.
    """
    seeds, questions = values.shape
    mean = float(values.mean())
    if questions < 2:
        return Estimate(mean, None, None)
    by_question, by_seed = values.mean(axis=0), values.mean(axis=1)
    of_questions = float(by_question.var(ddof=1)) / questions
    of_seeds = 0.0
    if seeds > 1:
        residual = values - by_question - by_seed[:, None] + mean
        rest = float(np.square(residual).sum()) / ((questions - 1) * (seeds - 1))
        of_seeds = max(0.0, float(by_seed.var(ddof=1)) / seeds - rest / (questions * seeds))
    variance = of_questions + of_seeds
    if variance <= (_ROUNDING * float(np.abs(values).max())) ** 2:
        return Estimate(mean, None, None)
    parts = of_questions**2 / (questions - 1) + (of_seeds**2 / (seeds - 1) if of_seeds else 0.0)
    return Estimate(mean, float(np.sqrt(variance)), variance**2 / parts)


def relative_score(a: np.ndarray, b: np.ndarray) -> Estimate | None:
    """Σ b / Σ a of float[seeds, questions], linearised over questions and seeds (delta method); None where Σ a = 0."""
    if not a.sum():
        return None
    value = float(b.sum() / a.sum())
    spread = two_way((b - value * a) / a.mean())
    return Estimate(value, spread.stderr, spread.degrees)


def compare(a: np.ndarray, b: np.ndarray, margin: float | None = None) -> Comparison:
    """Compare the points of the same questions under the same seeds, float[seeds, questions] or float[questions].

    A question that lacks a value (NaN) under any seed is left out. margin: the difference, in points, below which the
    two count as equal, named before the data were seen. ValueError: shapes differ, or no question is left.
    """
    a, b = np.atleast_2d(np.asarray(a, float)), np.atleast_2d(np.asarray(b, float))
    if a.shape != b.shape:
        raise ValueError(f"the points are of different questions or seeds: {a.shape} and {b.shape}")
    whole = ~np.isnan(a + b).any(axis=0)
    a, b = a[:, whole], b[:, whole]
    if not a.size:
        raise ValueError("no question has points of both")
    between = b - a
    found = of_units(
        two_way(between), between.mean(axis=0), margin=margin, seeds=len(a), totals=(float(a.sum()), float(b.sum()))
    )
    return replace(found, relative=relative_score(a, b), inverse=relative_score(b, a))


def of_units(
    difference: Estimate, each: np.ndarray, *, margin: float | None, seeds: int, totals: tuple[float, float]
) -> Comparison:
    """The comparison of a difference, with the tests on its single units. each: float[units], the mean over seeds."""
    wins, losses = int((each > 0).sum()), int((each < 0).sum())
    return Comparison(
        questions=len(each),
        seeds=seeds,
        total_a=totals[0],
        total_b=totals[1],
        difference=difference,
        relative=None,
        inverse=None,
        p=difference.p(),
        wins=wins,
        losses=losses,
        ties=len(each) - wins - losses,
        sign_p=significance.sign(wins, losses),
        wilcoxon_p=significance.wilcoxon(each),
        permutation_p=significance.permutation(each) if len(each) < significance.FEW else None,
        smallest=difference.smallest(),
        equal_p=equivalence(difference, margin) if margin is not None else None,
    )


def equivalence(difference: Estimate, margin: float) -> float | None:
    """p of |difference| ≥ margin: the larger of two one-sided t tests (TOST; Schuirmann, 1987)."""
    if difference.stderr is None:
        return None
    from scipy.special import stdtr

    return float(stdtr(difference.degrees, (abs(difference.value) - margin) / difference.stderr))


def table(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of one table with p adjusted by Holm (1979) over all of them, and a verdict on b each.

    higher, lower: Holm's p is below 0.05. Otherwise equal within the margin, where the two one-sided tests reject a
    larger difference; otherwise not distinguishable, which does not mean equal. no interval: nothing varies.
    """
    adjusted = significance.holm([comparison.p for comparison in comparisons])
    return [replace(c, holm_p=p, verdict=_verdict(c, p)) for c, p in zip(comparisons, adjusted, strict=True)]


def _verdict(comparison: Comparison, p: float | None) -> Judged:
    if p is None:
        return "no interval"
    if p < LEVEL:
        return "higher" if comparison.difference.value > 0 else "lower"
    if comparison.equal_p is not None and comparison.equal_p < LEVEL:
        return "equal within the margin"
    return "not distinguishable"


def cluster_means(values: np.ndarray, clusters: Sequence[Hashable]) -> np.ndarray:
    """Means of float[…, items] over the items of each cluster, in order of first appearance: float[…, clusters].

    For the turns of one question or the rows of one client, which are not independent.
    """
    place = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    member = np.array([place[cluster] for cluster in clusters])
    return np.stack([values[..., member == number].mean(axis=-1) for number in range(len(place))], axis=-1)
