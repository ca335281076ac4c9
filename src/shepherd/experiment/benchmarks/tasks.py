"""Names of tasks, and offline tasks as files of lm-evaluation-harness: one YAML and one JSON Lines file each.

held-out              the held-out rows of the run: all kinds of `documents.KINDS`
held-out:choice       one kind
rows.jsonl            rows of a file, in any format of docs/data.md
arc_easy              a task or group of the harness, which reads a dataset of the hub
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shepherd.errors import UsageError, did_you_mean, missing_extra
from shepherd.experiment.benchmarks.documents import KINDS, Document
from shepherd.experiment.benchmarks.scores import GENERATED

HELD_OUT = "held-out"
FILES = (".jsonl", ".json", ".csv", ".parquet")
VERSION = 1
"""Of the offline tasks: raised by a change after which their figures differ."""

_SCORES = "shepherd.experiment.benchmarks.scores"


def check_harness() -> None:
    """Raise UsageError where lm-evaluation-harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise missing_extra("lm_eval", "eval")


@dataclass(frozen=True)
class Wanted:
    """What a benchmark consists of: kinds of tasks by source, True where the kind was named; tasks of the harness."""

    offline: Mapping[str, Mapping[str, bool]]
    harness: tuple[str, ...]


def parse(names: Sequence[str]) -> Wanted:
    """Names of tasks, sorted by who defines them. Raises UsageError for an unknown kind, or a file that is missing."""
    offline: dict[str, dict[str, bool]] = {}
    harness: dict[str, None] = {}
    for name in names:
        source, _, kind = name.rpartition(":") if name.rpartition(":")[2] in KINDS else (name, "", "")
        if source == HELD_OUT or _is_file(source):
            if source != HELD_OUT and not Path(source).is_file():
                raise UsageError(f"no file of rows: {source}", hint="check the path, or name a task of the harness")
            kinds = offline.setdefault(source, {})
            kinds.update({kind: True} if kind else {other: kinds.get(other, False) for other in KINDS})
        elif _is_file(name.rpartition(":")[0]) or name.startswith(f"{HELD_OUT}:"):
            kind = name.rpartition(":")[2]
            raise UsageError(f"unknown kind of task: {kind!r}.{did_you_mean(kind, KINDS)}", hint=f"one of {_KINDS}")
        elif not name:
            raise UsageError("the name of a task is empty", hint=f"for example --tasks {HELD_OUT},arc_easy")
        else:
            harness[name] = None
    stems = [Path(source).stem for source in offline]
    if double := next((stem for stem in stems if stems.count(stem) > 1), None):
        raise UsageError(f"two sources of rows are called {double!r}", hint="rename one, or run them one by one")
    return Wanted(offline, tuple(harness))


def task_name(source: str, kind: str) -> str:
    """The name of an offline task in results: held-out:choice, or the stem of a file and the kind."""
    return f"{source if source == HELD_OUT else Path(source).stem}:{kind}"


def write_task(folder: Path, name: str, kind: str, documents: Sequence[Document]) -> None:
    """Write an offline task for the harness, with the absolute path of its documents."""
    stem = file_stem(name)
    rows = folder.resolve() / f"{stem}.jsonl"
    rows.write_text("".join(json.dumps(doc, ensure_ascii=False) + "\n" for doc in documents), encoding="utf-8")
    config = {
        "task": name,
        "custom_dataset": _Function(f"{_SCORES}.load_documents"),
        "dataset_kwargs": {"file": str(rows)},
        "test_split": "test",
        "num_fewshot": 0,
        "target_delimiter": "",
        "doc_to_text": "context",
        **_CONFIGS[kind],
        "metadata": {"version": VERSION},
    }
    text = yaml.dump(config, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    (folder / f"{stem}.yaml").write_text(text, encoding="utf-8")


def file_stem(name: str) -> str:
    """The name of a task as part of a file name."""
    return re.sub(r"[^\w.-]+", "-", name)


def _is_file(name: str) -> bool:
    return name.lower().endswith(FILES)


class _Function(str):
    """The dotted name of a function, which the harness imports."""


class _Dumper(yaml.SafeDumper):
    """Writes functions with the tag of the harness."""


_Dumper.add_representer(_Function, lambda dumper, name: dumper.represent_scalar("!function", str(name)))


def _metric(name: str, aggregation: Any, higher_is_better: bool) -> dict[str, Any]:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": higher_is_better}


_KINDS = ", ".join(KINDS)
_CONFIGS: dict[str, dict[str, Any]] = {
    "likelihood": {
        "output_type": "loglikelihood",
        "doc_to_target": "target",
        "process_results": _Function(f"{_SCORES}.token_loss"),
        "metric_list": [_metric("loss", _Function(f"{_SCORES}.sum_over_sum"), False)],
    },
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
        "metric_list": [_metric("acc", "mean", True), _metric("acc_norm", "mean", True)],
    },
    "generation": {
        "output_type": "generate_until",
        "doc_to_target": "reference",
        "generation_kwargs": {"until": [], "do_sample": False},
        "process_results": _Function(f"{_SCORES}.answer_scores"),
        "metric_list": [_metric(name, "mean", True) for name in GENERATED],
    },
}
