"""Rows -> examples: the format of each row by its fields, then its messages, labels, tools and losses.

Texts are stripped, but an answer keeps its leading white space, since code is indented.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from shepherd.data.formats import COMMON, SYSTEM, TOOLS, format_named, in_order
from shepherd.data.refusals import JUDGEMENTS, refuse_masked, refuse_other_media, refuse_preferences
from shepherd.data.row_reader import Notes, RowReader
from shepherd.data.turns import read_system, read_tools
from shepherd.data.values import Refusal, missing
from shepherd.types import Example, Message

_BLANK_LINES = re.compile(r"\A(?:[^\S\n]*\n)+")


def format_of(row: Mapping[str, Any], among: Iterable[str]) -> tuple[str, bool]:
    """(the format of a row, whether all its required fields have a value); ("", False) for none.

    A key without a value counts as absent, so `messages: null` with alpaca's fields is alpaca. If no format is
    complete, the one with most required fields is returned; reading the row then yields the reason of the refusal.
    """
    nearest, most = "", -1
    for name in among:
        required = format_named(name).required
        if any(field not in row for field in required):
            continue
        given = sum(not missing(row[field]) for field in required)
        if given == len(required):
            return name, True
        if given > most:
            nearest, most = name, given
    return nearest, False


def formats_of(rows: Sequence[Mapping[str, Any]], format_name: str) -> list[str]:
    """The format of each row, "" for none. format_name: "auto", or the format of all rows.

    Rows are plain text only if no row has another format, since plain text is trained on without a prompt.
    """
    if format_name != "auto":
        return [format_of(row, (format_name,))[0] for row in rows]
    known = in_order()
    found = [format_of(row, known) for row in rows]
    if all(name == "text" for name, complete in found if complete):
        return [name for name, _ in found]
    others = [name for name in known if name != "text"]
    return [format_of(row, others)[0] if name == "text" else name for row, (name, _) in zip(rows, found, strict=True)]


def to_example(
    fields: Mapping[str, Any], format_name: str, row_id: str, names: Mapping[str, str] | None = None
) -> tuple[Example, Notes]:
    """The example in a row, and its losses. Raises Refusal.

    names: our field -> the user's column, for mapped columns. `category` is "" if the row has none.
    """
    row = RowReader(fields, names or {})
    if format_name != "text" or row.names.keys() & {
        *JUDGEMENTS
    }:  # a label of plain text is a class, not a judgement of an answer
        refuse_preferences(row)
    refuse_other_media(row)
    refuse_masked(row)
    form = format_named(format_name)
    for field in form.required:
        if field not in fields:
            raise Refusal(f"no {field!r}")
    messages, context = form.read(row)
    category, source = (row.label(field) for field in COMMON)
    tools = "" if format_name == "text" else read_tools(given) if (given := row.take(*TOOLS)) is not None else ""
    if format_name == "text":
        if not messages[0].content:
            raise Refusal("empty text")
    else:
        messages, context = _checked(_with_system(messages, row), context, row.notes)
    # A column that repeats a label, such as a language that is also the source, counts as read.
    unread = (column for column, value in row.left.items() if value not in (category, source))
    row.notes.columns = [row.names.get(column, column) for column in unread]
    return Example(row_id, tuple(messages), category, source, context, tools), row.notes


def _with_system(messages: list[Message], row: RowReader) -> list[Message]:
    system = read_system(row.take(*SYSTEM))
    given = {m.content for m in messages if m.role == "system" and m.content}
    if system and not given:
        return [Message("system", system), *messages]
    if given - {system} and system:
        row.notes.change("the column 'system', next to a system turn")
    return messages


def _checked(messages: list[Message], context: str, notes: Notes) -> tuple[list[Message], str]:
    """The turns from the first question to the last target. Raises Refusal if no question or target remains."""
    messages = [m for m in messages if m.role != "system" or m.content]
    begin = next((i for i, m in enumerate(messages) if m.role in ("user", "tool")), len(messages))
    if any(m.role == "assistant" for m in messages[:begin]) and begin < len(messages):
        notes.change("the answer before the first question")
        messages = [m for m in messages[:begin] if m.role == "system"] + messages[begin:]
    answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
    if not answers:
        raise Refusal("no answer")
    learned = [i for i in answers if messages[i].learned]
    if not learned:
        raise Refusal("every answer is masked")
    if begin == len(messages):
        raise Refusal("answers without a question")
    after = messages[learned[-1] + 1 :]
    if after:
        masked = any(m.role == "assistant" for m in after)
        notes.change("turns after the last answer" + (" that is a target" if masked else ""))
    messages = messages[: learned[-1] + 1]
    if any(not m.content and not m.extra for m in messages if m.role == "assistant" and m.learned):
        raise Refusal("empty answer")
    if any(not m.content for m in messages if m.role == "user"):
        raise Refusal("empty instruction")
    shortened = [replace(m, content=_BLANK_LINES.sub("", m.content)) if m.role == "assistant" else m for m in messages]
    if shortened != messages:
        notes.change("blank lines before an answer")
    return shortened, context
