"""Trees of row lists, as files and folders hold them: returned by the readers, interpreted by `containers`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from shepherd.errors import DataError

PARTS = {
    **dict.fromkeys(("train", "training", "global_training", "global_train"), "train"),
    **dict.fromkeys(("test", "testing", "global_test"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval", "evaluation", "global_validation"), "validation"),
}
"""Conventional name of a file, list or split -> its part of the data."""
_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}")

Numbered = tuple[int, dict[str, Any]]


@dataclass
class Tree:
    """Rows, or branches by name. `place` locates them in errors; `unread` names ignored entries."""

    rows: list[Numbered] = field(default_factory=list)
    branches: dict[str, Tree] = field(default_factory=dict)
    place: str = ""
    folder: bool = False
    unread: tuple[str, ...] = ()

    def leaves(self) -> Iterator[list[Numbered]]:
        """All lists of rows, in order."""
        for branch in self.branches.values():
            yield from branch.leaves()
        if not self.branches:
            yield self.rows


def kind_of(name: str) -> str:
    """The part of the data that a name denotes in any case: "train", "test", "validation", or ""."""
    return PARTS.get(unsharded(name).casefold().replace("-", "_"), "")


def unsharded(name: str) -> str:
    """The name without its shard number (`train-00000-of-00002`, as on the hub)."""
    found = _SHARD.fullmatch(name)
    return found[1] if found else name


def shorten(text: str, width: int = 80) -> str:
    """`text` on one line, at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def named_twice(where: str, names: Sequence[str]) -> DataError:
    """The error for a row with two fields of one name."""
    name = next(name for name in names if names.count(name) > 1)
    return DataError(
        f"{where}: {names.count(name)} fields of a row are named {name!r}, which is ambiguous",
        hint="rename or remove all but one; --columns response=<your column> selects the one to read",
    )
