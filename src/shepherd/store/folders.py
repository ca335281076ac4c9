"""Folders that appear whole: filled under a hidden name, synced, then renamed into place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shepherd.store.disk import DISK, Disk, make_folders, remove_tree, temporary

FORMER = ".old-"
"""The prefix of a folder that is being replaced."""


@contextmanager
def commit_folder(target: Path, disk: Disk = DISK) -> Iterator[Path]:
    """A folder that is filled under a hidden name and replaces `target` when the block ends, with all of it on the
    medium. After an error, `target` is the former folder or the new one, complete."""
    pending, former = temporary(target), target.with_name(f"{FORMER}{target.name}")
    make_folders(disk, target.parent)
    remove_tree(disk, pending)
    disk.make_folder(pending)
    try:
        yield pending
        sync_tree(disk, pending)
        restore(disk, target)
        if target.exists():
            disk.rename(target, former)
            disk.sync_folder(target.parent)
        disk.rename(pending, target)
        disk.sync_folder(target.parent)
    except BaseException:
        with suppress(OSError):
            restore(disk, target)
        with suppress(OSError):
            remove_tree(disk, pending)
        raise
    remove_tree(disk, former)


def restore(disk: Disk, target: Path) -> None:
    """Finish an interrupted replacement: the former folder comes back where there is no new one, or is deleted."""
    former = target.with_name(f"{FORMER}{target.name}")
    if former.is_dir() and not target.exists():
        disk.rename(former, target)
        disk.sync_folder(target.parent)
    remove_tree(disk, former)


def sync_tree(disk: Disk, folder: Path) -> None:
    """Sync all files and folders below `folder`."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            sync_tree(disk, path)
        elif path.is_file():
            disk.sync(path)
    disk.sync_folder(folder)
