"""Shapes of the files of a run: the check of what is read, and clients shown by their labels.

A shape is a type or types, a mapping of known keys ("*" is any other key), or a list with the shape of its items. A key
ending in "?" may be null. Absent keys are allowed; numbers are checked where they are used. A client's id is a
`Client`, and "@" any key that is one: reports show the client's label instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shepherd.errors import DataError

AGAIN = "restore the file from a copy, or repeat the run"
"""The hint about a file that is missing or broken."""


class Client(str):
    """Mark of a text in a shape that is a client's id, or "local:" and an id."""


CLIENT, ANY_CLIENT = Client("client"), "@"


def with_labels(value: Any, shape: Any, labels: Mapping[str, str]) -> Any:
    """`value`, which has `shape`, with each client's label in place of its id."""
    if isinstance(shape, Client):
        local = "local:" if value.startswith("local:") else ""
        client = value.removeprefix(local)
        return local + labels.get(client, client) if local or value in labels else value
    if value is None or not isinstance(shape, (list, dict)):
        return value
    if isinstance(shape, list):
        return [with_labels(item, shape[0], labels) for item in value]
    known = _known(shape)
    named = {}
    for key, item in value.items():
        client = key not in known and ANY_CLIENT in shape
        inner, _ = known.get(key, _other(shape))
        named[labels.get(key, key) if client else key] = with_labels(item, inner, labels)
    return named


def _known(shape: Mapping[str, Any]) -> dict[str, tuple[Any, bool]]:
    """{key that a table names: (its shape, whether it may be null)}."""
    return {key.rstrip("?"): (inner, key.endswith("?")) for key, inner in shape.items() if key not in ("*", ANY_CLIENT)}


def _other(shape: Mapping[str, Any]) -> tuple[Any, bool]:
    """The shape of a key that a table does not name."""
    return shape.get(ANY_CLIENT, shape.get("*", object)), False


_KINDS = {list: "a list", dict: "a table", str: "a text", int: "a whole number"}


def check(value: Any, shape: Any, file: Path, place: str = "") -> None:
    """Raise DataError where `value` does not have `shape`, naming the place as `a.b.0`."""
    kind: Any = str if isinstance(shape, Client) else type(shape) if isinstance(shape, (list, dict)) else shape
    where = f" at {place}" if place else ""
    if not isinstance(value, kind):
        wanted = "another type" if isinstance(kind, tuple) else _KINDS.get(kind, "another type")
        raise DataError(f"{file}{where}: expected {wanted}, found {type(value).__name__}", hint=AGAIN)
    if isinstance(shape, list):
        for position, item in enumerate(value):
            check(item, shape[0], file, f"{place}.{position}".lstrip("."))
    elif isinstance(shape, dict):
        known = _known(shape)
        for key, (_, optional) in known.items():
            if key not in value and not optional:
                raise DataError(f"{file}{where}: the key {key!r} is missing", hint=AGAIN)
        for key, item in value.items():
            inner, optional = known.get(key, _other(shape))
            if not (item is None and optional):
                check(item, inner, file, f"{place}.{key}".lstrip("."))
