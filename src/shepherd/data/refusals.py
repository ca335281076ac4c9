"""Rows that are not instructions to learn from: preference data, other media, masked rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shepherd.data.turns import (
    Notes,
)
from shepherd.data.values import NO_LABELS, Refusal, label, mark, missing, text

IMAGES = ("image", "images", "image_url", "image_urls", "video", "videos", "audio", "audios")


ROW_MARKS = ("train", "weight", "loss")


JUDGEMENTS = ("label", "kto_tag")
"""Whether an answer is wanted (KTO): as TRL and as LLaMA-Factory call it."""


class Row:
    """The fields of one row that have a value, under our names; `take` reads one, and what is left was not read."""

    def __init__(self, fields: Mapping[str, Any], names: Mapping[str, str]) -> None:
        self.left = {str(key): value for key, value in fields.items() if not missing(value)}
        self.names = names
        self.notes = Notes()

    def take(self, *fields: str) -> Any:
        """The value of the first of `fields` that has one, or None; the others stay, and are named as not read."""
        return next((self.left.pop(field) for field in fields if field in self.left), None)

    def text(self, *fields: str) -> str:
        field = next((field for field in fields if field in self.left), "")
        return text(self.left.pop(field), repr(field)) if field else ""


def _label(row: Row, field: str) -> str:
    """A category or source. A list of them is none, and stays to be named, unless the user says that it is one."""
    if field not in row.names and isinstance(row.left.get(field), NO_LABELS):
        return ""
    return label(row.take(field), repr(field))


def refuse_preferences(row: Row) -> None:
    """A KTO row whose label is false: its answer is the one that is not wanted. A true label is taken out, as read.

    A label that is a number or a word is a class and no judgement, so it stays, and is named as not read; but a column
    that the user names is one, in any spelling.
    """
    for field in JUDGEMENTS:
        wanted = {"true": True, "false": False}.get(str(row.left.get(field)).strip().casefold())
        name = row.names.get(field, field)
        if field in row.names:
            try:
                wanted = mark(row.left.get(field))
            except ValueError:
                raise Refusal(f"{name!r} is neither true nor false") from None
        if wanted is False:
            raise Refusal(f"{name!r} is false: an answer that is not wanted, in preference data")
        if wanted:
            del row.left[field]


def refuse_other_media(row: Row) -> None:
    for field in IMAGES:
        if field in row.left:
            raise Refusal(f"{field!r} has a value, and only text is learned (take it out to learn the text alone)")


def refuse_masked(row: Row) -> None:
    """A mark for the whole row. `loss` may be a measured number, and a weight other than 0 and 1 is no mark."""
    for field in ROW_MARKS:
        value = row.left.get(field)
        if value is None or (field == "loss" and not isinstance(value, (bool, str)) and field not in row.names):
            continue
        try:
            learned = mark(value)
        except ValueError:
            if field in row.names:
                raise Refusal(f"{row.names[field]!r} is neither true nor false") from None
            continue
        if learned is False:
            raise Refusal(f"the row is marked as not to be learned ({row.names.get(field, field)!r})")
        del row.left[field]
