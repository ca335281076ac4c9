"""Refusal of rows that are not instructions: preference data, other media, masked rows."""

from __future__ import annotations

from shepherd.data.row_reader import RowReader
from shepherd.data.values import Refusal, mark

IMAGES = ("image", "images", "image_url", "image_urls", "video", "videos", "audio", "audios")
ROW_MARKS = ("train", "weight", "loss")
JUDGEMENTS = ("label", "kto_tag")
"""Fields of KTO data that mark an answer as desired or not, in TRL and in LLaMA-Factory."""


def refuse_preferences(row: RowReader) -> None:
    """Refuse a KTO row with a false label, whose answer is undesired. A true label counts as read.

    A label that is a number or a word is a class rather than a judgement, so it stays unread. In a column that the user
    maps, any spelling of true and false is a judgement.
    """
    for field in JUDGEMENTS:
        desired = {"true": True, "false": False}.get(str(row.left.get(field)).strip().casefold())
        name = row.names.get(field, field)
        if field in row.names:
            try:
                desired = mark(row.left.get(field))
            except ValueError:
                raise Refusal(f"{name!r} is neither true nor false") from None
        if desired is False:
            raise Refusal(f"{name!r} is false: an undesired answer of preference data")
        if desired:
            del row.left[field]


def refuse_other_media(row: RowReader) -> None:
    """Refuse a row with an image, video or sound."""
    for field in IMAGES:
        if field in row.left:
            raise Refusal(f"{field!r} has a value, and only text is supported (remove it to train on the text alone)")


def refuse_masked(row: RowReader) -> None:
    """Refuse a row that is masked as a whole. A numeric `loss` or a weight other than 0 and 1 is not a mask."""
    for field in ROW_MARKS:
        value = row.left.get(field)
        if value is None or (field == "loss" and not isinstance(value, (bool, str)) and field not in row.names):
            continue
        try:
            is_target = mark(value)
        except ValueError:
            if field in row.names:
                raise Refusal(f"{row.names[field]!r} is neither true nor false") from None
            continue
        if is_target is False:
            raise Refusal(f"the row is masked ({row.names.get(field, field)!r})")
        del row.left[field]
