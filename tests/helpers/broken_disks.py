"""Disks that break: one that remembers every operation, so that power can be cut after each, and one that fails.

What a power cut leaves. A file's bytes are safe after `sync`, a folder's names after `sync_folder`; every operation
since then is pending and meets its own fate: it is kept, lost, or (bytes only) torn. This is harsher than real file
systems, which order some of it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shepherd.store import Disk

KEPT, LOST, TORN, ZEROED = "kept", "lost", "torn", "zeroed"


class QuickDisk(Disk):
    """The real disk without waiting for the medium."""

    def sync(self, file: Path) -> None:
        pass

    def sync_folder(self, folder: Path) -> None:
        pass


class RecordingDisk(QuickDisk):
    """Does everything and remembers it: `operations` as (name, path under root, argument)."""

    def __init__(self, root: Path, forgets: tuple[str, ...] = ()) -> None:
        self.root, self.forgets = root, forgets
        self.operations: list[tuple[str, tuple[str, ...], object]] = []

    def _note(self, name: str, path: Path, argument: object = None) -> None:
        if name not in self.forgets:
            self.operations.append((name, path.relative_to(self.root).parts, argument))

    def make_folder(self, folder):
        super().make_folder(folder)
        self._note("make_folder", folder)

    def write(self, file, data):
        super().write(file, data)
        self._note("write", file, data)

    def append(self, file, data):
        super().append(file, data)
        self._note("append", file, data)

    def cut(self, file, size):
        super().cut(file, size)
        self._note("cut", file, size)

    def sync(self, file):
        self._note("sync", file)

    def sync_folder(self, folder):
        self._note("sync_folder", folder)

    def rename(self, source, target):
        super().rename(source, target)
        assert source.parent == target.parent
        self._note("rename", source, target.name)

    def remove(self, file):
        super().remove(file)
        self._note("remove", file)

    def remove_folder(self, folder):
        super().remove_folder(folder)
        self._note("remove_folder", folder)


@dataclass
class Node:
    """A file (`safe` bytes) or a folder (`safe` names), and what has been done to it since the last sync."""

    safe: bytes | dict[str, Node]
    pending: list[tuple] = field(default_factory=list)

    def now(self, fates: Mapping[int, str] | None = None) -> bytes | dict[str, Node]:
        """Its content when each pending operation meets its fate (default: kept)."""
        content = self.safe if isinstance(self.safe, bytes) else dict(self.safe)
        for operation in self.pending:
            fate = (fates or {}).get(id(operation), KEPT)
            if fate != LOST:
                content = _done(content, operation, fate)
        return content


def _done(content, operation, fate):
    kind, *rest = operation
    if kind in ("write", "append"):
        data = rest[0]
        half = len(data) // 2
        data = {KEPT: data, TORN: data[:half], ZEROED: data[:half] + bytes(len(data) - half)}[fate]
        return data if kind == "write" else content + data
    if kind == "cut":
        return content[: rest[0]]
    if kind == "name":
        content[rest[0]] = rest[1]
    elif kind == "unname":
        content.pop(rest[0], None)
    else:
        source, target, node = rest
        content.pop(source, None)
        content[target] = node
    return content


def volume_after(operations, start: Mapping[str, bytes | None] | None = None) -> Node:
    """The root folder after these operations, on a volume where the tree `start` is safe (default: an empty one)."""
    root = Node({})
    for path, content in sorted((start or {}).items()):
        *above, name = path.split("/")
        folder = root
        for part in above:
            folder = folder.safe[part]
        folder.safe[name] = Node({} if content is None else content)

    def find(parts):
        node = root
        for part in parts:
            node = node.now()[part]
        return node

    for name, parts, argument in operations:
        parent = find(parts[:-1]) if parts else None
        if name == "make_folder":
            parent.pending.append(("name", parts[-1], Node({})))
        elif name in ("write", "append"):
            if parts[-1] not in parent.now():
                parent.pending.append(("name", parts[-1], Node(b"")))
            find(parts).pending.append((name, argument))
        elif name == "cut":
            find(parts).pending.append(("cut", argument))
        elif name in ("sync", "sync_folder"):
            node = find(parts)
            node.safe, node.pending = node.now(), []
        elif name == "rename":
            parent.pending.append(("move", parts[-1], argument, find(parts)))
        else:
            parent.pending.append(("unname", parts[-1]))
    return root


def _all_nodes(root: Node) -> list[Node]:
    """Every node that any fate can leave reachable."""
    found, stack = [], [root]
    while stack:
        node = stack.pop()
        if any(node is other for other in found):
            continue
        found.append(node)
        if isinstance(node.safe, dict):
            stack += node.safe.values()
            stack += [part for operation in node.pending for part in operation if isinstance(part, Node)]
    return found


def crash_trees(operations, full: bool = False, start=None) -> Iterator[dict[str, bytes | None]]:
    """The distinct trees {path: bytes, or None for a folder} that a power cut after these operations may leave.

    All pending operations meet one fate; or all of the bytes one and all of the names another; or one alone differs
    from all the others; `full`: or any two do.
    """
    root = volume_after(operations, start)
    pending = [operation for node in _all_nodes(root) for operation in node.pending]
    data = [operation for operation in pending if operation[0] in ("write", "append", "cut")]
    names = [operation for operation in pending if operation not in data]

    def fates_of(operation):
        return (LOST, KEPT, TORN, ZEROED) if operation[0] in ("write", "append") else (LOST, KEPT)

    choices = []
    for of_names in (LOST, KEPT):
        for of_data in (LOST, KEPT, TORN, ZEROED):
            uniform = {id(o): of_names for o in names}
            uniform |= {id(o): of_data if of_data in fates_of(o) else KEPT for o in data}
            choices.append(uniform)
            if of_data in (LOST, KEPT):
                for one in pending:
                    choices += [{**uniform, id(one): fate} for fate in fates_of(one)]
                    if full:
                        for two in pending:
                            choices += [
                                {**uniform, id(one): a, id(two): b} for a in fates_of(one) for b in fates_of(two)
                            ]
    seen = set()
    for fates in choices:
        tree = dict(_tree(root, fates))
        key = tuple(sorted(tree.items(), key=lambda item: item[0]))
        if key not in seen:
            seen.add(key)
            yield tree


def _tree(node: Node, fates, prefix: str = "") -> Iterator[tuple[str, bytes | None]]:
    for name, child in node.now(fates).items():
        content = child.now(fates)
        if isinstance(content, bytes):
            yield prefix + name, content
        else:
            yield prefix + name, None
            yield from _tree(child, fates, f"{prefix}{name}/")


def read_tree(root: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(root)): None if p.is_dir() else p.read_bytes() for p in sorted(root.rglob("*"))}


def lay_out(tree: Mapping[str, bytes | None], root: Path) -> None:
    """Make the tree under `root`."""
    root.mkdir(parents=True)
    for path, content in sorted(tree.items()):
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)


class FailingDisk(QuickDisk):
    """Fails at operation `at` (from 0) with the error `number`, and from then on as that error does.

    A full disk refuses bytes and names but still renames, shortens and deletes; one with EIO refuses everything when
    `lasting`, else only once. A refused write leaves half of its bytes.
    """

    def __init__(self, at: int, number: int, lasting: bool = True) -> None:
        self.at, self.number, self.lasting, self.count, self.struck = at, number, lasting, 0, ""

    def heal(self) -> None:
        self.at = 1 << 60

    def _may_fail(self, name: str, path: Path, data: bytes = b"") -> None:
        now, self.count = self.count, self.count + 1
        full = self.number in (errno.ENOSPC, errno.EDQUOT)
        frees = full and name in (
            "rename",
            "cut",
            "remove",
            "remove_folder",
            "sync",
            "sync_folder",
        )
        if now < self.at or frees or (self.struck and not self.lasting):
            if now == self.at:
                self.at += 1  # this one cannot fail so: the next
            return
        self.struck = self.struck or name
        if data:
            with open(path, "ab" if name == "append" else "wb") as file:
                file.write(data[: len(data) // 2])
        raise OSError(self.number, os.strerror(self.number), str(path))

    def make_folder(self, folder):
        self._may_fail("make_folder", folder)
        super().make_folder(folder)

    def write(self, file, data):
        self._may_fail("write", file, data)
        super().write(file, data)

    def append(self, file, data):
        self._may_fail("append", file, data)
        super().append(file, data)

    def cut(self, file, size):
        self._may_fail("cut", file)
        super().cut(file, size)

    def sync(self, file):
        self._may_fail("sync", file)

    def sync_folder(self, folder):
        self._may_fail("sync_folder", folder)

    def rename(self, source, target):
        self._may_fail("rename", source)
        super().rename(source, target)

    def remove(self, file):
        self._may_fail("remove", file)
        super().remove(file)

    def remove_folder(self, folder):
        self._may_fail("remove_folder", folder)
        super().remove_folder(folder)
