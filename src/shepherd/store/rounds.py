"""Committed rounds: `checkpoints/round-0007/` counts if, and only if, it stands there with a valid MANIFEST.json.

    fill .tmp-round-0007-… -> fsync each file -> MANIFEST.json -> fsync it and the folder -> rename -> fsync the parent

Only after the last step is the round acknowledged. The manifest names every file with its sha256 and size, and the
manifest of the round before it: what is not exactly as written is rejected by name, and the round before it is taken.
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
"""A folder that stood in the way of a resumed run is kept once under this prefix; nothing reads it."""

_FOLDER_NAME = re.compile(r"round-(\d{4,9})")


@dataclass(frozen=True)
class Checkpoint:
    """A committed round, verified: the folder's files {name: sha256}, what was said at its commit, and its digest
    (the sha256 of its manifest, by which the next round names it)."""

    round: int
    folder: Path
    digest: str
    files: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


class Rejected(NamedTuple):
    """A folder that looks like a round and is none, and why."""

    name: str
    reason: str


class Found(NamedTuple):
    """The newest valid round, or None, and every one that had to be passed over on the way to it."""

    checkpoint: Checkpoint | None
    rejected: tuple[Rejected, ...]


class Rounds:
    """The folder that holds a run's committed rounds. Reading changes nothing."""

    def __init__(self, folder: Path, disk: Disk = DISK) -> None:
        self.folder, self.disk = folder, disk

    @contextmanager
    def commit(
        self, number: int, facts: Callable[[], Mapping[str, Any]] | Mapping[str, Any] | None = None
    ) -> Iterator[Path]:
        """A folder to fill with plain files; when the block ends the round is committed, durably, or an error is
        raised and nothing of it is visible.

        Names are `[A-Za-z0-9._-]`, at most 64, not hidden. `facts` goes into the manifest; a function is called when
        the files are on the medium. Raises ValueError when the number is not the next: what lies there has to be
        rewound first.
        """
        if self.numbers() and number <= max(self.numbers()):
            raise ValueError(f"round {number} cannot follow round {max(self.numbers())}: rewind first")
        target = self.folder / checkpoint_name(number)
        pending = temporary(target)
        make_folders(self.disk, self.folder)
        try:
            remove_tree(self.disk, pending)  # of a process that had our number
            self.disk.make_folder(pending)
            yield pending
            self._seal(pending, number, facts)
            self.disk.rename(pending, target)
            try:
                self.disk.sync_folder(self.folder)
            except OSError:
                # Whole, but perhaps gone after a power cut: not acknowledged, so it must not be seen either.
                self.disk.rename(target, pending)
                raise
        except BaseException:
            with suppress(OSError):
                remove_tree(self.disk, pending)
            raise

    def newest(self) -> Found:
        """The newest round that is valid in every byte. Symbolic links, foreign files, names that lead elsewhere,
        wrong sizes and hashes and a broken chain reject a round; the reason says which file it was."""
        rejected: list[Rejected] = []
        for name in self._names():
            try:
                return Found(self.verify(name), tuple(rejected))
            except Damage as damage:
                rejected.append(Rejected(name, str(damage)))
        return Found(None, tuple(rejected))

    def check_all(self) -> tuple[tuple[Checkpoint, ...], tuple[Rejected, ...]]:
        """Every round that is kept, newest first: the valid ones and the others."""
        valid, rejected = [], []
        for name in self._names():
            try:
                valid.append(self.verify(name))
            except Damage as damage:
                rejected.append(Rejected(name, str(damage)))
        return tuple(valid), tuple(rejected)

    def verify(self, name: str) -> Checkpoint:
        """The checkpoint of that name with every file read. Raises ValueError with the first thing that is wrong."""
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
            raise Damage(f"does not follow the {checkpoint_name(before)} that lies beside it")
        return Checkpoint(number, folder, digest, {k: v["sha256"] for k, v in files.items()}, manifest["facts"])

    def _digest_of(self, number: int) -> str:
        """The digest of a round's manifest, "" when it is gone or damaged: that is its own affair, not its heir's."""
        try:
            return read_manifest(self.folder / checkpoint_name(number))[1]
        except (Damage, OSError):
            return ""

    def numbers(self) -> tuple[int, ...]:
        """The rounds that have a folder, whole or not, in order."""
        return tuple(sorted(number for name in self._names() if (number := _number(name)) is not None))

    def keep(self, last: int, best: int = 0) -> None:
        """Delete all but the last rounds and round `best`. Two stay in any case: one may turn out to be damaged."""
        numbers = self.numbers()
        for number in numbers[: -max(2, last)]:
            if number != best:
                discard(self.disk, self.folder / checkpoint_name(number))

    def rewind(self, number: int) -> tuple[str, ...]:
        """Make `number` the newest round (0: none). What lies after it is not deleted but put aside, under names that
        are returned."""
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
        """Delete what former processes did not finish. Only for the one that holds the lock."""
        return sweep(self.disk, self.folder)

    def _names(self) -> list[str]:
        """Everything that looks like a round, newest first."""
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
        said = facts() if callable(facts) else facts or {}
        manifest = {"schema": SCHEMA, "round": number, "files": files, "after": before, "prev": prev, "facts": said}
        self.disk.write(folder / MANIFEST, encode(manifest))
        self.disk.sync(folder / MANIFEST)
        self.disk.sync_folder(folder)

    def _predecessor(self) -> tuple[int, str]:
        """The newest round with a manifest that holds, and its digest; (0, "") when this is the first."""
        for number in reversed(self.numbers()):
            if digest := self._digest_of(number):
                return number, digest
        return 0, ""


def checkpoint_name(round_number: int) -> str:
    return f"round-{round_number:04d}"


def _number(name: str) -> int | None:
    match = _FOLDER_NAME.fullmatch(name)
    return int(match[1]) if match and checkpoint_name(int(match[1])) == name else None
