"""Results of the harness -> benchmarks/TASK.json: figures with standard errors, settings, differences of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shepherd.evaluation.ratios import ratio
from shepherd.evaluation.statistics import difference_of_sums

SAME = ("task", "harness", "version", "hash", "fewshot", "limit", "rows")
"""What two records have in common whose figures can stand in one table."""


def task_records(
    results: Mapping[str, Any], places: Mapping[str, Mapping[str, Any]], **settings: Any
) -> dict[str, dict[str, Any]]:
    """{task: its record} of what the child process measured. settings: limit, batch_size, bootstraps."""
    found: dict[str, dict[str, Any]] = {}
    for model, measured in results["models"].items():
        args = {**places[model], "dtype": measured["dtype"], "device": measured["device"]}
        for name, task in measured["tasks"].items():
            record = found.setdefault(
                name,
                {
                    "task": name,
                    "harness": dict(results["versions"]),
                    "version": task["version"],
                    "hash": task["hash"],
                    "fewshot": task["fewshot"],
                    **settings,
                    "rows": task["rows"],
                    "metrics": {},
                    "models": {},
                },
            )
            scores = {_key(key): values for key, values in task["scores"].items() if _complete(values, task["rows"])}
            figures = {_key(key): _figure(value, scores.get(_key(key))) for key, value in task["metrics"].items()}
            directions = task["higher_is_better"]
            record["metrics"].update({key: {"higher_is_better": directions.get(key.partition("[")[0])}
                                      for key in figures})  # fmt: skip
            record["models"][model] = {"args": args, "metrics": figures, "scores": scores}
    return {name: with_differences(record) for name, record in found.items()}


def merged_record(former: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """A new record with the models that a former one has besides, where both measured the same in the same way."""
    same = all(former.get(key) == new[key] for key in SAME)
    if not (same and new["hash"] and isinstance(former.get("models"), Mapping)):
        return dict(new)
    return with_differences({**new, "models": {**former["models"], **new["models"]}})


def with_differences(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the paired differences in each metric that has a score for each row: federated − every other model,
    or every model − base where federated was not evaluated.
    """
    models = record["models"]
    others = [name for name in models if name not in ("base", "federated")] + ["base"] * ("base" in models)
    pairs = [("federated", b) for b in others] if "federated" in models else [(a, "base") for a in others[:-1]]
    differences = [
        {"metric": metric, "a": a, "b": b, **_difference(*(models[model]["scores"][metric] for model in (a, b)))}
        for metric in record["metrics"]
        for a, b in pairs
        if all(metric in models.get(model, {"scores": ()})["scores"] for model in (a, b))
    ]
    return {**record, "differences": differences}


def _key(key: str) -> str:
    """ "acc" of "acc,none"; "exact_match[strict-match]" of a metric after another filter."""
    metric, _, name = key.partition(",")
    return metric if name == "none" else f"{metric}[{name}]"


def _complete(values: Sequence[Any], rows: Sequence[str]) -> bool:
    return len(values) == len(rows) > 0 and None not in values


def _figure(figure: Mapping[str, Any], scores: Sequence[Any] | None) -> dict[str, Any]:
    """{"value", "stderr"}: the harness's, and of a ratio of sums the linearised standard error."""
    value, stderr = figure["value"], figure["stderr"]
    if stderr is None and scores and isinstance(scores[0], list):
        stderr = ratio(*np.array(scores, np.float64).T).stderr
    return {key: number if number is not None and np.isfinite(number) else None
            for key, number in (("value", value), ("stderr", stderr))}  # fmt: skip


def _difference(a: Sequence[Any], b: Sequence[Any]) -> dict[str, Any]:
    """a − b over the same rows: of means, or of ratios with the same weights."""
    first, second = (np.array(scores, np.float64) for scores in (a, b))
    if first.ndim == 1:
        return difference_of_sums(first, second, np.ones(len(first)))
    return difference_of_sums(first[:, 0], second[:, 0], first[:, 1])
