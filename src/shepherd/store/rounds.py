"""Committed rounds: `checkpoints/round-0007/` counts if and only if it has a valid MANIFEST.json.

    fill .tmp-round-0007-… -> fsync each file -> MANIFEST.json -> fsync it and the folder -> rename -> fsync the parent

A round is acknowledged only after the last step. Its manifest names every file with sha256 and size, and the manifest
of the previous round: a round that is not exactly as written is rejected with its reason, and the previous one is used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from shepherd.store.disk import DISK, Disk, discard, make_folders, remove_tree, sweep, temporary
from shepherd.store.manifest import (
    FILE_NAME,
    LITTER,
    MANIFEST,
    SCHEMA,
    Damage,
    check_file,
    encode,
    entry_of,
    plain_file,
    read_manifest,
)

ASIDE = "rejected-"
"""The prefix under which a folder that a resumption rejected is kept once; nothing reads it."""

_FOLDER_NAME = re.compile(r"round-(\d{4,9})")


@dataclass(frozen=True)
class Checkpoint:
    """A committed round, verified: its files {name: sha256}, the facts given at its commit, and its digest (the sha256
    of its manifest, which the next round refers to)."""

    round: int
    folder: Path
    digest: str
    files: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


class Rejected(NamedTuple):
    """A folder that is named like a round but is not valid, and the reason."""

    name: str
    reason: str


class Found(NamedTuple):
    """The newest valid round, or None, and the newer ones that were rejected."""

    checkpoint: Checkpoint | None
    rejected: tuple[Rejected, ...]


class Rounds:
    """The folder of a run's committed rounds. Reading changes nothing."""

    def __init__(self, folder: Path, disk: Disk = DISK) -> None:
        self.folder, self.disk = folder, disk

    @contextmanager
    def commit(
        self, number: int, facts: Callable[[], Mapping[str, Any]] | Mapping[str, Any] | None = None
    ) -> Iterator[Path]:
        """A folder to fill with regular files; the end of the block commits the round durably, or raises an error and
        leaves nothing of it visible.

        Names are at most 64 of `[A-Za-z0-9._-]`, not hidden. `facts` goes into the manifest; a function is called when
        the files are on the medium. Raises ValueError unless the number is above all others: rewind first.
        """
        if self.numbers() and number <= max(self.numbers()):
            raise ValueError(f"round {number} cannot follow round {max(self.numbers())}: rewind first")
        target = self.folder / checkpoint_name(number)
        pending = temporary(target)
        make_folders(self.disk, self.folder)
        try:
            remove_tree(self.disk, pending)  # of a process that had the same id
            self.disk.make_folder(pending)
            yield pending
            self._seal(pending, number, facts)
            self.disk.rename(pending, target)
            try:
                self.disk.sync_folder(self.folder)
            except OSError:
                # Complete, but perhaps gone after a power cut: not acknowledged, so it must not be visible either.
                self.disk.rename(target, pending)
                raise
        except BaseException:
            with suppress(OSError):
                remove_tree(self.disk, pending)
            raise

    def newest(self) -> Found:
        """The newest round that is valid in every byte. Symbolic links, foreign files, names with a path, wrong sizes
        and hashes, and a broken chain reject a round; the reason names the file."""
        rejected: list[Rejected] = []
        for name in self._names():
            try:
                return Found(self.verify(name), tuple(rejected))
            except Damage as damage:
                rejected.append(Rejected(name, str(damage)))
        return Found(None, tuple(rejected))

    def check_all(self) -> tuple[tuple[Checkpoint, ...], tuple[Rejected, ...]]:
        """All rounds, newest first: the valid and the rejected ones."""
        valid, rejected = [], []
        for name in self._names():
            try:
                valid.append(self.verify(name))
            except Damage as damage:
                rejected.append(Rejected(name, str(damage)))
        return tuple(valid), tuple(rejected)

    def verify(self, name: str) -> Checkpoint:
        """The checkpoint of that name, every file verified. Raises ValueError with the first damage."""
        try:
            return self._verify(name)
        except OSError as error:
            raise Damage(f"{Path(error.filename or name).name} cannot be read: {error.strerror}") from None

    def _verify(self, name: str) -> Checkpoint:
        number, folder = _number(name), self.folder / name
        if number is None:
            raise Damage("is not named like a round")
        manifest, digest = read_manifest(folder)
        if manifest["round"] != number:
            raise Damage(f"{MANIFEST} belongs to round {manifest['round']}")
        files, before = manifest["files"], manifest["after"]
        for found in sorted(os.listdir(folder)):
            if found not in files and found != MANIFEST and not LITTER.fullmatch(found):
                raise Damage(f"{found} is not in the manifest")
        for file, entry in files.items():
            check_file(folder, file, entry)
        if before and self._digest_of(before) not in ("", manifest["prev"]):
            raise Damage(f"does not follow the present {checkpoint_name(before)}")
        return Checkpoint(number, folder, digest, {k: v["sha256"] for k, v in files.items()}, manifest["facts"])

    def _digest_of(self, number: int) -> str:
        """The digest of a round's manifest; "" where that is missing or damaged, which spares its successor."""
        try:
            return read_manifest(self.folder / checkpoint_name(number))[1]
        except (Damage, OSError):
            return ""

    def numbers(self) -> tuple[int, ...]:
        """The rounds that have a folder, valid or not, in order."""
        return tuple(sorted(number for name in self._names() if (number := _number(name)) is not None))

    def keep(self, last: int, best: int = 0) -> None:
        """Delete all but the last rounds and round `best`. At least two stay: one may turn out to be damaged."""
        numbers = self.numbers()
        for number in numbers[: -max(2, last)]:
            if number != best:
                discard(self.disk, self.folder / checkpoint_name(number))

    def rewind(self, number: int) -> tuple[str, ...]:
        """Make `number` the newest round (0: none). Later ones are not deleted but put aside, under the returned
        names."""
        aside = []
        for later in [name for name in self._names() if (n := _number(name)) is None or n > number]:
            away = self.folder / (ASIDE + later)
            discard(self.disk, away)
            self.disk.rename(self.folder / later, away)
            aside.append(away.name)
        if aside:
            self.disk.sync_folder(self.folder)
        return tuple(aside)

    def sweep(self) -> tuple[str, ...]:
        """Delete unfinished work of former processes. Only for the holder of the lock."""
        return sweep(self.disk, self.folder)

    def _names(self) -> list[str]:
        """All names that begin like a round, newest first."""
        names = [name for name in os.listdir(self.folder) if name.startswith("round-")] if self.folder.is_dir() else []
        return sorted(names, key=lambda name: (_number(name) or -1, name), reverse=True)

    def _seal(
        self, folder: Path, number: int, facts: Callable[[], Mapping[str, Any]] | Mapping[str, Any] | None
    ) -> None:
        """Sync the files, write the manifest that names them, sync both."""
        files = {}
        for name in sorted(os.listdir(folder)):
            if not FILE_NAME.fullmatch(name) or name == MANIFEST:
                raise ValueError(f"a file of a round cannot be called {name!r}")
            plain_file(folder / name)
            self.disk.sync(folder / name)
            files[name] = entry_of(folder / name)
        if not files:
            raise ValueError(f"round {number} has no files")
        before, prev = self._predecessor()
        given = facts() if callable(facts) else facts or {}
        manifest = {"schema": SCHEMA, "round": number, "files": files, "after": before, "prev": prev, "facts": given}
        self.disk.write(folder / MANIFEST, encode(manifest))
        self.disk.sync(folder / MANIFEST)
        self.disk.sync_folder(folder)

    def _predecessor(self) -> tuple[int, str]:
        """The newest round with a valid manifest, and its digest; (0, "") for the first round."""
        for number in reversed(self.numbers()):
            if digest := self._digest_of(number):
                return number, digest
        return 0, ""


def checkpoint_name(round_number: int) -> str:
    """`round-0007`."""
    return f"round-{round_number:04d}"


def _number(name: str) -> int | None:
    match = _FOLDER_NAME.fullmatch(name)
    return int(match[1]) if match and checkpoint_name(int(match[1])) == name else None
