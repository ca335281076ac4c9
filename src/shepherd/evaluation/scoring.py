"""Metrics by name, and the scores of generated answers: entries of a recipe -> metrics -> a score per row and arm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from shepherd.errors import EvaluationError, UsageError
from shepherd.evaluation.metrics import Answer, Metric
from shepherd.evaluation.text import metrics
from shepherd.types import Stat

Scores = Mapping[str, Mapping[str, np.ndarray]]
"""{metric: {arm: float64[rows]}}"""


def build_metric(entry: str | Mapping[str, Any]) -> tuple[str, Metric]:
    """(key, metric) of a name, or of {name, option: value, …}; `module:function` imports one from outside.

    The key names the metric in metrics.json: the name, with the options that were given in brackets. Raises UsageError.
    """
    options = {} if isinstance(entry, str) else dict(entry)
    name = entry if isinstance(entry, str) else options.pop("name")
    metric = metrics.build(name, options)
    if not isinstance(metric, Metric):
        raise UsageError(
            f"metric {name!r} returns {type(metric).__name__}, expected a Metric (shepherd.evaluation.metrics)"
        )
    given = ", ".join(f"{key}={value!r}" for key, value in sorted(options.items()))
    return f"{name}({given})" if given else name, replace(metric, options=options)


def build_metrics(entries: Sequence[str | Mapping[str, Any]]) -> dict[str, Metric]:
    """Metrics by their keys, in order. Raises UsageError, also for an entry that stands there twice."""
    found: dict[str, Metric] = {}
    for key, metric in map(build_metric, entries):
        if key in found:
            raise UsageError(f"metric {key!r} is listed twice")
        found[key] = metric
    return found


def score_answers(records: Sequence[Mapping[str, Any]], metrics: Mapping[str, Metric]) -> dict[str, dict[str, Any]]:
    """The score of every answer in lines of generations.jsonl: `Scores`.

    Raises EvaluationError for a metric that fails, or gives a score that is not finite or out of its bounds.
    """
    arms = records[0]["answers"] if records else ()
    return {
        key: {arm: np.array([_score(key, metric, Answer.of(record, arm)) for record in records]) for arm in arms}
        for key, metric in metrics.items()
    }


def mean_score(scores: np.ndarray) -> Stat:
    """The mean of float64[rows], each row with weight 1: statistics of parts of the rows add up to that of all."""
    return sum((Stat(float(score), 1.0) for score in scores), Stat())


def described(metrics: Mapping[str, Metric]) -> dict[str, dict[str, Any]]:
    """What tables show of metrics, as JSON: label, direction, bounds (null: none), options."""
    return {
        key: {
            "label": metric.label,
            "higher_is_better": metric.higher_is_better,
            "bounds": [end if math.isfinite(end) else None for end in metric.bounds],
            "options": dict(metric.options),
        }
        for key, metric in metrics.items()
    }


def _score(key: str, metric: Metric, answer: Answer) -> float:
    low, high = metric.bounds
    try:
        score = float(metric.score(answer))
    except Exception as error:  # a metric from outside can raise anything
        raise EvaluationError(
            f"metric {key!r} failed on row {answer.id}: {type(error).__name__}: {error}", hint=_HINT
        ) from error
    if not (math.isfinite(score) and low <= score <= high):
        where = f"metric {key!r} gives {score} for row {answer.id}"
        raise EvaluationError(f"{where}, outside its bounds {low:g} to {high:g}", hint=_HINT)
    return score


_HINT = "all models are trained and saved: correct the metric, then shepherd resume --force"
