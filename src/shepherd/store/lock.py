"""One writer per run directory: an operating system's lock on `.lock`, released when its process ends.

`.writer.json` names the holder for people; only the lock counts, so a file left by a killed process does no harm.
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
    """The process that writes to a run: its id, its machine, its start (unix seconds). pid 0: unknown."""

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
    """Hold the only write lock of `folder` within the block.

    Raises UsageError, which names the other writer, after `patience` seconds: readers such as `writer_of` hold the
    lock only for an instant. Raises ResourceError where the file system has no locks.
    """
    import filelock  # it loads asyncio, which commands that only read do not need

    lock = filelock.FileLock(folder / LOCK, timeout=patience)
    try:
        lock.acquire(poll_interval=0.02)
    except filelock.Timeout:
        raise UsageError(
            f"{folder} is being written by {_holder(folder)}",
            hint="wait until it has ended, or stop it; `shepherd runs ls` shows what is running",
        ) from None
    except (NotImplementedError, OSError) as error:
        raise ResourceError(
            f"cannot lock {folder / LOCK}: {getattr(error, 'strerror', None) or error}",
            hint="choose a place on a local disk where you may write, with --out",
        ) from None
    try:
        with suppress(OSError):  # a full disk must not prevent a resumption; only the lock counts
            _sign(disk, folder)
        yield
    finally:
        with suppress(OSError):
            disk.remove(folder / WRITER)
        lock.release()


def writer_of(folder: Path) -> Writer | None:
    """The present writer of the run directory `folder`, or None."""
    if not (folder / LOCK).exists():
        return None
    import filelock

    try:
        with filelock.FileLock(folder / LOCK, timeout=0):
            return None
    except filelock.Timeout:
        return _holder(folder)
    except (NotImplementedError, OSError):
        return None  # a folder that cannot be written has no writer


def _sign(disk: Disk, folder: Path) -> None:
    pending = temporary(folder / WRITER)
    disk.write(pending, json.dumps(asdict(Writer(os.getpid(), socket.gethostname(), time.time()))).encode())
    disk.rename(pending, folder / WRITER)


def _holder(folder: Path) -> Writer:
    try:
        return Writer(**json.loads((folder / WRITER).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Writer()
