"""How many rows something happened to, by reason and with their ids: refused, changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set

from shepherd.errors import plural

Counts = Mapping[str, tuple[int, tuple[str, ...]]]
"""Reason -> (how many rows, their ids)."""
IDS = 3
"""Most ids of a reason that a line shows."""


class Tally:
    """Counts per reason with the ids, in the order in which the reasons came up."""

    def __init__(self) -> None:
        self._ids: dict[str, list[str]] = {}

    def add(self, reason: str, id: str) -> None:
        self._ids.setdefault(reason, []).append(id)

    def only(self, ids: Set[str]) -> Tally:
        """The part of it that these rows make up."""
        part = Tally()
        part._ids = {reason: kept for reason, all in self._ids.items() if (kept := [id for id in all if id in ids])}
        return part

    @property
    def counts(self) -> dict[str, tuple[int, tuple[str, ...]]]:
        return {reason: (len(ids), tuple(ids)) for reason, ids in self._ids.items()}

    def describe(self) -> str:
        """One line per reason: `  3 rows: empty answer (clinic:1, clinic:4, clinic:9)`."""
        return describe(self.counts)


def describe(counts: Counts) -> str:
    """`counts` in words, one line per reason."""
    lines = []
    for reason, (count, ids) in counts.items():
        lines.append(f"  {plural(count, 'row')}: {reason} ({first_of(ids)})")
    return "\n".join(lines)


def first_of(ids: Sequence[str]) -> str:
    """The first few ids, and whether there are more: `clinic:1, clinic:4, clinic:9, …`."""
    return ", ".join([*ids[:IDS], *(["…"] if len(ids) > IDS else [])])


def sentences(what: str, counts: Counts) -> Iterator[str]:
    """What happened to rows, for each reason: `3 rows refused: empty answer (first: clinic:1, clinic:4, clinic:9)`."""
    for reason, (count, ids) in counts.items():
        yield f"{plural(count, 'row')} {what}: {reason} (first: {', '.join(ids[:IDS])})"
