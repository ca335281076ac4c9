"""Benchmarks: figures of lm-evaluation-harness by task and model, with standard errors and paired differences."""

from __future__ import annotations

from shepherd.report.load import RunRecord
from shepherd.report.page import Limits, Section, Table
from shepherd.report.wording import ABSENT, count, from_to, left_out, signed, with_error

HARNESS = ("lm_eval", "transformers", "torch")


def benchmarks(record: RunRecord, limits: Limits) -> Section:
    """Tables of the figures and of their differences."""
    models = list(dict.fromkeys(model for task in record.benchmarks for model in task["models"]))
    rows = [
        [
            task["task"],
            count(len(task["rows"])) if task["rows"] else ABSENT,
            metric,
            {True: "higher", False: "lower"}.get(about.get("higher_is_better"), ABSENT),
            *(with_error(task["models"].get(model, {}).get("metrics", {}).get(metric)) for model in models),
        ]
        for task in record.benchmarks
        for metric, about in task["metrics"].items()
    ]
    figures = Table(
        "Figures by task and model, ± one standard error over documents",
        ("Task", "Documents", "Metric", "Better", *models),
        rows[: limits.rows],
        texts=(0, 2, 3),
        note=left_out(len(rows), limits.rows, "figure"),
    )
    versions = {f"{name} {task['harness'][name]}": None for task in record.benchmarks for name in HARNESS
                if name in (task.get("harness") or {})}  # fmt: skip
    text = [
        f"Evaluated by lm-evaluation-harness ({', '.join(versions)}). benchmarks/ in the run directory has the figures "
        "of every document, the arguments of the models and the hash of each task's documents."
    ]
    if limited := [task["task"] for task in record.benchmarks if task.get("limit")]:
        text.append(f"Only the first documents were evaluated (--limit) of {', '.join(limited)}.")
    compared = [
        [task["task"], found["metric"], f"{found['a']} − {found['b']}", signed(found.get("difference")),
         found.get("no_interval") or from_to(tuple(found["ci95"]))]
        for task in record.benchmarks
        for found in task.get("differences") or ()
    ]  # fmt: skip
    differences = Table(
        "Differences over the same documents",
        ("Task", "Metric", "Models", "Difference", "95 % interval"),
        compared[: limits.rows],
        texts=(0, 1, 2, 4),
        note=left_out(len(compared), limits.rows, "difference"),
    )
    return Section("benchmarks", "Benchmarks", text, [figures, *([differences] if compared else [])])
