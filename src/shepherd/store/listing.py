"""Runs in a folder: state, progress, losses and size of each. Reads little and tolerates broken files."""

from __future__ import annotations

import json
import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shepherd.arms import registered
from shepherd.errors import UsageError
from shepherd.store import Rounds, RunDirectory, read_journal, writer_of
from shepherd.updates.privacy.publication import place_of

PARTS = ("checkpoints", "adapter", "evaluation", "report.html")


@dataclass(frozen=True)
class Entry:
    """One run.

    state: "running" while a process writes to it, "finished" with a summary, else "interrupted". rounds: committed
    ones, of `planned` (None when config.toml cannot be read). losses by arm, in nats per target token; "local" is the
    mean over the clients that trained alone; alone: their number, where they are not all. started: unix seconds.
    benchmarks: the tasks in benchmarks/.
    """

    name: str
    path: Path
    state: str
    rounds: int
    planned: int | None
    losses: Mapping[str, float] = field(default_factory=dict)
    alone: int | None = None
    bytes: int = 0
    started: float = 0.0
    writer: str = ""
    benchmarks: tuple[str, ...] = ()


def list_runs(folder: Path) -> list[Entry]:
    """The runs in `folder`, the oldest first."""
    found = [path.parent for path in folder.glob("*/config.toml")]
    return sorted(map(entry, found), key=lambda run: (run.started, run.name))


def entry(path: Path) -> Entry:
    """The entry of the run directory `path`."""
    writer, committed = writer_of(path), Rounds(place_of(path, "checkpoints")).numbers()
    finished = (path / "summary.json").exists()
    losses, alone = _losses(place_of(path, "summary.json"))
    return Entry(
        name=path.name,
        path=path,
        state="running" if writer else "finished" if finished else "interrupted",
        rounds=committed[-1] if committed else 0,
        planned=_planned(path),
        losses=losses,
        alone=alone,
        bytes=size_of(path.resolve()),
        started=_started(path),
        writer=str(writer or ""),
        benchmarks=tuple(sorted(file.stem for file in place_of(path, "benchmarks").glob("*.json"))),
    )


def usage(path: Path) -> dict[str, int]:
    """Bytes by part of a run: its regular parts, unfinished or rejected folders, and the rest."""
    path = path.resolve()
    parts = {part: size_of(path / part) for part in PARTS}
    unused = [found for pattern in (".tmp-*", ".old-*", "rejected-*") for found in path.glob(f"**/{pattern}")]
    parts["unused"] = sum(map(size_of, unused))
    parts["checkpoints"] -= sum(size_of(found) for found in unused if found.parent == path / "checkpoints")
    total = size_of(path)
    return {**parts, "other": total - sum(parts.values()), "total": total}


def delete(path: Path) -> int:
    """Delete a run; returns the bytes freed.

    Raises UsageError while a process writes to it, and for folders that only look like a run: projects may have a
    config.toml too.
    """
    if not any(place_of(path, name).is_file() for name in ("journal.jsonl", "partition.json")):
        raise UsageError(
            f"{path} has a config.toml, but neither journal nor partition: it is not deleted, it may not be a run",
            hint="delete it by hand if you are sure",
        )
    if Path.cwd().resolve().is_relative_to(path.resolve()):
        raise UsageError(f"{path} is where you are", hint="cd to another folder first")
    freed = size_of(path)
    RunDirectory(path).delete()
    return freed


def size_of(path: Path) -> int:
    """Bytes of a file or of all files in a folder, 0 where it does not exist; links count as 0 and are not followed."""
    try:
        found = os.lstat(path)
        if stat.S_ISDIR(found.st_mode):
            return sum(size_of(Path(inner.path)) for inner in os.scandir(path))
    except OSError:  # a running process may delete files meanwhile
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def _started(path: Path) -> float:
    try:
        journal = read_journal(place_of(path, "journal.jsonl")).rows
    except OSError:
        journal = ()
    return next((row["at"] for row in journal if "at" in row), (path / "config.toml").stat().st_mtime)


def _planned(path: Path) -> int | None:
    try:
        table = tomllib.loads((path / "config.toml").read_text(encoding="utf-8"))
        return int(table["federation"]["rounds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _losses(summary: Path) -> tuple[dict[str, float], int | None]:
    """The loss of each arm, of one with a model per client their mean; and the clients of "local" where not all."""
    try:
        read: Any = json.loads(summary.read_text(encoding="utf-8"))
        arms = read["arms"]
        per_client = {name for name, arm in registered().items() if arm.per_client}
        losses = {name: arm["loss"] for name, arm in arms.items() if name not in per_client and "loss" in arm}
        each = {name: [model["loss"] for model in arm.values()] for name, arm in arms.items() if name in per_client}
        some = 0 < (local := len(each.get("local", ()))) < read.get("clients", 0)
        return losses | {name: sum(m) / len(m) for name, m in each.items() if m}, local if some else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}, None
