"""Disk operations: every change of a file or a folder goes through here, alone or composed.

A write is durable only after `sync` of the file *and* `sync_folder` of its folder; until then a power cut may leave
nothing, half, or all of it. An OSError raised here names the file.
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
from typing import Any

TEMPORARY = ".tmp-"
"""The prefix of unfinished work of a process: nothing reads it, and the next writer deletes it."""

_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}  # some network file systems do not support it


class Disk:
    """Single operations on the file system, none durable by itself. Tests replace it to make them fail."""

    def make_folder(self, folder: Path) -> None:
        os.mkdir(folder)

    def restrict(self, path: Path) -> None:
        """Let the owner alone read and write a file or folder: modes 0600 and 0700."""
        os.chmod(path, 0o700 if path.is_dir() else 0o600)

    def write(self, file: Path, data: bytes) -> None:
        """Create or truncate `file`, and fill it."""
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
        # Windows flushes only files that are open for writing; elsewhere a read-only file must work too.
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
        """Return when the names in `folder` are on the medium. Windows has no such call and relies on its journal."""
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
        """Rename `source` to `target`, which is replaced if it is a file; it must not be a folder."""
        for attempt in range(5):
            try:
                os.replace(source, target)
                return
            except PermissionError:
                # Windows: a virus scanner may hold a new file for a moment.
                if sys.platform != "win32" or attempt == 4:
                    raise
                time.sleep(0.1)

    def remove(self, file: Path) -> None:
        os.unlink(file)

    def remove_folder(self, folder: Path) -> None:
        os.rmdir(folder)

    def scratch(self, folder: Path) -> FileIO:
        """An anonymous file, readable only by its owner, that is gone when it is closed or the process ends.

        On systems without anonymous files it has a temporary name for an instant.
        """
        return tempfile.TemporaryFile(buffering=0, dir=folder, prefix=TEMPORARY)

    def add(self, scratch: FileIO, data: memoryview) -> None:
        """Append to a scratch file. It is not made durable: nothing reads it after this process."""
        scratch.seek(0, os.SEEK_END)
        _write_all(scratch, data)


class PrivateDisk(Disk):
    """Operations whose new folders and files only their owner can enter and read, 0700 and 0600."""

    def make_folder(self, folder: Path) -> None:
        os.mkdir(folder, 0o700)

    def write(self, file: Path, data: bytes) -> None:
        """Create or truncate `file`, and fill it; it is never readable by others, not for an instant. No link is
        followed, which another person may have put in a folder that is shared."""
        with _naming(file), open(file, "wb", buffering=0, opener=_private_no_link) as stream:
            os.chmod(file, 0o600)
            _write_all(stream, data)

    def append(self, file: Path, data: bytes) -> None:
        with _naming(file), open(file, "ab", buffering=0, opener=_private) as stream:
            _write_all(stream, data)


DISK = Disk()
PRIVATE = PrivateDisk()


def _private(file: str, flags: int) -> int:
    return os.open(file, flags, 0o600)


def _private_no_link(file: str, flags: int) -> int:
    return os.open(file, flags | getattr(os, "O_NOFOLLOW", 0), 0o600)


class OwnersDisk:
    """A disk whose files and folders only their owner may read (0600, 0700), from before they appear by name."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    def __getattr__(self, operation: str) -> Any:
        return getattr(self.disk, operation)

    def sync(self, file: Path) -> None:
        self.disk.restrict(file)  # all that becomes durable passes here, before it is renamed
        self.disk.sync(file)

    def sync_folder(self, folder: Path) -> None:
        self.disk.restrict(folder)
        self.disk.sync_folder(folder)


def _write_all(stream: FileIO, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[stream.write(rest) :]


def _flush(handle: int) -> None:
    """fsync; on macOS it leaves the bytes in the drive's cache, which only F_FULLFSYNC flushes."""
    if sys.platform == "darwin":
        import fcntl

        with suppress(OSError):  # not every file system there has it
            fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
            return
    os.fsync(handle)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add the file name to errors of open files, which lack it."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


# Composed operations


def make_folders(disk: Disk, folder: Path) -> None:
    """Create `folder` and its parents durably, where they do not exist."""
    if folder.is_dir():
        return
    make_folders(disk, folder.parent)
    with suppress(FileExistsError):
        disk.make_folder(folder)
    if not folder.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))
    disk.sync_folder(folder.parent)


def write_whole(disk: Disk, target: Path, data: bytes) -> None:
    """Create or replace `target` atomically and durably: a reader finds the old bytes or the new ones."""
    pending = temporary(target)
    try:
        disk.write(pending, data)
        disk.sync(pending)
        disk.rename(pending, target)
    except BaseException:
        with suppress(OSError):
            disk.remove(pending)
        raise
    disk.sync_folder(target.parent)


def temporary(target: Path) -> Path:
    """The hidden name in the same folder under which this process prepares `target`."""
    return target.with_name(f"{TEMPORARY}{target.name}-{os.getpid()}")


def remove_tree(disk: Disk, path: Path) -> None:
    """Delete a file, or a folder with its contents. Links are deleted, never followed."""
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
    """Delete a folder, its name first: a power cut leaves the whole folder or unfinished work to sweep."""
    if not os.path.lexists(path):
        return
    pending = temporary(path)
    remove_tree(disk, pending)
    disk.rename(path, pending)
    disk.sync_folder(path.parent)
    remove_tree(disk, pending)


def sweep(disk: Disk, folder: Path) -> tuple[str, ...]:
    """Delete the unfinished work of former processes in `folder`; return its names."""
    if not folder.is_dir():
        return ()
    found = sorted(name for name in os.listdir(folder) if name.startswith(TEMPORARY))
    for name in found:
        remove_tree(disk, folder / name)
    return tuple(found)
