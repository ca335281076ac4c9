"""Scratch space in the run directory, for updates of a round that may not fit in memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from io import FileIO

from shepherd.store.disk import Disk


class Scratch:
    """An append-only file with random reads, gone after `close` or at the end of the process.

    explained("written") and explained("read") turn failures of the disk into a ResourceError.
    """

    def __init__(self, disk: Disk, file: FileIO, explained: Callable[[str], AbstractContextManager[None]]) -> None:
        self.disk, self.file, self.explained = disk, file, explained

    def append(self, data: memoryview) -> None:
        with self.explained("written"):
            self.disk.add(self.file, data)

    def read(self, begin: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `begin`."""
        with self.explained("read"):
            self.file.seek(begin)
            while into:
                count = self.file.readinto(into)
                if not count:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))  # the file is shorter than what was written
                into = into[count:]

    def close(self) -> None:
        self.file.close()
