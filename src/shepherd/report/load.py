"""Reader of run directories: `load_run(path) -> RunRecord`, checked against the shapes that a run writes.

A missing or broken file is a DataError that names it. Of an unfinished run (no summary.json) the committed rounds are
read.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shepherd.arms import registered
from shepherd.errors import DataError
from shepherd.report import audit_contents
from shepherd.report.judge import contents
from shepherd.report.shapes import AGAIN, ANY_CLIENT, CLIENT, check, with_labels

_ARM = {
    "per_category?": {"*": {"*": object}},
    "per_client?": {ANY_CLIENT: {"*": object}},
    "generation?": {"*": object},
}
_ARMS = {f"{name}?": {ANY_CLIENT: _ARM} if arm.per_client else _ARM for name, arm in registered().items()}
_CURVE = [[object]]
_CURVES = {f"{name}?": {ANY_CLIENT: _CURVE} if arm.per_client else _CURVE for name, arm in registered().items()}
_DIFFERENCE = {
    "a": CLIENT, "b": CLIENT, "ci95?": [object], "bootstrap95?": [object], "clients?": [CLIENT], "same_rows?": bool,
}  # fmt: skip
_METRICS = {
    "arms": {**_ARMS, "*": _ARM},
    "curves?": {**_CURVES, "*": object},
    "personal?": {ANY_CLIENT: {"*": object}},
    "clusters?": {"*": [CLIENT]},
    "differences?": [_DIFFERENCE],
    "own_rows?": {ANY_CLIENT: {"ci95?": [object]}},
    "generation_differences?": [{"metric": str, **_DIFFERENCE}],
    "generation_metrics?": {"*": {"label": str, "higher_is_better": bool, "bounds": [object], "*": object}},
}
_SUMMARY = {
    "arms": {"local?": {ANY_CLIENT: object}, "*": object},
    "best?": {"*": {"clients": [CLIENT], "*": object}},
    "failed?": [{"client": CLIENT, "*": object}],
    "budget?": {"*": {"*": object}},
    "seconds?": {"*": object},
    "model?": {"*": object},
    "adapter?": {"*": object},
    "data?": {"*": object},
    "reload_check?": {"*": object},
    "trained_rows?": {ANY_CLIENT: {"*": object}},
    "rows_seen?": str,
    "sites?": {ANY_CLIENT: {"rows": int, "digest": str, "version": str}},
}
_ROUND = {
    "round": int,
    "cohort": [CLIENT],
    "missing?": [CLIENT],
    "rejected?": [{"client": CLIENT}],
    "late?": [CLIENT],
    "ignored?": [{"client": CLIENT}],
    "quarantined?": [CLIENT],
    "weights?": {ANY_CLIENT: object},
    "train_loss?": {ANY_CLIENT: object},
    "held_out_per_category?": {"*": object},
    "held_out_per_client?": {ANY_CLIENT: object},
    "steps?": {ANY_CLIENT: object},
    "examples?": {ANY_CLIENT: object},
    "unused_examples?": {ANY_CLIENT: object},
    "tokens?": {ANY_CLIENT: object},
    "seconds?": {"*": object},
    "update_norm?": {ANY_CLIENT: object},
    "clusters?": {ANY_CLIENT: int},
    "clipped?": int,
    "diagnostics?": {"increment_norm?": {ANY_CLIENT: object}},
}
_RELEASED = {**_ROUND, "cohort?": [CLIENT]}
_PARTITION = {
    "clients": {ANY_CLIENT: [str]},
    "labels?": {"*": str},
    "held_out?": [str],
    "settings?": {"*": object},
    "table?": {"clients": [CLIENT], "categories": [str], "counts": [[int]]},
}
_BENCHMARK = {
    "task": str,
    "rows": [str],
    "metrics": {"*": {"*": object}},
    "models": {"*": {"metrics": {"*": {"*": object}}}},
    "differences?": [{"metric": str, **_DIFFERENCE}],
}
_LEFT_OUT = {"what": str, "reason": str, "groups": [[str]]}
_TURNS = [{"role": str, "content": str}]
_GENERATION = {"prompt": _TURNS, "answers": {"*": (str, type(None))}, "finish_reason?": {"*": str}}


@dataclass(frozen=True)
class RunRecord:
    """The contents of a run directory, clients by their labels.

    `state` is "finished", or "unfinished" while there is no summary.json.

    config: the settings by table; config_text: config.toml as written. rounds: one mapping per committed round, in
    order. left_out: rows refused, changed, or found by the audit of the data. benchmarks: the record of each task.
    judge, audit: judge/judge.json and audit.json. Each is empty where the run has none. notes: sentences about files
    that were read only in part.
    """

    path: Path
    state: str
    config: Mapping[str, Any]
    config_text: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    rounds: tuple[Mapping[str, Any], ...] = ()
    partition: Mapping[str, Any] = field(default_factory=dict)
    generations: tuple[Mapping[str, Any], ...] = ()
    left_out: tuple[Mapping[str, Any], ...] = ()
    benchmarks: tuple[Mapping[str, Any], ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    judge: Mapping[str, Any] = field(default_factory=dict)
    audit: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def seed(self) -> int:
        return self.setting("run", "seed", self.summary.get("seed", 0))

    def setting(self, table: str, key: str, default: Any = None) -> Any:
        """One setting of the recipe."""
        return self.config.get(table, {}).get(key, default)


def load_run(path: str | Path) -> RunRecord:
    """Read the run directory `path`. Raises DataError that names the missing or broken file, with a hint."""
    path = Path(path).resolve()
    if not path.is_dir():
        kind = "is a file" if path.exists() else "does not exist"
        raise DataError(f"run directory {path} {kind}", hint="give the folder that `shepherd run` printed at its end")
    text = _read(path / "config.toml", "this folder is no run directory; `shepherd run` writes one under runs/")
    try:
        config = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path / 'config.toml'} is not valid TOML: {error}", hint=AGAIN) from None
    check(config, {"*": {"*": object}}, path / "config.toml")
    finished = (path / "summary.json").exists()
    federated = "federated" in config.get("evaluation", {}).get("arms", ("federated",))
    notes: list[str] = []
    summary = _json(path / "summary.json", _SUMMARY, needed=finished)
    private = config.get("privacy", {}).get("unit", "none") != "none"  # then only what is released is read
    divided = finished and not private and not summary.get("sites")
    partition = _json(path / "partition.json", _PARTITION, needed=divided)
    labels = partition.get("labels") or {}

    def named(value: Any, shape: Any) -> Any:
        return with_labels(value, shape, labels) if labels else value

    return RunRecord(
        path=path,
        state="finished" if finished else "unfinished",
        config=config,
        config_text=text,
        summary=named(summary, _SUMMARY),
        metrics=named(_json(path / "evaluation" / "metrics.json", _METRICS, needed=finished), _METRICS),
        rounds=tuple(
            named(line, _ROUND)
            for line in _lines(
                path / "rounds.jsonl",
                _RELEASED if private else _ROUND,
                finished and federated,
                notes,
                torn=not finished,
            )
        ),
        partition=named(partition, _PARTITION),
        generations=_lines(path / "evaluation" / "generations.jsonl", _GENERATION, False, notes, torn=not finished),
        left_out=_lines(path / "evaluation" / "left_out.jsonl", _LEFT_OUT, False, notes, torn=not finished),
        benchmarks=tuple(_json(file, _BENCHMARK, needed=True) for file in sorted(path.glob("benchmarks/*.json"))),
        environment=_json(path / "env.json", {"*": object}, needed=False),
        identity=_json(path / "identity.json", {"held_out?": str}, needed=False),
        notes=tuple(notes),
        judge=judged(path / "judge" / "judge.json"),
        audit=named(_json(path / "audit.json", audit_contents.SHAPE, needed=False), audit_contents.SHAPE),
    )


def judged(file: Path) -> dict[str, Any]:
    """The contents of a judge.json, with null for what is absent; empty where there is no file. DataError as above."""
    found = _json(file, contents.SHAPE, needed=False)
    if found and found["version"] > contents.VERSION:
        raise DataError(f"{file} was written by a later version of Shepherd", hint="update, or judge the run again")
    return contents.completed(found) if found else {}


def _read(file: Path, hint: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{file} is missing", hint=hint) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text: {error}", hint=AGAIN) from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}", hint="check the path and its permissions") from None


def _json(file: Path, shape: Any, needed: bool) -> dict[str, Any]:
    if not needed and not file.exists():
        return {}
    try:
        value = json.loads(_read(file, f"the run has ended but this file is gone; {AGAIN}"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{file} is not valid JSON: {error}", hint=AGAIN) from None
    check(value, shape, file)
    return value


def _lines(file: Path, shape: Any, needed: bool, notes: list[str], torn: bool) -> tuple[dict[str, Any], ...]:
    """Read JSON lines. With `torn`, a last line that does not parse is being written: it is left out, with a note."""
    if not needed and not file.exists():
        return ()
    text = _read(file, f"the run has ended but this file is gone; {AGAIN}")
    records = []
    # Not splitlines(): JSON texts may hold U+2028 and its kin unescaped.
    lines = text.split("\n")
    for position, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            if torn and position == len(lines):
                notes.append(f"The last line of {file.name} is incomplete and is left out.")
                continue
            raise DataError(f"{file}, line {position} is not valid JSON: {error}", hint=AGAIN) from None
        check(record, shape, file, f"line {position}")
        records.append(record)
    return tuple(records)
