"""A file for this process alone, in the run directory: for what is needed within a round and may not fit in memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from io import FileIO

from shepherd.store.disk import Disk


class Scratch:
    """Bytes that are added at the end and read from anywhere; all is gone with `close`, or when the process ends.

    explained("written") and explained("read") turn a failing disk into a sentence.
    """

    def __init__(self, disk: Disk, file: FileIO, explained: Callable[[str], AbstractContextManager[None]]) -> None:
        self.disk, self.file, self.explained = disk, file, explained

    def append(self, data: memoryview) -> None:
        with self.explained("written"):
            self.disk.add(self.file, data)

    def read(self, begin: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `begin` on."""
        with self.explained("read"):
            self.file.seek(begin)
            while into:
                count = self.file.readinto(into)
                if not count:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))  # it is shorter than what was written
                into = into[count:]

    def close(self) -> None:
        self.file.close()
