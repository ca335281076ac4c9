"""One writer per run directory: a lock of the operating system on `.lock`, which dies with the process that holds it.

Who holds it stands beside it in `.writer.json`, for people; only the lock counts, a file that a killed process left
behind does not.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from shepherd.errors import ResourceError, UsageError
from shepherd.store.disk import DISK, Disk, temporary

LOCK, WRITER = ".lock", ".writer.json"


@dataclass(frozen=True)
class Writer:
    """The process that writes to a run: its id, its machine, and since when (unix seconds). pid 0: it did not say."""

    pid: int = 0
    host: str = ""
    since: float = 0.0

    def __str__(self) -> str:
        if not self.pid:
            return "another process"
        here = "" if self.host == socket.gethostname() else f" on {self.host}"
        return f"process {self.pid}{here} since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.since))}"


@contextmanager
def locked(folder: Path, patience: float = 1.0, disk: Disk = DISK) -> Iterator[None]:
    """Be the only writer of `folder` within the block.

    Raises UsageError, naming the other writer, when there is one for `patience` seconds: those that only look, like
    `writer_of`, hold the lock for an instant. ResourceError where the file system knows no locks.
    """
    import filelock  # it loads asyncio; commands that only read do without

    lock = filelock.FileLock(folder / LOCK, timeout=patience)
    try:
        lock.acquire(poll_interval=0.02)
    except filelock.Timeout:
        raise UsageError(
            f"{folder} is being written by {_said(folder)}",
            hint="wait until it has ended, or stop it; `shepherd runs ls` shows what is running",
        ) from None
    except (NotImplementedError, OSError) as error:
        raise ResourceError(
            f"cannot lock {folder / LOCK}: {getattr(error, 'strerror', None) or error}",
            hint="choose a place on a local disk where you may write, with --out",
        ) from None
    try:
        with suppress(OSError):  # a full disk must not keep a run from being continued; the lock is what counts
            _sign(disk, folder)
        yield
    finally:
        with suppress(OSError):
            disk.remove(folder / WRITER)
        lock.release()


def writer_of(folder: Path) -> Writer | None:
    """Who writes to the run directory `folder` now, or None."""
    if not (folder / LOCK).exists():
        return None
    import filelock

    try:
        with filelock.FileLock(folder / LOCK, timeout=0):
            return None
    except filelock.Timeout:
        return _said(folder)
    except (NotImplementedError, OSError):
        return None  # a place where nobody can write has no writer


def _sign(disk: Disk, folder: Path) -> None:
    beside = temporary(folder / WRITER)
    disk.write(beside, json.dumps(asdict(Writer(os.getpid(), socket.gethostname(), time.time()))).encode())
    disk.rename(beside, folder / WRITER)


def _said(folder: Path) -> Writer:
    try:
        return Writer(**json.loads((folder / WRITER).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Writer()
