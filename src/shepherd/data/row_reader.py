"""The fields of one row, with a record of what is read, changed and left unread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shepherd.data.values import NO_LABELS, label, missing, text


@dataclass
class Notes:
    """Losses of one row: `changes` in words, and the names of unread columns and unread fields of turns."""

    changes: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    fields: list[str] = field(default_factory=list)

    def change(self, what: str) -> None:
        if what not in self.changes:
            self.changes.append(what)


class RowReader:
    """The fields of a row that have a value, by our names. A field is read by taking it; those `left` are unread.

    names: our field -> the user's column, for the columns that the user mapped.
    """

    def __init__(self, fields: Mapping[str, Any], names: Mapping[str, str]) -> None:
        self.left = {str(key): value for key, value in fields.items() if not missing(value)}
        self.names = names
        self.notes = Notes()

    def take(self, *fields: str) -> Any:
        """The value of the first of `fields` that has one, or None. The others stay unread."""
        return next((self.left.pop(field) for field in fields if field in self.left), None)

    def text(self, *fields: str) -> str:
        """The text of the first of `fields` that has a value, or "". Raises Refusal for a value that is not text."""
        field = next((field for field in fields if field in self.left), "")
        return text(self.left.pop(field), repr(field)) if field else ""

    def label(self, field: str) -> str:
        """A category or source, or "". A list is not a label and stays unread, unless the user mapped the column."""
        if field not in self.names and isinstance(self.left.get(field), NO_LABELS):
            return ""
        return label(self.take(field), repr(field))
