"""One benchmark: names of models and tasks -> a process of the harness -> benchmarks/TASK.json in the run directory."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shepherd import _version, network
from shepherd.config import Config
from shepherd.data.prompts import build_template
from shepherd.data.sources import dataset_notes, load_examples
from shepherd.data.tokenize import tokenize
from shepherd.errors import DataError, EvaluationError, ShepherdError
from shepherd.experiment.benchmarks.child import BOOTSTRAPS, SAID
from shepherd.experiment.benchmarks.documents import KINDS, Rows, none_left
from shepherd.experiment.benchmarks.models import locate, pick_models
from shepherd.experiment.benchmarks.record import merged_record, task_records
from shepherd.experiment.benchmarks.tasks import HELD_OUT, Wanted, check_harness, file_stem, task_name, write_task
from shepherd.experiment.remeasure import same_rows
from shepherd.experiment.rows import losses_of_tokens
from shepherd.model.base import load_tokenizer
from shepherd.model.digest import tokenizer_digest
from shepherd.model.fetch import resolve
from shepherd.model.outline import context_window
from shepherd.model.outline import load_config as load_model_config
from shepherd.recipe import load as load_config
from shepherd.store import RunDirectory, open_run, read_json
from shepherd.updates.privacy.publication import place_of

FOLDER = "benchmarks"
CHILD = "shepherd.experiment.benchmarks.child"
LAST = 15
"""Lines of a failed process that its error shows."""


@dataclass(frozen=True)
class Settings:
    """How tasks are evaluated.

    limit: the number of documents of each task, the first ones; None: all. fewshot: examples in the prompt of a task of
    the harness that does not set it. batch_size: sequences in a pass. download: tasks of the harness may read the hub.
    """

    limit: int | None = None
    fewshot: int | None = None
    batch_size: int = 8
    download: bool = False


def benchmark(
    run_dir: Path | str,
    arms: Sequence[str],
    wanted: Wanted,
    settings: Settings | None = None,
    note: Callable[[str], None] = lambda _sentence: None,
) -> list[dict[str, Any]]:
    """Evaluate arms of a run on tasks, and write a record of each task to its directory; the records.

    arms: "" stands for base, federated and merged (`models.pick_models`). `note` receives sentences about the progress.

    Raises UsageError for an arm or a task that is not there and without the package lm_eval, NetworkError for a task
    whose dataset is not on this machine, EvaluationError where the harness fails.
    """
    check_harness()
    settings = settings or Settings()
    folder = open_run(run_dir, needs="summary.json")
    config = load_config(folder / "config.toml")
    with tempfile.TemporaryDirectory(prefix="shepherd-benchmark-") as place:
        scratch = Path(place)
        left_out = _write_tasks(scratch / "tasks", folder, config, wanted, note)
        places = locate(folder, config, pick_models(arms, config), scratch)
        job = {
            "models": {name: found.arguments() for name, found in places.items()},
            "tasks": [*left_out, *wanted.harness],
            "include_path": str(scratch / "tasks") if wanted.offline else "",
            "defaults": bool(wanted.harness),
            "limit": settings.limit,
            "fewshot": settings.fewshot,
            "batch_size": settings.batch_size,
            "threads": config.run.threads,
            "out": str(scratch / "results.json"),
        }
        results = _run(job, scratch / "job.json", settings.download, note)
        shown = {name: found.shown() for name, found in places.items()}
        records = task_records(
            results, shown, limit=settings.limit, batch_size=settings.batch_size, bootstraps=BOOTSTRAPS
        )
    return _written(folder, records, left_out)


def _write_tasks(
    into: Path, run_dir: Path, config: Config, wanted: Wanted, note: Callable[[str], None]
) -> dict[str, Mapping[str, int]]:
    """Write the offline tasks; {task: rows that it leaves out by reason}.

    A kind without documents is noted. Raises DataError where it was named, or no task is left."""
    left_out: dict[str, Mapping[str, int]] = {}
    if not wanted.offline:
        return left_out
    into.mkdir()
    base = resolve(config.model.base, config.model.revision)
    tokenizer = load_tokenizer(base)
    for source, kinds in wanted.offline.items():
        rows = _rows(source, run_dir, config, base, tokenizer, note)
        empty = ""
        for kind, named in kinds.items():
            found, name = KINDS[kind](rows), task_name(source, kind)
            if found.documents:
                write_task(into, name, kind, found.documents)
                left_out[name] = found.left_out
                continue
            empty = none_left(name, found)
            if named:
                raise DataError(empty, hint="choose another kind of task, or give other rows")
            note(f"{empty}; it is left out")
        if empty and not left_out and not wanted.harness:
            raise DataError(empty, hint="give other rows")
    return left_out


def _rows(source: str, run_dir: Path, config: Config, base: Path, tokenizer: Any, note: Callable[[str], None]) -> Rows:
    """The rows of a source: the run's held-out rows, or those of a file, tokenised as the run does."""
    window = context_window(load_model_config(base))
    limits = config.data.max_length, config.evaluation.max_new_tokens, window
    template = build_template(config.data.template, tokenizer)
    if source == HELD_OUT:
        data = same_rows(run_dir, config, tokenizer, tokenizer_digest(base))
        return Rows(data.examples, data.held_out, template, tokenizer, *limits)
    dataset = load_examples(source)
    found = tokenize(dataset.examples, tokenizer, template, config.data.max_length)
    for line in (*dataset_notes(dataset), *losses_of_tokens(found)):
        note(f"{source}: {line}")
    return Rows({example.id: example for example in dataset.examples}, found.tokens, template, tokenizer, *limits)


def _run(job: Mapping[str, Any], file: Path, download: bool, note: Callable[[str], None]) -> dict[str, Any]:
    """Run the harness in a process of its own; its results."""
    file.write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, "-P", "-m", CHILD, str(file)]
    with network.opened() if download else contextlib.nullcontext():
        environment = _environment()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment,
        text=True, encoding="utf-8", errors="replace",
    ) as child:  # fmt: skip
        assert child.stderr is not None
        last: deque[str] = deque(maxlen=LAST)
        try:
            for line in child.stderr:
                if line.startswith(SAID):
                    note(line.removeprefix(SAID).strip())
                elif line.strip():
                    last.append(line.rstrip())
        except BaseException:
            child.kill()
            raise
    out = Path(job["out"])
    if child.returncode or not out.is_file():
        said = "\n  ".join(last) or "nothing"
        raise EvaluationError(
            f"lm-evaluation-harness ended with status {child.returncode}; its last lines:\n  {said}",
            hint="check the task with fewer documents (--limit); its own command lm_eval shows more",
        )
    results = dict(read_json(out))
    if error := results.get("error"):
        raise _same_error(error)
    return results


def _environment() -> dict[str, str]:
    """The environment of the child: the hub off unless the user or --download turned it on, this package importable."""
    environment = dict(os.environ)
    environment.setdefault("HF_HUB_OFFLINE", "1")
    if environment["HF_HUB_OFFLINE"].lower() not in ("0", "false", "no", "off", ""):
        environment |= {"HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
    environment.pop("HF_DATASETS_TRUST_REMOTE_CODE", None)
    root = str(Path(_version.__file__).parents[1])
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [*paths, root if root not in paths else ""]))
    environment |= {"PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1", "LMEVAL_LOG_LEVEL": "WARNING"}
    return environment


def _same_error(error: Mapping[str, Any]) -> ShepherdError:
    kinds = {kind.exit_code: kind for kind in ShepherdError.__subclasses__()}
    return kinds.get(error["status"], ShepherdError)(error["message"], error["hint"])


def _written(
    run_dir: Path, records: Mapping[str, dict[str, Any]], left_out: Mapping[str, Mapping[str, int]]
) -> list[dict[str, Any]]:
    """Write every record, together with the models of a former one that measured the same; the records."""
    store, written = RunDirectory(run_dir), []
    with store.lock():
        for name, record in records.items():
            file = f"{FOLDER}/{file_stem(name)}.json"
            if name in left_out:
                record["left_out"] = dict(left_out[name])
            former = read_json(place) if (place := place_of(run_dir, file)).is_file() else {}
            record = merged_record(former, record)
            store.write_json(file, record)
            written.append(record)
    return written
