"""What one value of a row means: missing, text, label, mark. The same for JSON, CSV and Parquet."""

from __future__ import annotations

import math
import unicodedata
from typing import Any

FALSE = ("false", "0", "0.0", "no", "n", "f", "off")
TRUE = ("true", "1", "1.0", "yes", "y", "t", "on")
BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Letters and marks by their Unicode category that draw nothing: joiners, fillers, the blank Braille pattern."""
NO_LABELS = (list, tuple, dict, bytes)
"""What is more than one value, or none to show."""


class Refusal(Exception):
    """Why a row cannot be learned from; its text is the reason that is counted, so it names no value of the row."""


def missing(value: Any, depth: int = 4) -> bool:
    """Whether `value` stands for nothing: null, NaN, an empty text, list or object. 0 and False are values.

    So does a list or an object of nothing else, to this depth: `datasets` writes a null struct as one of nulls.
    """
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, (list, tuple, dict)):
        items = value.values() if isinstance(value, dict) else value
        return not value or (depth > 0 and all(missing(item, depth - 1) for item in items))
    return value is None or (isinstance(value, (str, bytes)) and not value)


def text(value: Any, what: str) -> str:
    """The text of `value` as it stands, or "" where it is missing or draws nothing. Raises Refusal for other values."""
    if missing(value):
        return ""
    if not isinstance(value, str):
        raise Refusal(f"{what} is not text but {type(value).__name__}")
    return value if visible(_whole(value, what)) else ""


def _whole(value: str, what: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refusal(f"{what} holds half a character (a lone surrogate)") from None
    return value


def visible(text: str) -> bool:
    """Whether a character of `text` draws something: not only white space, controls, joiners and fillers."""
    return any(not _blank(character) for character in text)


def _blank(character: str) -> bool:
    if character.isspace() or character in BLANK or "\ufe00" <= character <= "\ufe0f":
        return True
    # Cf, Cc and so on. Private use (Co) may be drawn by a font of the user's own.
    return unicodedata.category(character) in ("Cf", "Cc", "Cn", "Zs", "Zl", "Zp")


def label(value: Any, what: str) -> str:
    """A category or source as text: NFC, trimmed; "" where it is missing. 1, 1.0 and "1" are one label."""
    if missing(value):
        return ""
    if isinstance(value, NO_LABELS):
        raise Refusal(f"{what} is not one value")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    written = unicodedata.normalize("NFC", _whole(str(value), what)).strip()
    return written if visible(written) else ""


def mark(value: Any) -> bool | None:
    """A mark in any spelling of true and false; None where it is missing. Raises ValueError for what is neither."""
    if missing(value):
        return None
    spelled = str(value).strip().casefold()
    if spelled in FALSE or spelled in TRUE:
        return spelled in TRUE
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value in (0, 1):
        return bool(value)
    raise ValueError(value)
