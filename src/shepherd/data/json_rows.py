"""Rows in JSON: a list of objects, JSON lines, or an object with named lists of rows.

An object is a container if it has a list under "data" (or another of `LISTS`) or "train", if all its values are lists
of rows (`{client: [row, …]}`), or if it is a table by columns or by index, as pandas and datasets write them. Any other
object is one row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shepherd.data.trees import Numbered, Tree, kind_of, named_twice, shorten
from shepherd.errors import DataError

LISTS = ("data", "rows", "examples", "instances")
"""Keys of the list of rows in an object with further keys."""

TURNS = ("messages", "conversations", "conversation", "contents")
"""Keys of a row's turns, which are never a list of rows."""
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: Path, text: str) -> Tree:
    """The rows of a JSON text. Its kind is detected from the text, not from the suffix of the file."""
    if text.lstrip()[:1] == "[":
        return Tree(_objects(path, _document(path, text)))
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    try:
        document = _loads(path, text) if lines else {}
    except json.JSONDecodeError:  # several objects, or a broken one
        if lines[0][1].rstrip().endswith(("{", "[", ",")):  # laid out over several lines
            _document(path, text)
    else:
        if lines and (tree := _container(path, document)) is not None:
            return tree
        if len(lines) > 1:
            found = ", ".join(map(repr, document)) if isinstance(document, dict) else type(document).__name__
            raise DataError(f"{path}: one JSON object and no list of rows under 'data' (found {found})")
        return Tree([(number, _object(path, number, document)) for number, _ in lines])
    return Tree([(number, _object(path, number, _line(path, number, line))) for number, line in lines])


def _container(path: Path, document: Any) -> Tree | None:
    """The named lists of rows in an object, or None for an object that is one row."""
    if not isinstance(document, dict):
        return None
    if isinstance(users := document.get("user_data"), dict) and "users" in document:  # LEAF
        document = users
    found = {
        str(key): tree
        for key, value in document.items()
        if key not in TURNS and (tree := _branch(path, value)) is not None
    }
    listed = next((key for key in found if key.casefold() in LISTS), None)
    if listed is not None:  # its neighbours are parts of the data, or not rows
        found = {key: tree for key, tree in found.items() if key == listed or kind_of(key)}
    elif not found or not (len(found) == len(document) or any(kind_of(key) == "train" for key in found)):
        table = _table(document)
        return None if table is None else Tree(table)
    rest = [key for key in document if key not in found]
    unread = (f"ignored keys of {path.name}: {', '.join(map(str, rest))}",) if rest else ()
    for key, tree in found.items():
        tree.place = f"{path}: {key}"
    if len(found) == 1 and (listed is not None or rest):
        (only,) = found.values()
        return Tree(only.rows, only.branches, unread=unread)
    names = {key: "train" if key == listed and "train" not in found else key for key in found}
    return Tree(branches={names[key]: tree for key, tree in found.items()}, unread=unread)


def _branch(path: Path, value: Any) -> Tree | None:
    if isinstance(value, list):
        if not all(isinstance(item, dict) for item in value) or any(map(_is_turn, value)):
            return None
        return Tree(_objects(path, value))
    if isinstance(value, dict) and value:
        if (table := _table(value)) is not None:
            return Tree(table)
        inner = {str(key): _branch(path, item) for key, item in value.items()}
        branches = {key: tree for key, tree in inner.items() if tree is not None}
        if len(branches) == len(inner):
            return Tree(branches=branches)
    return None


def _is_turn(item: Mapping[str, Any]) -> bool:
    return bool({"role", "from"} & item.keys()) and bool({"content", "value", "parts", "tool_calls"} & item.keys())


def _table(document: Mapping[str, Any]) -> list[Numbered] | None:
    """The rows of a table by columns, {"a": [1, 2]} or {"a": {"0": 1, "1": 2}}, or by index, {"0": {"a": 1}}."""
    values = list(document.values())
    if all(isinstance(value, dict) and value for value in values):
        if all(key.isdecimal() for key in document):
            return list(enumerate(values, 1))
        index = values[0].keys()
        if all(key.isdecimal() for key in index) and all(value.keys() == index for value in values):
            return [(n, {name: value[key] for name, value in document.items()}) for n, key in enumerate(index, 1)]
        return None
    if len({len(value) if isinstance(value, list) else -1 for value in values}) != 1 or not isinstance(values[0], list):
        return None
    if not values[0] or any(isinstance(item, dict) for value in values for item in value):
        return None
    return [(n, dict(zip(document, row, strict=True))) for n, row in enumerate(zip(*values, strict=True), 1)]


def _document(path: Path, text: str) -> Any:
    try:
        return _loads(path, text)
    except json.JSONDecodeError as error:
        line = text.split("\n")[error.lineno - 1]
        raise _malformed(path, error.lineno, error, line) from None


def _line(path: Path, number: int, line: str) -> Any:
    try:
        return _loads(f"{path}:{number}", line)
    except json.JSONDecodeError as error:
        raise _malformed(path, number, error, line) from None


def _loads(where: Path | str, text: str) -> Any:
    """The value of a JSON text. Raises JSONDecodeError for malformed JSON, DataError for JSON that is ambiguous or that
    Python cannot read."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):  # Python silently keeps the last one
            raise named_twice(str(where), [name for name, _ in pairs])
        if halves and (name := next((name for name in found if _half(name)), None)) is not None:
            raise DataError(
                f"{where}: the name of a field holds half a character (a lone surrogate): {name!r}",
                hint="give it a valid name, or remove it",
            )
        return found

    halves = bool(_HALF.search(text))

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise DataError(f"{where}: JSON that is nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits
        raise DataError(f"{where}: JSON that cannot be read: {error}") from None


def _half(name: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in name)


def _malformed(path: Path, line_number: int, error: json.JSONDecodeError, line: str) -> DataError:
    return DataError(
        f"{path}:{line_number}:{error.colno}: malformed JSON: {error.msg}\n  {shorten(line)}",
        hint="JSON lines hold one complete object per line; quotes and line breaks inside a text are escaped",
    )


def _objects(path: Path, items: list[Any]) -> list[Numbered]:
    return [(number, _object(path, number, item)) for number, item in enumerate(items, 1)]


def _object(path: Path, number: int, item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        text = shorten(json.dumps(item, ensure_ascii=False))
        raise DataError(f"{path}:{number}: a row is an object with fields, this is {type(item).__name__}: {text}")
    return item
