"""What a site keeps between messages, in its folder only: a record of each run, private tensors of the last rounds.

    runs/<run>/card.json           the run card
    runs/<run>/run.json            its digest, rows and digest as stated, last attempt
    runs/<run>/decision.json       the verdict of a person on the card; any process of the site's owner may write it
    runs/<run>/states.json         the versions of the private state: round, row, file
    runs/<run>/state-<n>.safetensors
    audit.jsonl                    every message with the verdict on it; it stays at the site
    salt                           32 random bytes of the digest of the rows

A version belongs to a round: the state after that round's training, at the row of the client's row order at which it
ended. Kept are the version from which the newest training started, the one before it, and the newest; a version that
is not there is an error, never a fresh start.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import load

from shepherd.errors import UsageError
from shepherd.federation.cards import RUN
from shepherd.federation.verdicts import WAITING
from shepherd.model.arrays import to_bytes
from shepherd.store.disk import DISK, Disk, make_folders, write_whole
from shepherd.store.lines import append, journal_line
from shepherd.store.lock import locked, writer_of
from shepherd.types import Tensors

STATES, RECORD, CARD, AUDIT, SALT = "states.json", "run.json", "card.json", "audit.jsonl", "salt"
DECISION = "decision.json"


class StateLost(Exception):
    """The private state of a round is not there."""


class Unwritten(OSError):
    """The disk refuses what must be on it before an answer leaves; the same message may be tried again."""


class Place(Protocol):
    """Named bytes that outlast the process, each written as a whole."""

    def read(self, name: str) -> bytes | None:
        """The bytes of a name; None where there are none."""

    def write(self, name: str, data: bytes) -> None:
        """Put bytes in the place of those that were there, atomically."""

    def remove(self, name: str) -> None:
        """Remove a name that may be there."""

    def append(self, name: str, line: bytes) -> None:
        """Add a line."""

    def folders(self, name: str) -> list[str]:
        """The folders in a folder."""


class Folder:
    """The place of a real site: a folder, private to its owner."""

    def __init__(self, path: Path, disk: Disk = DISK) -> None:
        self.path, self.disk, self._closed = path, disk, False

    def read(self, name: str) -> bytes | None:
        """The bytes of a file; None where there is none."""
        file = self.path / name
        return file.read_bytes() if file.is_file() else None

    def write(self, name: str, data: bytes) -> None:
        """Write a file as a whole."""
        file = self.path / name
        with _explained():
            self._make(file.parent)
            write_whole(self.disk, file, data)

    def remove(self, name: str) -> None:
        """Delete a file."""
        if (self.path / name).exists():
            self.disk.remove(self.path / name)

    def append(self, name: str, line: bytes) -> None:
        """Append a line durably."""
        with _explained():
            self._make(self.path)
            append(self.disk, self.path / name, line)

    def folders(self, name: str) -> list[str]:
        """The folders in a folder; none where it is not there."""
        found = self.path / name
        return sorted(path.name for path in found.iterdir() if path.is_dir()) if found.is_dir() else []

    def _make(self, folder: Path) -> None:
        make_folders(self.disk, self.path)
        if not self._closed:  # also one that was there, and was open to others
            os.chmod(self.path, 0o700)
            self._closed = True
        make_folders(self.disk, folder)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unwritten(error.errno, error.strerror or type(error).__name__, error.filename) from error


@contextmanager
def identity_lock(folder: Path, name: str) -> Iterator[None]:
    """Hold the identity of a site. Raises UsageError where another process on this machine holds it."""
    try:
        with locked(folder):
            yield
    except UsageError:
        raise UsageError(
            f"another process is the site {name}: {writer_of(folder) or 'it has just ended'}",
            hint="a site is one process; stop the other one, or make another site with its own folder and name",
        ) from None


class SiteStore:
    """A site's records of its runs, by run id. watch: takes each line of the log, once it is written."""

    def __init__(self, place: Place, watch: Callable[[Mapping[str, Any]], None] = lambda line: None) -> None:
        self.place, self.watch = place, watch
        self._records: dict[str, dict[str, Any]] = {}

    def record(self, run: str) -> Mapping[str, Any]:
        """What the site noted of a run; empty for one that it does not know."""
        if run not in self._records:
            found = self._json(self._name(run, RECORD), {})
            if not found:  # nothing is kept of the names that a message may make up
                return {}
            self._records[run] = found
        return self._records[run]

    def runs(self) -> list[str]:
        """The runs of which the site keeps anything."""
        return self.place.folders("runs")

    def note(self, run: str, **values: Any) -> None:
        """Add to the record of a run, durably."""
        changed = {**self.record(run), **values}
        self.place.write(self._name(run, RECORD), json.dumps(changed, sort_keys=True).encode())
        self._records[run] = changed

    def card(self, run: str) -> bytes | None:
        """The card that a run has offered first."""
        return self.place.read(self._name(run, CARD))

    def keep_card(self, run: str, card: bytes) -> None:
        """Keep the card of a run."""
        self.place.write(self._name(run, CARD), card)

    def decide(self, run: str, card: str, verdict: str) -> None:
        """Keep the verdict of a person, ADMITTED or DECLINED, on the card with this digest."""
        found = {"card": card, "verdict": verdict, "time": datetime.now().isoformat(timespec="seconds")}
        self.place.write(self._name(run, DECISION), json.dumps(found, sort_keys=True).encode())

    def decision(self, run: str, card: str) -> str:
        """The verdict of a person on this card, WAITING before there is one.

        Read from the file at each call: the person decides in another process than the one that holds the identity.
        """
        found = self._json(self._name(run, DECISION), {})
        return str(found["verdict"]) if found.get("card") == card else WAITING

    def salt(self) -> bytes:
        """The site's random bytes, which make the digest of its rows a number of no meaning to others."""
        found = self.place.read(SALT)
        if found is None:
            found = secrets.token_bytes(32)
            self.place.write(SALT, found)
        return found

    def audit(self, **values: Any) -> None:
        """Add a line to the site's own log."""
        self.place.append(AUDIT, journal_line(values))
        self.watch(values)

    def state(self, run: str, round_number: int, row: int) -> Tensors:
        """The private tensors after the training of a round that ended at `row`; none before any round (0).

        Raises StateLost where they are not there, or ended at another row.
        """
        if round_number == 0 and row == 0:
            return {}
        for version in self._versions(run):
            if version["round"] == round_number and version["row"] == row:
                return self._tensors(run, version)
        raise StateLost

    def keep(self, run: str, round_number: int, row: int, counted: int, tensors: Tensors) -> None:
        """Keep the state after a round that started from the state of round `counted`."""
        old = self._versions(run)
        earlier = [v for v in old if v["round"] != round_number]
        until = [v for v in earlier if v["round"] <= counted][-2:]
        file = ""
        if tensors:
            used = {v["file"] for v in old}
            file = next(name for n in range(len(used) + 1) if (name := f"state-{n}.safetensors") not in used)
            self.place.write(self._name(run, file), to_bytes(tensors))
        new = {"round": round_number, "row": row, "file": file, "names": list(tensors)}
        kept = sorted([*until, new], key=lambda v: v["round"])
        self.place.write(self._name(run, STATES), json.dumps(kept).encode())
        for name in {v["file"] for v in old} - {v["file"] for v in kept} - {""}:
            self.place.remove(self._name(run, name))

    def _versions(self, run: str) -> list[dict[str, Any]]:
        return self._json(self._name(run, STATES), [])

    def _tensors(self, run: str, version: Mapping[str, Any]) -> dict[str, np.ndarray]:
        if not version["file"]:
            return {}
        data = self.place.read(self._name(run, version["file"]))
        if data is None:
            raise StateLost
        arrays = load(data)
        return {name: arrays[name] for name in version["names"]}  # in the order in which training has them

    def _json(self, name: str, default: Any) -> Any:
        data = self.place.read(name)
        return json.loads(data) if data is not None else default

    @staticmethod
    def _name(run: str, file: str) -> str:
        assert re.fullmatch(RUN, run), "a run's id names a folder"
        return f"runs/{run}/{file}"
