"""Row formats: detection by fields, row by row, and conversion to `Example`s.

Texts are stripped, but an answer keeps its leading white space, since code is indented.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shepherd.data.refusals import (
    JUDGEMENTS,
    ROW_MARKS,
    refuse_masked,
    refuse_other_media,
    refuse_preferences,
)
from shepherd.data.row_reader import Notes, RowReader
from shepherd.data.turns import (
    REASONING,
    is_turns,
    read_history,
    read_system,
    read_tools,
    read_turns,
    turns_in,
)
from shepherd.data.values import Refusal, missing, text
from shepherd.errors import did_you_mean
from shepherd.types import Example, Message

SYSTEM = ("system", "system_prompt", "system_message", "systemInstruction", "system_instruction")
TOOLS = ("tools", "functions")
COMMON = ("category", "source")
_NO_INPUT = ("<noinput>", "noinput", "no input", "n/a", "nan", "none", "null")
_BLANK_LINES = re.compile(r"\A(?:[^\S\n]*\n)+")


@dataclass(frozen=True)
class Format:
    """A format: `required` fields identify it, `read(row)` returns the messages without a system turn, and the context.

    optional: further fields of this format; `FIELDS` adds those of all formats.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[RowReader], tuple[list[Message], str]]


def _pair(question: str, answer: str, contexts: Sequence[str]) -> Format:
    def read(row: RowReader) -> tuple[list[Message], str]:
        prompt, completion = turns_in(row.take(question)), row.take(answer)
        if is_turns(prompt):
            completion = turns_in(completion)
        if is_turns(prompt) or is_turns(completion):
            return _prompt_and_completion(row, prompt, completion, question, answer)
        history = row.take("history")
        earlier = read_history(history, row.notes) if history is not None else []
        passage = row.text(*contexts, *(f for f in ("context", "input") if f in row.names)).strip()
        if passage.casefold() in _NO_INPUT:
            row.notes.change(f"a placeholder for an empty input, such as {_NO_INPUT[0]}")
            passage = ""
        instruction = text(prompt, repr(question)).strip()
        if not instruction:
            instruction, passage = passage, ""
        reasoning = row.text(*REASONING).strip()
        given = Message("assistant", _answer(completion, answer, row.notes), reasoning=reasoning)
        return [*earlier, Message("user", instruction), given], passage

    return Format((question, answer), (*contexts, "history", *REASONING), read)


def _answer(value: Any, field: str, notes: Notes) -> str:
    """The text of an answer. A single leading space of a completion only separates it from the prompt: dropped."""
    answer = text(value, repr(field)).rstrip()
    if field == "completion" and answer[:1] == " " and answer[1:2].strip():
        notes.change("the space between a prompt and its completion")
        return answer[1:]
    return answer


def _prompt_and_completion(
    row: RowReader, prompt: Any, completion: Any, question: str, answer: str
) -> tuple[list[Message], str]:
    """A prompt or completion of several turns (TRL): answers in the prompt are context, not targets."""
    if not is_turns(prompt):
        before = [Message("user", text(prompt, repr(question)).strip())]
    else:
        before = read_turns(prompt, repr(question), row.notes, row.names, learned=False)
    if is_turns(completion):
        return [*before, *read_turns(completion, repr(answer), row.notes, row.names)], ""
    return [*before, Message("assistant", _answer(completion, answer, row.notes))], ""


def _conversation(field: str) -> Format:
    def read(row: RowReader) -> tuple[list[Message], str]:
        if field not in row.left:
            raise Refusal(f"no {field!r}")
        messages = read_turns(row.take(field), repr(field), row.notes, row.names)
        if {"chosen", "rejected"} <= row.left.keys() and messages and messages[-1].role != "assistant":
            mapped = row.names.get(field, field)
            raise Refusal(
                f"preference data: 'chosen' and 'rejected' answer the last turn (--columns prompt={mapped},"
                "completion=chosen trains on the chosen)"
            )
        # A column beside the turns may hold anything, so a context is inserted only if the user maps it.
        return messages, row.text("context").strip() if "context" in row.names else ""

    return Format((field,), (), read)


def _plain(row: RowReader) -> tuple[list[Message], str]:
    if "role" in row.left:
        raise Refusal("a single turn with a 'role': join the turns of each conversation to a list 'messages'")
    return [Message("text", row.text("text").strip())], ""


QUESTIONS, ANSWERS = ("instruction", "prompt", "question", "query"), ("response", "output", "completion", "answer")
PAIRS = (*((q, a) for q in QUESTIONS for a in ANSWERS), ("input", "output"), ("inputs", "targets"))


def _contexts(question: str, answer: str) -> tuple[str, ...]:
    """Fields that may hold the passage of a pair. A prompt is complete: nothing is inserted unless mapped."""
    if question == "instruction":
        return ("input", "query", "context") if answer == "output" else ("context", "input", "query")
    return () if question == "prompt" else ("context",)


_NAMED = {("instruction", "response"): "dolly", ("instruction", "output"): "alpaca"}

# In the order of detection: the first match is the format of the row.
FORMATS: dict[str, Format] = {
    "messages": _conversation("messages"),
    "sharegpt": _conversation("conversations"),
    "conversation": _conversation("conversation"),
    **{_NAMED.get((q, a), f"{q}_{a}"): _pair(q, a, _contexts(q, a)) for q, a in PAIRS},
    "text": Format(("text",), (), _plain),
    "contents": _conversation("contents"),
}

FIELDS = tuple(dict.fromkeys((
    *(field for form in FORMATS.values() for field in form.required),
    *("context", "input", "history", *COMMON, *SYSTEM, *TOOLS, *REASONING, *ROW_MARKS, *JUDGEMENTS),
)))  # fmt: skip
"""Fields that `--columns` can map, besides those of turns."""


def format_problem(name: str) -> str:
    """The error message for an unknown format, or ""."""
    known = ("auto", *FORMATS)
    return "" if name in known else f"unknown format: {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}"


def format_of(row: Mapping[str, Any], among: Iterable[str]) -> tuple[str, bool]:
    """(the format of a row, whether all its required fields have a value); ("", False) for none.

    A key without a value counts as absent, so `messages: null` with alpaca's fields is alpaca. If no format is
    complete, the one with most required fields is returned; reading the row then yields the reason of the refusal.
    """
    nearest, most = "", -1
    for name in among:
        required = FORMATS[name].required
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
    found = [format_of(row, FORMATS) for row in rows]
    if all(name == "text" for name, complete in found if complete):
        return [name for name, _ in found]
    others = [name for name in FORMATS if name != "text"]
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
    form = FORMATS[format_name]
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
