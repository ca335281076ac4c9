"""Metrics of generated answers: the noun, the registry, and what a metric is given.

    @metrics
    def length_ratio(limit: float = 4.0) -> Metric:
        \"\"\"Characters of the answer over those of the reference.\"\"\"
        def score(answer: Answer) -> float:
            return min(limit, len(answer.text) / max(1, len(answer.reference)))
        return Metric(score, higher_is_better=False, label="Length", bounds=(0.0, limit))

A factory's arguments are the metric's options in the recipe. A metric that asks another model keeps its client and its
cache in the closure of its factory; scores are computed from the lines of generations.jsonl, once for each row and arm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shepherd.registry import Registry

metrics = Registry("metric")


@dataclass(frozen=True, slots=True)
class Answer:
    """One generated answer beside its reference, as a metric is given it.

    conversation: the turns before the answer, {role, content} each, the context in the last turn of the user. tools:
    the tools that the prompt offers, as JSON, or "". finish_reason: "stop", or "length" for an answer that was cut off.
    The arm that answered is not among the fields: a score is blind to it.
    """

    text: str
    reference: str
    conversation: Sequence[Mapping[str, str]] = ()
    category: str = ""
    id: str = ""
    tools: str = ""
    finish_reason: str = "stop"

    @classmethod
    def of(cls, record: Mapping[str, Any], arm: str) -> Answer:
        """The answer of an arm in a line of generations.jsonl."""
        return cls(
            text=record["answers"][arm],
            reference=record["reference"],
            conversation=record["prompt"],
            category=record["category"],
            id=record["id"],
            tools=record.get("tools", ""),
            finish_reason=record["finish_reason"][arm],
        )


@dataclass(frozen=True)
class Metric:
    """A score of one answer, with the direction and the name by which tables show its mean over rows.

    bounds: the least and the greatest score; an infinite end sets no limit. Scores of [0, 1] are shown in per cent.
    options: those of the recipe that made the metric.
    """

    score: Callable[[Answer], float]
    higher_is_better: bool
    label: str
    bounds: tuple[float, float] = (0.0, 1.0)
    options: Mapping[str, Any] = field(default_factory=dict)
