"""Metrics of the generated answers: label, direction and scale by which tables and sentences show them."""

from __future__ import annotations

from dataclasses import dataclass

from shepherd.report.load import RunRecord
from shepherd.report.wording import digits, number, percent, signed

DEFAULT = {"exact_match": "Exact match", "rouge_l": "ROUGE-L", "token_f1": "Token F1"}
"""Labels of the default metrics: higher is better, from 0 to 1. Of others metrics.json has the description."""


@dataclass(frozen=True)
class Metric:
    """One metric of the generated answers. shares: whether its scores are in [0, 1] and shown in per cent."""

    key: str
    label: str
    higher_is_better: bool = True
    shares: bool = True

    def shown(self, score: float | None) -> str:
        """A mean score."""
        return percent(score) if self.shares else digits(score)

    def between(self, low: float, high: float) -> str:
        """An interval of a difference."""
        if self.shares:
            return f"{signed(100 * low, 1)} to {signed(100 * high, 1)} points"
        return f"{signed(low)} to {signed(high)}"

    def worse(self, score: float, other: float) -> bool:
        """Whether a score is worse than another one."""
        return score < other if self.higher_is_better else score > other


def metric(record: RunRecord, key: str) -> Metric:
    """The metric of a key of an arm's "generation"."""
    about = (record.metrics.get("generation_metrics") or {}).get(key)
    if about is None:
        return Metric(key, DEFAULT.get(key, key))
    shares = [number(end) for end in about["bounds"]] == [0, 1]
    return Metric(key, about["label"], about["higher_is_better"], shares)


def main_metric(record: RunRecord) -> Metric:
    """The metric of the verdict: ROUGE-L where it is among the metrics, else the first of them."""
    stated = record.metrics.get("generation_metrics") or {}
    return metric(record, "rouge_l" if "rouge_l" in stated else next(iter(stated), "rouge_l"))
