"""The run directory: its files appear atomically, its rounds are committed or absent.

runs/<name>/config.toml, identity.json, partition.json, rounds.jsonl, journal.jsonl, privacy.jsonl, env.json,
            summary.json, report.html, checkpoints/round-0001/, adapter/, arms/NAME/, personal/, clusters/,
            evaluation/{losses.safetensors, metrics.json, generations.jsonl, rows_seen.jsonl, left_out.jsonl},
            benchmarks/TASK.json, privacy.jsonl, privacy.json, audit.json

A run with differential privacy has in private/ what `updates/privacy/publication.py` withholds, under the same names.
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
from typing import Any, cast

from shepherd.errors import ResourceError, ShepherdError
from shepherd.store import lines
from shepherd.store.disk import DISK, TEMPORARY, Disk, OwnersDisk, discard, make_folders, sweep, write_whole
from shepherd.store.failures import REASONS, error_number
from shepherd.store.folders import FORMER, commit_folder, restore
from shepherd.store.lock import locked
from shepherd.store.manifest import seal_folder
from shepherd.store.rounds import Checkpoint, Rejected, Rounds, checkpoint_name
from shepherd.store.scratch import Scratch
from shepherd.updates.privacy.publication import KEYS, PRIVATE, RELEASED, class_of, released, withholds

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
        self._owners = cast("Disk", OwnersDisk(disk))
        self._arrange(withholds(self.path))

    def _arrange(self, withholds: bool) -> None:
        self.withholds = withholds
        self.rounds = Rounds(*self._place("checkpoints"))
        self._written = lines.Growing(self._place(ROUNDS)[0])

    def withhold(self) -> None:
        """From now on write to private/ what may not be published. Called before anything else of a run is written."""
        with self._explained(self.path / PRIVATE):
            self._make_private()
        self._arrange(True)

    def _make_private(self) -> None:
        make_folders(self.disk, self.path / PRIVATE)
        self.disk.restrict(self.path / PRIVATE)

    def _place(self, name: str) -> tuple[Path, Disk]:
        """Where `name` is written as a whole, and the disk that writes it."""
        if self.withholds and class_of(name) != RELEASED:
            return self.path / PRIVATE / name, self._owners
        return self.path / name, self.disk

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
        """Write a file atomically; of a run that withholds, to private/ unless it is released. Returns its path."""
        return self._write(*self._place(name), data)

    def write_private(self, name: str, data: bytes) -> Path:
        """Write private/NAME, of any run, atomically: only the owner reads it."""
        with self._explained(self.path / PRIVATE / name):
            self._make_private()
        return self._write(self.path / PRIVATE / name, self._owners, data)

    def _write(self, target: Path, disk: Disk, data: bytes) -> Path:
        with self._explained(target):
            make_folders(disk, target.parent)
            write_whole(disk, target, data)
        return target

    def write_text(self, name: str, text: str) -> Path:
        return self.write_bytes(name, text.encode("utf-8"))

    def write_json(self, name: str, value: Any) -> Path:
        """Write a JSON object; of a run that withholds, its released keys at the usual place after the whole."""
        target = self.write_bytes(name, _json(value))
        if self.withholds and name in KEYS:
            self._write(self.path / name, self.disk, _json(released(name, value)))
        return target

    def write_lines(self, name: str, rows: Iterable[Any]) -> Path:
        return self.write_bytes(name, b"".join(map(lines.line_of, rows)))

    def append(self, name: str, row: Any) -> None:
        """Add a line to a JSON Lines file."""
        self._append(name, lines.line_of(row))

    def _append(self, name: str, line: bytes) -> None:
        file, disk = self._place(name)
        with self._explained(file):
            place = self.path / PRIVATE if disk is self._owners else self.path
            if place.is_dir():  # one that was deleted under the run does not come back without what was in it
                make_folders(disk, file.parent)
            lines.append(disk, file, line)

    def journal(self, what: str, **details: Any) -> None:
        """Append an event to the journal: {"at": unix seconds, "what": …, …, "crc": …}."""
        row = {"at": round(time.time(), 3), "what": what, **details}
        self._append(JOURNAL, lines.journal_line(row))

    @contextmanager
    def commit_folder(self, name: str) -> Iterator[Path]:
        """A folder that is filled under a hidden name and appears, with its manifest, when the block ends well."""
        target, disk = self._place(name)
        with self._explained(target), commit_folder(target, disk) as folder:
            yield folder
            seal_folder(disk, folder)

    @contextmanager
    def commit_round(self, number: int, line: Mapping[str, Any], **facts: Any) -> Iterator[Path]:
        """A folder to fill with the state after round `number`; committed when the block ends.

        `line` is its line in rounds.jsonl, read when the block ends and written just before the round becomes
        visible; the manifest holds the extent of that file. After an error neither exists. Of a run that withholds,
        the released keys of the line follow at the usual place.
        """
        metrics, disk = self._place(ROUNDS)
        before = metrics.stat().st_size if metrics.exists() else 0

        def seal() -> dict[str, Any]:
            lines.append(disk, metrics, lines.line_of(line))
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
            if self.withholds:
                lines.append(self.disk, self.path / ROUNDS, lines.line_of(released(ROUNDS, line)))

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
            journal = lines.mend_journal(self.disk, self._place(JOURNAL)[0])
            if journal.torn:
                notes.append(f"{JOURNAL}: an unfinished last line of {journal.torn} bytes was cut off")
            notes += [f"{JOURNAL}, line {number} {reason}" for number, reason in journal.damaged]
            checkpoint, rejected = self.rounds.newest()
            for name in self.rounds.rewind(checkpoint.round if checkpoint else 0):
                notes.append(f"{name} was put aside")
            there = checkpoint.facts.get(ROUNDS) if checkpoint else lines.START
            metrics, disk = self._place(ROUNDS)
            wrong = lines.cut_to(disk, metrics, there) if there else ""
            self._written = lines.Growing(metrics)
            if self.withholds and metrics.exists() and not wrong:
                rows = map(json.loads, metrics.read_bytes().splitlines())
                write_whole(
                    self.disk, self.path / ROUNDS, b"".join(lines.line_of(released(ROUNDS, row)) for row in rows)
                )
            return Recovered(checkpoint, rejected, tuple(notes), wrong)

    def _sweep(self) -> list[str]:
        """Delete unfinished work; a folder that was being replaced gets its former content back."""
        found: list[str] = []
        roots = (self.path, self.path / PRIVATE) if self.withholds else (self.path,)
        for folder in (*roots, *sorted(path for root in roots for path in root.iterdir() if path.is_dir())):
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


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
