"""The one way to the disk: every operation that changes a file or a folder, and what is composed of them.

A write is durable only after `sync` of the file *and* `sync_folder` of the folder that names it; until then a power
cut may leave nothing, half, or all of it. An OSError that leaves here names the file.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

TEMPORARY = ".tmp-"
"""What begins so is unfinished work of a process: nobody reads it, and the next writer sweeps it away."""

_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}  # some network file systems; there is nothing to do there


class Disk:
    """Single operations on the file system, none of them durable by itself. Tests replace it to break them."""

    def make_folder(self, folder: Path) -> None:
        os.mkdir(folder)

    def write(self, file: Path, data: bytes) -> None:
        """Make `file`, or empty it, and fill it."""
        with _naming(file), open(file, "wb", buffering=0) as stream:
            _write_all(stream, data)

    def append(self, file: Path, data: bytes) -> None:
        with _naming(file), open(file, "ab", buffering=0) as stream:
            _write_all(stream, data)

    def cut(self, file: Path, size: int) -> None:
        """Shorten `file` to its first `size` bytes."""
        os.truncate(file, size)

    def sync(self, file: Path) -> None:
        """Return when the bytes of `file` are on the medium."""
        # Windows flushes only what is open for writing; elsewhere a read-only file must not be refused.
        flags = os.O_RDONLY
        if sys.platform == "win32":
            flags = os.O_RDWR | os.O_BINARY
        handle = os.open(file, flags)
        try:
            with _naming(file):
                _flush(handle)
        finally:
            os.close(handle)

    def sync_folder(self, folder: Path) -> None:
        """Return when the names in `folder` are on the medium. Windows has no such call: its journal has to do."""
        if sys.platform == "win32":
            return
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with _naming(folder):
                _flush(handle)
        except OSError as error:
            if error.errno not in _NO_FOLDER_SYNC:
                raise
        finally:
            os.close(handle)

    def rename(self, source: Path, target: Path) -> None:
        """Give `source` the name `target`; a file of that name is replaced, a folder must be gone."""
        for attempt in range(5):
            try:
                os.replace(source, target)
                return
            except PermissionError:
                # Windows: a virus scanner holds what was just written for a moment.
                if sys.platform != "win32" or attempt == 4:
                    raise
                time.sleep(0.1)

    def remove(self, file: Path) -> None:
        os.unlink(file)

    def remove_folder(self, folder: Path) -> None:
        os.rmdir(folder)

    def scratch(self, folder: Path) -> FileIO:
        """A file without a name, readable by its owner alone: it is gone when it is closed, or when the process ends.

        Where the system knows no such files it has a temporary name for an instant.
        """
        return tempfile.TemporaryFile(buffering=0, dir=folder, prefix=TEMPORARY)

    def add(self, scratch: FileIO, data: memoryview) -> None:
        """Add to the end of a scratch file. Nothing makes it durable: nobody reads it after this process."""
        scratch.seek(0, os.SEEK_END)
        _write_all(scratch, data)


DISK = Disk()


def _write_all(stream: FileIO, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[stream.write(rest) :]


def _flush(handle: int) -> None:
    """fsync; on macOS that leaves the bytes in the drive's cache, and only F_FULLFSYNC empties it."""
    if sys.platform == "darwin":
        import fcntl

        with suppress(OSError):  # not every file system there has it
            fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
            return
    os.fsync(handle)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of open files do not say which file it was."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


# What is composed of them


def make_folders(disk: Disk, folder: Path) -> None:
    """Make `folder` and the folders above it, durably; those that exist already are left as they are."""
    if folder.is_dir():
        return
    make_folders(disk, folder.parent)
    with suppress(FileExistsError):
        disk.make_folder(folder)
    if not folder.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))
    disk.sync_folder(folder.parent)


def write_whole(disk: Disk, target: Path, data: bytes) -> None:
    """Make or replace `target`, durably: whoever reads it, at any time, finds the old bytes or the new ones."""
    beside = temporary(target)
    try:
        disk.write(beside, data)
        disk.sync(beside)
        disk.rename(beside, target)
    except BaseException:
        with suppress(OSError):
            disk.remove(beside)
        raise
    disk.sync_folder(target.parent)


def temporary(target: Path) -> Path:
    """The hidden name beside `target` under which this process prepares it."""
    return target.with_name(f"{TEMPORARY}{target.name}-{os.getpid()}")


def remove_tree(disk: Disk, path: Path) -> None:
    """Delete a file or a folder with all that is in it. Links are deleted, never followed."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        disk.remove(path)
        return
    for entry in sorted(os.listdir(path)):
        remove_tree(disk, path / entry)
    disk.remove_folder(path)


def discard(disk: Disk, path: Path) -> None:
    """Delete a folder so that its name goes first: a power cut leaves the whole folder or something to sweep."""
    if not os.path.lexists(path):
        return
    beside = temporary(path)
    remove_tree(disk, beside)
    disk.rename(path, beside)
    disk.sync_folder(path.parent)
    remove_tree(disk, beside)


def sweep(disk: Disk, folder: Path) -> tuple[str, ...]:
    """Delete the unfinished work of former processes in `folder`; its names."""
    if not folder.is_dir():
        return ()
    found = sorted(name for name in os.listdir(folder) if name.startswith(TEMPORARY))
    for name in found:
        remove_tree(disk, folder / name)
    return tuple(found)
