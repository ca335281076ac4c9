"""A row of any known format -> an `Example`, or the reason why not. Formats are told apart by their fields.

Texts lose white space at both ends: models write their answers without it, and a mask that begins between words is
exact for every tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shepherd.errors import DataError, UsageError, did_you_mean
from shepherd.types import Example, Message

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
}  # fmt: skip

COMMON = ("category", "source", "system")


class Refusal(Exception):
    """Why a row cannot be learned from; its text is the reason that is counted."""


@dataclass(frozen=True)
class Format:
    """`required` fields tell the format; `read(row)` returns its messages without the system's, and the context."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], tuple[list[Message], str]]


def _pair(instruction: str, context: str, response: str) -> Callable[[Mapping[str, Any]], tuple[list[Message], str]]:
    def read(row: Mapping[str, Any]) -> tuple[list[Message], str]:
        asked, passage = _text(row, instruction), _text(row, context) if context else ""
        if not asked:
            asked, passage = passage, ""
        return [Message("user", asked), Message("assistant", _text(row, response))], passage

    return read


def _conversation(field: str) -> Callable[[Mapping[str, Any]], tuple[list[Message], str]]:
    def read(row: Mapping[str, Any]) -> tuple[list[Message], str]:
        turns = row.get(field)
        if isinstance(turns, str):  # a cell of a CSV file
            try:
                turns = json.loads(turns)
            except json.JSONDecodeError:
                turns = None
        if not isinstance(turns, (list, tuple)):
            raise Refusal(f"'{field}' is not a list of turns")
        return [_turn(turn) for turn in turns], _text(row, "context")

    return read


def _turn(turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise Refusal("a turn is not an object")
    given = str(turn.get("role") or turn.get("from") or "")
    role = ROLES.get(given.casefold())
    if role is None:
        raise Refusal(f"a turn with the role {given!r}, which is not system, user or assistant")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise Refusal("a turn that calls a tool")
    if role == "assistant" and turn.get("weight") == 0:  # OpenAI's mark for an answer that is not to be learned
        raise Refusal("an answer with weight 0: every answer of a conversation is learned here")
    content = turn.get("content") if "content" in turn else turn.get("value")
    if isinstance(content, (list, tuple)):
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise Refusal("a turn with a part that is not text")
        content = "".join(parts)
    return Message(role, _clean(content, "a turn"))


# In the order of detection: a row that has several of them is what the first says.
FORMATS: dict[str, Format] = {
    "messages": Format(("messages",), ("context",), _conversation("messages")),
    "sharegpt": Format(("conversations",), ("context",), _conversation("conversations")),
    "dolly": Format(("instruction", "response"), ("context",), _pair("instruction", "context", "response")),
    "alpaca": Format(("instruction", "output"), ("input",), _pair("instruction", "input", "output")),
    "prompt_completion": Format(("prompt", "completion"), (), _pair("prompt", "", "completion")),
}

FIELDS = tuple(dict.fromkeys(f for form in FORMATS.values() for f in (*form.required, *form.optional, *COMMON)))


def format_problem(format: str) -> str:
    """What is wrong with the name of a format; empty for one that `detect` knows."""
    known = ("auto", *FORMATS)
    return (
        "" if format in known else f"unknown format: {format!r}.{did_you_mean(format, known)} Known: {', '.join(known)}"
    )


def detect(rows: Iterable[Mapping[str, Any]], format: str, columns: Mapping[str, str], where: str) -> str:
    """The name of the format of `rows`, after `columns` (our field -> theirs). Raises DataError: found and accepted."""
    if problem := format_problem(format):
        raise UsageError(problem)
    for field in columns:
        if field not in FIELDS:
            raise DataError(f"columns: no field {field!r}.{did_you_mean(field, FIELDS)} Fields: {', '.join(FIELDS)}")
    found: dict[str, None] = {}
    present: set[str] = set()
    for row in rows:
        found.update(dict.fromkeys(map(str, row)))
        keys = set(rename(row, columns))
        present |= keys
        for name in FORMATS if format == "auto" else (format,):
            if keys.issuperset(FORMATS[name].required):
                _check_columns(columns, found, where)
                return name
    _check_columns(columns, found, where)
    accepted = "\n".join(f"  {n}: {', '.join(f.required)}" for n, f in FORMATS.items() if format in ("auto", n))
    raise DataError(
        f"{where}: the columns fit no known format\n  found: {', '.join(found) or 'none'}\n accepted:\n{accepted}",
        hint=f"name them: --columns {_meant(found)}",
    )


def _meant(found: Iterable[str]) -> str:
    """What to write after --columns: the columns of a format that differ from it only in case, or an example."""
    plain = {name.casefold(): name for name in found}
    for form in FORMATS.values():
        if plain.keys() >= set(form.required):
            return ",".join(f"{field}={plain[field]}" for field in (*form.required, *form.optional) if field in plain)
    return "instruction=<your column> --columns response=<your column>"


def _check_columns(columns: Mapping[str, str], found: Iterable[str], where: str) -> None:
    found = list(found)
    for field, theirs in columns.items():
        if theirs not in found:
            near = did_you_mean(theirs, found)
            raise DataError(
                f"{where}: no column {theirs!r} for {field!r}.{near} Found: {', '.join(found)}",
                hint=f"--columns {field}=<one of them>"
                + ("; partition.key is category, source or one of them" if field == "source" else ""),
            )


def rename(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row under our field names. A column that was given another name is not there under its own."""
    if not columns:
        return dict(row)
    taken = set(columns.values())
    kept = {name: value for name, value in row.items() if name not in taken}
    return kept | {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}


def to_example(row: Mapping[str, Any], format: str, id: str) -> tuple[Example, str]:
    """The example in `row` (with our field names), and what was left out of it ("" for nothing). Raises Refusal."""
    form = FORMATS[format]
    for field in form.required:
        if row.get(field) is None:
            raise Refusal(f"no {field!r}")
    messages, context = form.read(row)
    system, own = _text(row, "system"), {m.content for m in messages if m.role == "system"}
    if system and not own:
        messages.insert(0, Message("system", system))
    messages = [m for m in messages if m.role != "system" or m.content]
    last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=-1)
    if last < 0:
        raise Refusal("no answer")
    left_out = ["turns after the last answer"] if last + 1 < len(messages) else []
    left_out += ["the column 'system', beside a system turn"] if own - {system} and system else []
    read = {*form.required, *form.optional, *COMMON}
    left_out += [_unread(field, format) for field in FIELDS if field not in read and row.get(field)]
    messages = messages[: last + 1]
    if any(not m.content for m in messages if m.role == "assistant"):
        raise Refusal("empty answer")
    first = next(m for m in messages if m.role != "system")
    if first.role != "user":
        raise Refusal("the conversation begins with an answer")
    if any(not m.content for m in messages if m.role == "user"):
        raise Refusal("empty instruction")
    return Example(
        id=id,
        messages=tuple(messages),
        category=_label(row, "category") or "all",
        source=_label(row, "source"),
        context=context,
    ), " and ".join(left_out)


def _unread(field: str, format: str) -> str:
    slot = FORMATS[format].optional
    mend = f" (--columns {slot[0]}={field} has it read)" if slot and field in ("context", "input") else ""
    return f"the field {field!r}, which the format {format} does not know{mend}"


def _text(row: Mapping[str, Any], field: str) -> str:
    return _clean(row.get(field), repr(field))


def _clean(value: Any, what: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Refusal(f"{what} is not text but {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refusal(f"{what} holds half a character (a lone surrogate)") from None
    return value.strip()


def _label(row: Mapping[str, Any], field: str) -> str:
    value = row.get(field)
    if isinstance(value, (list, tuple, dict)):
        raise Refusal(f"{field!r} is not one value")
    return "" if value is None else str(value).strip()
