"""The promises of a metric of generated answers (see evaluation/metrics.py for the noun)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from shepherd.evaluation.metrics import Answer, Metric
from shepherd.evaluation.scoring import build_metric
from shepherd.evaluation.text import metrics
from shepherd.testing.promise import attempt, promise

TEXTS = ("", " ", "?!", "the cat", "The cat sat on the mat.", "cat the", "我喜欢猫", "50 %", "\U0001f44d", "a\nb\n" * 9)
TAKEN = ("rows", "cut_off")
"""Keys of the counts that stand beside the metrics in metrics.json."""


def check_metric(rule: str | Callable[..., Metric], **options: Any) -> None:
    """Hold a metric, by name or by its factory, with options, to the promises of metrics.

    It has a label and a name that no count has. Every score of two texts, empty ones and texts without words included,
    is a finite number within `bounds`; the reference itself has the best score; the same answer has the same score the
    second time, and from a metric that was built again.

    Raises AssertionError, with the promise and the texts, for the first that is broken; UsageError for a name or an
    option that there is not.
    """
    with metrics.including(rule) as name:
        promise(name not in TAKEN, f"metric {name!r}", f"a count has this name: {' and '.join(TAKEN)} are taken")
        entry = {"name": name, **options}
        _check(build_metric(entry)[1], build_metric(entry)[1], f"metric {build_metric(entry)[0]!r}")


def _check(metric: Metric, again: Metric, part: str) -> None:
    low, high = metric.bounds
    promise(bool(metric.label), part, "it has no label for tables")
    promise(low < high, part, f"its bounds are {low:g} to {high:g}")
    for reference in TEXTS:
        for text in TEXTS:
            where = f"answer {text!r}, reference {reference!r}"
            score, second, other = (
                float(attempt(partial(made.score, Answer(text, reference)), part, where))
                for made in (metric, metric, again)
            )
            promise(math.isfinite(score), part, f"the score is {score}", where)
            promise(low <= score <= high, part, f"the score {score:g} is outside its bounds {low:g} to {high:g}", where)
            promise(score == second, part, "the same answer has another score the second time", where)
            promise(score == other, part, "the metric that is built again gives another score", where)
            if text == reference:
                best = high if metric.higher_is_better else low
                promise(score == best, part, f"the reference itself has {score:g}, not the best score {best:g}", where)
