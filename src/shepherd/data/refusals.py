"""Rows that are not instructions to learn from: preference data, other media, masked rows."""

from __future__ import annotations

from shepherd.data.row_reader import RowReader
from shepherd.data.values import Refusal, mark

IMAGES = ("image", "images", "image_url", "image_urls", "video", "videos", "audio", "audios")
ROW_MARKS = ("train", "weight", "loss")
JUDGEMENTS = ("label", "kto_tag")
"""Whether an answer is wanted (KTO): as TRL and as LLaMA-Factory call it."""


def refuse_preferences(row: RowReader) -> None:
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


def refuse_other_media(row: RowReader) -> None:
    for field in IMAGES:
        if field in row.left:
            raise Refusal(f"{field!r} has a value, and only text is learned (take it out to learn the text alone)")


def refuse_masked(row: RowReader) -> None:
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
