"""Rows that were refused or changed: the ids of each reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set

from shepherd.errors import plural

RowsByReason = Mapping[str, tuple[str, ...]]
"""Reason -> the ids of its rows. Reasons stand in the order of their first row, ids in that of the data."""
IDS = 3
"""Most ids of a reason that a line shows."""


class Tally:
    """The `RowsByReason` of one pass over the rows."""

    def __init__(self) -> None:
        self._ids: dict[str, list[str]] = {}

    def add(self, reason: str, row_id: str) -> None:
        self._ids.setdefault(reason, []).append(row_id)

    def only(self, rows: Set[str]) -> Tally:
        """The tally of these rows alone."""
        part = Tally()
        kept = {reason: [row_id for row_id in ids if row_id in rows] for reason, ids in self._ids.items()}
        part._ids = {reason: ids for reason, ids in kept.items() if ids}
        return part

    @property
    def by_reason(self) -> RowsByReason:
        return {reason: tuple(ids) for reason, ids in self._ids.items()}

    def describe(self) -> str:
        """One line per reason: `  3 rows: empty answer (clinic:1, clinic:4, clinic:9)`."""
        return describe(self.by_reason)


def describe(rows: RowsByReason) -> str:
    """One line per reason, as `Tally.describe`."""
    return "\n".join(f"  {plural(len(ids), 'row')}: {reason} ({first_of(ids)})" for reason, ids in rows.items())


def first_of(ids: Sequence[str]) -> str:
    """The first few ids, with an ellipsis if there are more: `clinic:1, clinic:4, clinic:9, …`."""
    return ", ".join([*ids[:IDS], *(["…"] if len(ids) > IDS else [])])


def sentences(event: str, rows: RowsByReason) -> Iterator[str]:
    """A sentence per reason: `3 rows refused: empty answer (first: clinic:1, clinic:4, clinic:9)`."""
    for reason, ids in rows.items():
        yield f"{plural(len(ids), 'row')} {event}: {reason} (first: {', '.join(ids[:IDS])})"
