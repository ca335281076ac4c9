"""The run directory: the interface between commands. Files appear whole or not at all.

runs/<name>/config.toml, partition.json, rounds.jsonl, journal.jsonl, env.json, checkpoints/round-0001/, adapter/,
            evaluation/{metrics.json, generations.jsonl}, summary.json, report.html
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shepherd.errors import ResourceError, UsageError, did_you_mean


class RunDirectory:
    """A run's folder, and the only code that writes to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, out: Path, name: str) -> RunDirectory:
        """Make `out/name`, or `out/name-2`, `-3` … when that exists already; nothing is overwritten."""
        try:
            out.mkdir(parents=True, exist_ok=True)
            for number in range(1, 10_000):
                path = out / (name if number == 1 else f"{name}-{number}")
                try:
                    path.mkdir()
                except FileExistsError:
                    continue
                return cls(path)
        except OSError as error:
            raise ResourceError(
                f"cannot make a run directory in {out}: {error.strerror}", hint="choose another place with --out"
            ) from None
        raise ResourceError(f"{out} holds too many runs called {name}", hint="choose another run.name")

    def write_text(self, name: str, text: str) -> Path:
        """Write a file whole or not at all."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.new")
        with open(beside, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
        return target

    def write_json(self, name: str, value: Any) -> Path:
        return self.write_text(name, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    def write_lines(self, name: str, rows: Iterable[Any]) -> Path:
        return self.write_text(name, "".join(_line(row) for row in rows))

    def append(self, name: str, row: Any) -> None:
        """Add a line to a JSON Lines file."""
        with open(self.path / name, "a", encoding="utf-8", newline="\n") as file:
            file.write(_line(row))
            file.flush()
            os.fsync(file.fileno())

    def journal(self, what: str, **details: Any) -> None:
        """What happened, in order: {"at": unix seconds, "what": …, …}."""
        self.append("journal.jsonl", {"at": round(time.time(), 3), "what": what, **details})

    def commit_folder(self, name: str) -> _Pending:
        """A folder that is filled under another name and appears when the `with` block ends without an error."""
        return _Pending(self.path / name)

    def prune_checkpoints(self, keep: int, best: int) -> None:
        """Delete all but the last `keep` checkpoints and that of round `best`."""
        folders = sorted((self.path / "checkpoints").glob("round-*"), key=lambda f: int(f.name.removeprefix("round-")))
        for folder in folders[:-keep]:
            if folder.name != checkpoint_name(best):
                shutil.rmtree(folder)


class _Pending:
    def __init__(self, target: Path) -> None:
        self.target = target
        self.beside = target.with_name(f".{target.name}.new")

    def __enter__(self) -> Path:
        shutil.rmtree(self.beside, ignore_errors=True)
        self.beside.mkdir(parents=True)
        return self.beside

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            shutil.rmtree(self.beside, ignore_errors=True)
            return
        before = self.target.with_name(f".{self.target.name}.old")
        shutil.rmtree(before, ignore_errors=True)
        if self.target.exists():
            os.replace(self.target, before)
        os.replace(self.beside, self.target)
        shutil.rmtree(before, ignore_errors=True)


def checkpoint_name(round_number: int) -> str:
    return f"round-{round_number:04d}"


def open_run(path: str | Path, needs: str = "config.toml") -> Path:
    """The folder of an existing run. Raises UsageError, with the nearest name, when `needs` is not in it."""
    folder = Path(path)
    if not folder.is_dir():
        near = did_you_mean(folder.name, [p.name for p in folder.parent.glob("*") if p.is_dir()])
        raise UsageError(f"no run directory at {folder}.{near}", hint="give the folder that `shepherd run` printed")
    if not (folder / needs).exists():
        raise UsageError(f"{folder} has no {needs}: it is not a run directory, or the run did not get that far")
    return folder


def read_json(path: Path) -> Mapping[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _line(row: Any) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
