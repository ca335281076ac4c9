"""The process in which lm-evaluation-harness runs: `python -m shepherd.experiment.benchmarks.child JOB`.

JOB is a JSON file that `benchmark.py` writes. Its `out` receives {"versions", "models": {name: {"tasks", "dtype",
"device"}}}, or {"error": {"status", "message", "hint"}} for an error with an exit status of the table. Anything else
ends the process with a traceback.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shepherd.errors import NetworkError, ShepherdError, UsageError, did_you_mean
from shepherd.model.threads import prepare_environment

BOOTSTRAPS = 1000
"""Resamples of the harness for a standard error without a formula."""

SAID = "shepherd: "
"""Begin lines on stderr that are progress, not part of a failure."""


def main(arguments: Sequence[str]) -> None:
    """Evaluate what a job lists, and write its results."""
    prepare_environment()
    job = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    try:
        found = evaluate(job)
    except ShepherdError as error:
        found = {"error": {"status": error.exit_code, "message": error.message, "hint": error.hint}}
    Path(job["out"]).write_text(json.dumps(found, allow_nan=True), encoding="utf-8")


def say(sentence: str) -> None:
    """Report progress to the process that started this one."""
    print(f"{SAID}{sentence}", file=sys.stderr, flush=True)


def evaluate(job: Mapping[str, Any]) -> dict[str, Any]:
    """The results of every model of a job on all its tasks. Raises UsageError, NetworkError or ModelError."""
    from lm_eval.tasks import TaskManager

    from shepherd.model.threads import use_threads
    from shepherd.serving.export import export

    use_threads(job["threads"])
    manager = TaskManager(include_path=job["include_path"] or None, include_defaults=job["defaults"])
    tasks = load_tasks(manager, job["tasks"], job["fewshot"])
    models = {}
    for name, place in job["models"].items():
        arguments = dict(place)
        if run := arguments.pop("merge_of"):
            say(f"exporting {name}")
            export(run, "merged", arguments["pretrained"])
        say(f"evaluating {name} on {', '.join(job['tasks'])}")
        models[name] = evaluate_model(tasks, {**arguments, "batch_size": job["batch_size"]}, job["limit"])
    libraries = ("lm_eval", "transformers", "torch", "peft", "datasets")
    return {"versions": {library: version(library) for library in libraries}, "models": models}


def load_tasks(manager: Any, names: Sequence[str], fewshot: int | None) -> Any:
    """The harness's tasks of these names. Raises UsageError for an unknown one, NetworkError for one without data."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    for name in names:
        if name not in manager.task_index:
            raise UsageError(
                f"unknown task: {name!r}.{did_you_mean(name, manager.all_tasks)}",
                hint="lm_eval ls tasks lists the tasks of the harness; held-out is the run's own rows",
            )
    try:
        found = manager.load([*names])
    except OSError:  # all that the hub's libraries raise for a dataset that they cannot reach
        for name in names:
            _load_alone(manager, name)
        raise
    for task in found["tasks"].values():
        if task.get_config("num_fewshot") is None or (fewshot is not None and task.get_config("num_fewshot") != 0):
            task.set_config(key="num_fewshot", value=fewshot or 0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    return found


def _load_alone(manager: Any, name: str) -> None:
    """Load one task. NetworkError: its data cannot be read."""
    try:
        manager.load([name])
    except OSError as error:
        sources = ", ".join(dict.fromkeys(_datasets(manager, name))) or "data from the network"
        if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
            raise NetworkError(
                f"task {name!r} reads {sources}, which is not on this machine, and the network is off",
                hint="--download lets tasks download their data; held-out and FILE.jsonl need none",
            ) from error
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise NetworkError(f"task {name!r}: {sources} cannot be read: {why}", hint="check the network") from error


def _datasets(manager: Any, name: str) -> Iterator[str]:
    """The datasets of a task, or of all tasks of a group or tag."""
    entry = manager.task_index.get(name)
    config = (entry.cfg if entry else None) or {}
    if path := config.get("dataset_path"):
        yield f"the dataset {path}"
    children = config.get("task")
    of_tag = entry.tags if entry and entry.kind.name == "TAG" else ()
    for child in [*(children if isinstance(children, list) else ()), *of_tag]:
        inner = child if isinstance(child, str) else child.get("task") or child.get("group")
        if isinstance(inner, str) and inner != name:
            yield from _datasets(manager, inner)


def evaluate_model(tasks: Any, place: Mapping[str, Any], limit: int | None) -> dict[str, Any]:
    """{"tasks": {task: its results}, "dtype", "device"} of one model."""
    import numpy as np
    import torch
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
    from lm_eval.evaluator import evaluate as harness

    from shepherd.experiment.benchmarks.harness_model import load

    lm = load(**place)
    random.seed(DEFAULT_RANDOM_SEED)  # the seeds of the harness's own command: its figures stay comparable
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)
    found: Any = harness(lm=lm, task_dict=tasks, limit=limit, bootstrap_iters=BOOTSTRAPS)
    return {
        "tasks": {name: _task(found, name) for name in found["results"]},
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "device": str(lm.device),
    }


def _task(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Results of one task or group: metrics "name,filter" with standard errors, and its samples without their texts."""
    from lm_eval.utils import hash_string

    metrics: dict[str, dict[str, Any]] = {}
    results = found["results"][name]
    for key, value in results.items():
        metric, comma, filter_name = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            stderr = results.get(f"{metric}_stderr,{filter_name}")
            metrics[key] = {"value": value, "stderr": stderr if isinstance(stderr, int | float) else None}
    samples = found.get("samples", {}).get(name, [])
    by_filter: dict[str, list[Any]] = {}
    for sample in samples:
        by_filter.setdefault(sample["filter"], []).append(sample)
    first = next(iter(by_filter.values()), [])
    hashes = "".join(sample["doc_hash"] + sample["prompt_hash"] + sample["target_hash"] for sample in first)
    return {
        "version": found["versions"].get(name),
        "hash": hash_string(hashes) if samples else None,
        "fewshot": found["n-shot"].get(name),
        "higher_is_better": found["higher_is_better"].get(name, {}),
        "metrics": metrics,
        "rows": [_row(sample) for sample in first],
        "scores": {
            key: [_plain(sample.get(key.partition(",")[0])) for sample in by_filter.get(key.partition(",")[2], ())]
            for key in metrics
        },
    }


def _row(sample: Mapping[str, Any]) -> str:
    """The id of a document, or its place where it has none."""
    return str(sample["doc"].get("id", sample["doc_id"]) if isinstance(sample["doc"], dict) else sample["doc_id"])


def _plain(value: Any) -> float | list[float] | None:
    """A score of a document: a number, or [value, weight] of a ratio of sums; None for all else."""
    if isinstance(value, int | float):
        return float(value)
    pair = isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(part, int | float) for part in value)
    return [float(part) for part in value] if pair else None


if __name__ == "__main__":
    main(sys.argv[1:])
