"""The run directory: its files appear atomically, its rounds are committed or absent.

runs/<name>/config.toml, identity.json, partition.json, rounds.jsonl, journal.jsonl, privacy.jsonl, env.json,
            summary.json, report.html, checkpoints/round-0001/, adapter/, arms/NAME/, personal/, clusters/,
            evaluation/{losses.safetensors, metrics.json, generations.jsonl, rows_seen.jsonl, left_out.jsonl},
            benchmarks/TASK.json
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shepherd.errors import DataError, ResourceError, ShepherdError, UsageError, did_you_mean
from shepherd.store import lines
from shepherd.store.disk import DISK, TEMPORARY, Disk, discard, make_folders, sweep, write_whole
from shepherd.store.failures import REASONS, error_number
from shepherd.store.folders import FORMER, commit_folder, restore
from shepherd.store.lock import locked
from shepherd.store.manifest import seal_folder
from shepherd.store.rounds import Checkpoint, Rejected, Rounds, checkpoint_name
from shepherd.store.scratch import Scratch

ROUNDS, JOURNAL = "rounds.jsonl", "journal.jsonl"


@dataclass(frozen=True)
class Recovered:
    """The point from which a run can continue.

    checkpoint: the newest valid round (None: the start). rejected: newer rounds that are not valid. notes: other damage
    that was found and repaired, in sentences. lines: what is wrong with rounds.jsonl up to that round, which cannot be
    repaired, or "".
    """

    checkpoint: Checkpoint | None
    rejected: tuple[Rejected, ...]
    notes: tuple[str, ...]
    lines: str = ""


class RunDirectory:
    """A run's folder; no other code writes to it.

    Everything written here is on the medium when the call returns; otherwise a ResourceError names the file, what
    remains intact, and how to continue.
    """

    def __init__(self, path: Path, disk: Disk = DISK) -> None:
        self.path, self.disk = Path(path), disk
        self.rounds = Rounds(self.path / "checkpoints", disk)
        self._written = lines.Growing(self.path / ROUNDS)

    @classmethod
    def create(cls, out: Path, name: str, disk: Disk = DISK) -> RunDirectory:
        """Create `out/name`, or `out/name-2`, `-3` … where it exists; nothing is overwritten."""
        try:
            make_folders(disk, out)
            for number in range(1, 10_000):
                path = out / (name if number == 1 else f"{name}-{number}")
                try:
                    disk.make_folder(path)
                except FileExistsError:
                    continue
                disk.sync_folder(out)
                return cls(path, disk)
        except OSError as error:
            raise ResourceError(
                f"cannot make a run directory in {out}: {error.strerror}", hint="choose another place with --out"
            ) from None
        raise ResourceError(f"{out} holds too many runs called {name}", hint="choose another run.name")

    def lock(self) -> AbstractContextManager[None]:
        """Hold the only write lock within the block. Raises UsageError that names another writer."""
        return locked(self.path, disk=self.disk)

    def delete(self) -> None:
        """Delete the run. Raises UsageError while another process writes to it."""
        with self._explained(self.path):
            with self.lock():
                if sys.platform != "win32":
                    discard(self.disk, self.path)
            if sys.platform == "win32":  # where a folder with an open file cannot be deleted
                discard(self.disk, self.path)

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Write a file atomically."""
        target = self.path / name
        with self._explained(target):
            make_folders(self.disk, target.parent)
            write_whole(self.disk, target, data)
        return target

    def write_text(self, name: str, text: str) -> Path:
        return self.write_bytes(name, text.encode("utf-8"))

    def write_json(self, name: str, value: Any) -> Path:
        return self.write_text(name, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    def write_lines(self, name: str, rows: Iterable[Any]) -> Path:
        return self.write_text(name, b"".join(map(lines.line_of, rows)).decode("utf-8"))

    def append(self, name: str, row: Any) -> None:
        """Add a line to a JSON Lines file."""
        with self._explained(self.path / name):
            lines.append(self.disk, self.path / name, lines.line_of(row))

    def journal(self, what: str, **details: Any) -> None:
        """Append an event to the journal: {"at": unix seconds, "what": …, …, "crc": …}."""
        with self._explained(self.path / JOURNAL):
            row = {"at": round(time.time(), 3), "what": what, **details}
            lines.append(self.disk, self.path / JOURNAL, lines.journal_line(row))

    @contextmanager
    def commit_folder(self, name: str) -> Iterator[Path]:
        """A folder that is filled under a hidden name and appears, with its manifest, when the block ends without an
        error."""
        with self._explained(self.path / name), commit_folder(self.path / name, self.disk) as folder:
            yield folder
            seal_folder(self.disk, folder)

    @contextmanager
    def commit_round(self, number: int, line: Mapping[str, Any], **facts: Any) -> Iterator[Path]:
        """A folder to fill with the state after round `number`; committed when the block ends.

        `line` is its line in rounds.jsonl, read when the block ends and written just before the round becomes
        visible; the manifest holds the extent of that file. After an error neither exists.
        """
        metrics = self.path / ROUNDS
        before = metrics.stat().st_size if metrics.exists() else 0

        def seal() -> dict[str, Any]:
            lines.append(self.disk, metrics, lines.line_of(line))
            return {**facts, ROUNDS: self._written.mark()}

        with self._explained(self.rounds.folder / checkpoint_name(number)):
            try:
                with self.rounds.commit(number, seal) as folder:
                    yield folder
            except BaseException:
                if number not in self.rounds.numbers() and metrics.exists():
                    with suppress(OSError):
                        self.disk.cut(metrics, before)
                    self._written = lines.Growing(metrics)
                raise

    def scratch(self) -> Scratch:
        """An anonymous file of this process; a ResourceError says when it cannot be created, written or read."""
        explained = partial(self._explained, self.path / f"{TEMPORARY}updates")
        with explained("written"):
            return Scratch(self.disk, self.disk.scratch(self.path), explained)

    def prune_checkpoints(self, keep: int, best: int) -> None:
        """Delete all but the last `keep` checkpoints (at least two) and that of round `best`."""
        with self._explained(self.rounds.folder):
            self.rounds.keep(keep, best)

    def recover(self) -> Recovered:
        """Return the directory to its newest valid round; the caller holds the lock. May be repeated.

        Unfinished work of former processes is deleted, a torn last line of the journal truncated, rejected rounds are
        put aside (not deleted), and rounds.jsonl ends with the line of the returned round.
        """
        with self._explained(self.path):
            notes = [f"unfinished {name} was removed" for name in self._sweep()]
            journal = lines.mend_journal(self.disk, self.path / JOURNAL)
            if journal.torn:
                notes.append(f"{JOURNAL}: an unfinished last line of {journal.torn} bytes was cut off")
            notes += [f"{JOURNAL}, line {number} {reason}" for number, reason in journal.damaged]
            checkpoint, rejected = self.rounds.newest()
            for name in self.rounds.rewind(checkpoint.round if checkpoint else 0):
                notes.append(f"{name} was put aside")
            there = checkpoint.facts.get(ROUNDS) if checkpoint else lines.START
            wrong = lines.cut_to(self.disk, self.path / ROUNDS, there) if there else ""
            self._written = lines.Growing(self.path / ROUNDS)
            return Recovered(checkpoint, rejected, tuple(notes), wrong)

    def _sweep(self) -> list[str]:
        """Delete unfinished work; a folder that was being replaced gets its former content back."""
        found: list[str] = []
        for folder in (self.path, *sorted(path for path in self.path.iterdir() if path.is_dir())):
            for former in sorted(folder.glob(f"{FORMER}*")):
                restore(self.disk, folder / former.name.removeprefix(FORMER))
            found += sweep(self.disk, folder)
        return found

    def explained(self, name: str) -> AbstractContextManager[None]:
        """A context for writing the run's file `name` by other means; disk failures are raised as ResourceError."""
        return self._explained(self.path / name)

    @contextmanager
    def _explained(self, file: Path, verb: str = "written") -> Iterator[None]:
        """Raise a ResourceError for a failing disk: the file not written (or read), what is intact, how to go on."""
        try:
            yield
        except ShepherdError:
            raise
        except Exception as error:
            number = error_number(error)
            if number is not None and number in REASONS:
                raise self._failure(number, Path(getattr(error, "filename", None) or file), verb) from error
            if number is not None and not self.path.is_dir():
                raise ResourceError(
                    f"{self.path} is gone: it was deleted or moved while the run wrote to it",
                    hint="put it back, or run again",
                ) from error
            raise

    def _failure(self, number: int, file: Path, verb: str) -> ResourceError:
        reason, mend = REASONS[number]
        committed = self.rounds.numbers()
        intact = f"rounds up to {committed[-1]} are committed and intact" if committed else "no round was committed yet"
        again = f"then: shepherd resume {self.path}" if committed else "then run it again, or elsewhere with --out"
        return ResourceError(f"{reason}: {file} was not {verb}; {intact}", hint=f"{mend}, {again}")


def open_run(path: str | Path, needs: str = "config.toml") -> Path:
    """The folder of an existing run. Raises UsageError, with the nearest name, when `needs` is not in it."""
    folder = Path(path)
    if not folder.is_dir():
        near = did_you_mean(folder.name, [p.name for p in folder.parent.glob("*") if p.is_dir()])
        raise UsageError(f"no run directory at {folder}.{near}", hint="give the folder that `shepherd run` printed")
    if not (folder / needs).exists():
        hint = f"shepherd resume {folder} continues a stopped run" if needs != "identity.json" else ""
        raise UsageError(f"{folder} has no {needs}: it is not a run directory, or the run did not get that far", hint)
    return folder


def read_json(path: Path) -> Mapping[str, Any]:
    """Read a JSON object from a file. Raises DataError, which names the file, where it is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing", hint=_RESTORE) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", hint=_RESTORE) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}", hint=_RESTORE) from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a table, found {type(value).__name__}", hint=_RESTORE)
    return value


_RESTORE = "restore the file from a copy, or repeat the run"
