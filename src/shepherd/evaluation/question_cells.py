"""Lists of texts or turns in a row of questions, also those that a table cell holds as text.

    list_in("mine.csv:3", "turns", '["Why?", "How?"]', strict=True)         # ["Why?", "How?"]

A cell is JSON, or Python as pandas writes it.
"""

from __future__ import annotations

import io
import tokenize
from collections.abc import Mapping, Sequence
from typing import Any

from shepherd.data.trees import shorten
from shepherd.data.turns import cell, transposed
from shepherd.data.values import missing, text
from shepherd.errors import DataError


def items_of(value: Any) -> list[Any]:
    """The turns of a list, of an object of lists or of a single value, without nulls at the end."""
    if isinstance(value, Mapping):
        value = transposed(value) or value
    items = list(value) if isinstance(value, list | tuple) else [value]
    while items and missing(items[-1]) and items[-1] != "":
        items.pop()
    return items


def has_role(turn: Any) -> bool:
    """Whether it is an object with the role of a speaker."""
    return isinstance(turn, Mapping) and not (missing(turn.get("role")) and missing(turn.get("from")))


def list_in(where: str, key: str, value: Any, strict: bool) -> Any:
    """The texts or turns that a table cell holds as text; any other value unchanged.

    strict: a text that begins with "[" must hold them. Raises DataError where it does not, and for texts that stand
    side by side without a comma, as numpy writes them.
    """
    if not isinstance(value, str) or text(value, repr(key)).lstrip()[:1] not in ("[", "{"):
        return value
    found = cell(value)
    if isinstance(found, Mapping):
        return found if has_role(found) and {"content", "value"} & found.keys() else value
    if isinstance(found, list) and not missing(found) and all(map(_may_be_turn, found)):
        if not _joins(value, found):
            return found
        strict = True
    if strict and value.lstrip().startswith("["):
        raise DataError(
            f"{where}: {key} begins like a list, and is none of texts or turns: {shorten(value, 60)}",
            hint='write the list as JSON, ["First?", "Second?"]',
        )
    return value


def _may_be_turn(item: Any) -> bool:
    return (
        item is None or isinstance(item, str) or (isinstance(item, Mapping) and (has_role(item) or "content" in item))
    )


def _joins(written: str, items: Sequence[Any]) -> bool:
    """Whether Python joined several texts of the list to one."""
    texts = [item for item in items if isinstance(item, str)]
    if any(isinstance(item, Mapping) for item in items):
        return False
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(written.strip()).readline))
    except (tokenize.TokenError, SyntaxError):
        return True
    return sum(token.type == tokenize.STRING for token in tokens) != len(texts)
