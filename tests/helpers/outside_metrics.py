"""Metrics as a package outside Shepherd would hold them."""

from __future__ import annotations

from shepherd.evaluation.metrics import Answer, Metric


def length_off(per: int = 1, limit: float = 1000.0) -> Metric:
    """Characters, in units of `per`, by which the answer is longer or shorter than the reference."""

    def score(answer: Answer) -> float:
        return min(limit, abs(len(answer.text) - len(answer.reference)) / per)

    return Metric(score, higher_is_better=False, label="Length off", bounds=(0.0, limit))


def broken() -> Metric:
    """A metric that fails on every row."""
    return Metric(lambda answer: 1 / len(answer.text[:0]), higher_is_better=True, label="Broken")


def above(score: float = 2.0) -> Metric:
    """A metric whose score is beyond its bounds."""
    return Metric(lambda answer: score, higher_is_better=True, label="Above")


def plain() -> str:
    """No metric."""
    return "plain"
