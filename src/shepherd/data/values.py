"""Interpretation of single values: missing, text, label, mark. The same for JSON, CSV and Parquet."""

from __future__ import annotations

import math
import unicodedata
from typing import Any

FALSE = ("false", "0", "0.0", "no", "n", "f", "off")
TRUE = ("true", "1", "1.0", "yes", "y", "t", "on")
BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Invisible characters that Unicode classifies as letters, marks or symbols: joiners, fillers, blank Braille."""
NO_LABELS = (list, tuple, dict, bytes)
"""Types that are not a single printable value."""


class Refusal(Exception):
    """A row that cannot be used. Its text is the reason under which rows are counted, so it quotes no long value."""


def missing(value: Any, depth: int = 4) -> bool:
    """Whether `value` is null, NaN, or an empty text, list or object. 0 and False are values.

    Lists and objects of missing values are missing too, to this depth: `datasets` writes a null struct as nulls.
    """
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, (list, tuple, dict)):
        items = value.values() if isinstance(value, dict) else value
        return not value or (depth > 0 and all(missing(item, depth - 1) for item in items))
    return value is None or (isinstance(value, (str, bytes)) and not value)


def text(value: Any, what: str) -> str:
    """`value` unchanged, or "" if it is missing or invisible. Raises Refusal for a value that is not text."""
    if missing(value):
        return ""
    if not isinstance(value, str):
        raise Refusal(f"{what} is not text but {type(value).__name__}")
    return value if visible(_valid(value, what)) else ""


def _valid(value: str, what: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refusal(f"{what} holds half a character (a lone surrogate)") from None
    return value


def visible(text: str) -> bool:
    """Whether `text` has a visible character: not only white space, controls, joiners and fillers."""
    return any(not _blank(character) for character in text)


def _blank(character: str) -> bool:
    if character.isspace() or character in BLANK or "\ufe00" <= character <= "\ufe0f":
        return True
    # Cf, Cc and so on. Private use (Co) may be visible in the user's font.
    return unicodedata.category(character) in ("Cf", "Cc", "Cn", "Zs", "Zl", "Zp")


def label(value: Any, what: str) -> str:
    """A category or source as text: NFC, stripped; "" if it is missing. 1, 1.0 and "1" are equal."""
    if missing(value):
        return ""
    if isinstance(value, NO_LABELS):
        raise Refusal(f"{what} is not a single value")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    written = unicodedata.normalize("NFC", _valid(str(value), what)).strip()
    return written if visible(written) else ""


def mark(value: Any) -> bool | None:
    """A boolean in any spelling, or None if it is missing. Raises ValueError for other values."""
    if missing(value):
        return None
    spelled = str(value).strip().casefold()
    if spelled in FALSE or spelled in TRUE:
        return spelled in TRUE
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value in (0, 1):
        return bool(value)
    raise ValueError(value)
