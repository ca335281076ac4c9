"""The types of events against events, and against their page in the docs.

problems(event)        # what is wrong with an event, or with a line of --json; [] where it has its type
page()                 # the text of docs/events.md; `python tests/helpers/event_schema.py` writes it
"""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from shepherd.experiment import events

PAGE = Path(__file__).parents[2] / "docs" / "events.md"
KINDS = {get_args(get_type_hints(kind)["event"])[0]: kind for kind in get_args(events.Event)}
"""{name of an event: its type}, in the order of the union."""


def problems(event: Mapping[str, Any]) -> list[str]:
    """What is wrong with an event: a key too many or too few, or a value of another type; [] for none."""
    kind = KINDS.get(event.get("event", ""))
    if kind is None:
        return [f"no event has the name {event.get('event')!r}"]
    return list(_problems(event, kind, event["event"]))


def _problems(value: Any, hint: Any, place: str) -> Iterator[str]:
    origin, arguments = get_origin(hint), get_args(hint)
    if is_typeddict(hint) or origin in (Mapping, dict):
        if not isinstance(value, Mapping):
            yield f"{place}: {value!r} is no object"
        elif is_typeddict(hint):
            yield from _problems_of_fields(value, get_type_hints(hint), _optional(hint), place)
        else:
            for key, item in value.items():
                yield from _problems(key, arguments[0], f"{place}, key")
                yield from _problems(item, arguments[1], f"{place}.{key}")
    elif origin is Sequence and isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from _problems(item, arguments[0], f"{place}.{position}")
    elif origin in (Union, types.UnionType):
        if all(list(_problems(value, one, place)) for one in arguments):
            yield f"{place}: {value!r} is not {_words(hint)}"
    elif origin is Sequence or not _is(value, hint):
        yield f"{place}: {value!r} is not {_words(hint)}"


def _optional(kind: Any) -> set[str]:
    """The fields of a type that an event need not have."""
    return {key for key, hint in get_type_hints(kind, include_extras=True).items() if get_origin(hint) is NotRequired}


def _problems_of_fields(
    value: Mapping[str, Any], fields: Mapping[str, Any], optional: set[str], place: str
) -> Iterator[str]:
    yield from (f"{place}.{key}: missing" for key in fields.keys() - value.keys() - optional)
    yield from (f"{place}.{key}: unknown" for key in value.keys() - fields.keys())
    for key in fields.keys() & value.keys():
        yield from _problems(value[key], fields[key], f"{place}.{key}")


def _is(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


# The page


def page() -> str:
    """docs/events.md: each event with its fields, their types in JSON, and what they mean."""
    before = PAGE.read_text(encoding="utf-8").partition("## ")[0] if PAGE.exists() else "# Events of a run\n\n"
    parts = [before.rstrip()]
    for name, kind in KINDS.items():
        parts += [f"## {name}", *_about(kind, "event")]
    for kind in (events.ClientRow, events.SiteRow, events.Failure):
        parts += [f"## {_words(kind)}", *_about(kind)]
    return "\n\n".join(parts) + "\n"


def _about(kind: Any, *aside: str) -> Iterator[str]:
    yield inspect.getdoc(kind) or ""
    if kind is events.CommittedEvent:
        yield "Its fields are those of `round`."
        return
    texts = _texts(events.RoundLine if kind is events.RoundEvent else kind)
    fields = {key: hint for key, hint in get_type_hints(kind).items() if key not in aside}
    rows = [f"| `{key}` | {_words(hint)} | {texts[key]} |" for key, hint in fields.items()]
    yield "\n".join(["| field | type | |", "|---|---|---|", *rows])


def _texts(kind: Any) -> dict[str, str]:
    """The docstrings under the fields of a class."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            assert isinstance(field.target, ast.Name) and isinstance(text.value, ast.Constant)
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def _words(hint: Any) -> str:
    """A type as JSON names it."""
    names = {str: "string", int: "integer", float: "number", bool: "boolean", Any: "any", type(None): "null"}
    if hint in names:
        return names[hint]
    if is_typeddict(hint):
        return {events.ClientRow: "client row", events.Failure: "failure", events.SiteRow: "site row"}[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_words, arguments))
    if origin is Sequence:
        return f"array of {_words(arguments[0])}"
    inner = _words(arguments[1])
    return f"object of ({inner})" if " or " in inner else f"object of {inner}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
