"""A row of any known format -> an `Example`, or the reason why not. Formats are told apart by their fields, row by row.

Texts lose white space at both ends, but an answer keeps what it begins with: code is indented.
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
    """`required` fields tell the format; `read(row)` returns its messages without the system's, and the context.

    `optional` are the fields that it reads besides; those of every format are not among them.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[RowReader], tuple[list[Message], str]]


def _pair(asked: str, answered: str, contexts: Sequence[str]) -> Format:
    def read(row: RowReader) -> tuple[list[Message], str]:
        prompt, answer = turns_in(row.take(asked)), row.take(answered)
        if is_turns(prompt):
            answer = turns_in(answer)
        if is_turns(prompt) or is_turns(answer):
            return _prompt_and_completion(row, prompt, answer, asked, answered)
        history = row.take("history")
        earlier = read_history(history, row.notes) if history is not None else []
        passage = row.text(*contexts, *(f for f in ("context", "input") if f in row.names)).strip()
        if passage.casefold() in _NO_INPUT:
            row.notes.change(f"an input that says that there is none, such as {_NO_INPUT[0]}")
            passage = ""
        instruction = text(prompt, repr(asked)).strip()
        if not instruction:
            instruction, passage = passage, ""
        reasoning = row.text(*REASONING).strip()
        given = Message("assistant", _answer(answer, answered, row.notes), reasoning=reasoning)
        return [*earlier, Message("user", instruction), given], passage

    return Format((asked, answered), (*contexts, "history", *REASONING), read)


def _answer(value: Any, field: str, notes: Notes) -> str:
    """The text of an answer. One space before a completion is no text: it parted the two where they were joined."""
    answer = text(value, repr(field)).rstrip()
    if field == "completion" and answer[:1] == " " and answer[1:2].strip():
        notes.change("the space that parts a completion from its prompt")
        return answer[1:]
    return answer


def _prompt_and_completion(row: RowReader, prompt: Any, answer: Any, asked: str, answered: str):
    """Turns in a prompt and in what follows it (TRL): the answers in the prompt are shown, and not learned."""
    if not is_turns(prompt):
        before = [Message("user", text(prompt, repr(asked)).strip())]
    else:
        before = read_turns(prompt, repr(asked), row.notes, row.names, learned=False)
    if is_turns(answer):
        return [*before, *read_turns(answer, repr(answered), row.notes, row.names)], ""
    return [*before, Message("assistant", _answer(answer, answered, row.notes))], ""


def _conversation(field: str) -> Format:
    def read(row: RowReader) -> tuple[list[Message], str]:
        if field not in row.left:
            raise Refusal(f"no {field!r}")
        messages = read_turns(row.take(field), repr(field), row.notes, row.names)
        if {"chosen", "rejected"} <= row.left.keys() and messages and messages[-1].role != "assistant":
            mapped = row.names.get(field, field)
            raise Refusal(
                f"preference data: 'chosen' and 'rejected' answer the last turn (--columns prompt={mapped},"
                "completion=chosen learns the chosen)"
            )
        # A column beside the turns may hold anything; it is pasted in where the user says that it belongs there.
        return messages, row.text("context").strip() if "context" in row.names else ""

    return Format((field,), (), read)


def _plain(row: RowReader) -> tuple[list[Message], str]:
    if "role" in row.left:
        raise Refusal("one turn of a conversation, as it has a 'role': join the turns of each to a list 'messages'")
    return [Message("text", row.text("text").strip())], ""


QUESTIONS, ANSWERS = ("instruction", "prompt", "question", "query"), ("response", "output", "completion", "answer")
PAIRS = (*((q, a) for q in QUESTIONS for a in ANSWERS), ("input", "output"), ("inputs", "targets"))


def _contexts(asked: str, answered: str) -> tuple[str, ...]:
    """Where the passage of a pair may stand. A prompt is whole: nothing is pasted into it unasked."""
    if asked == "instruction":
        return ("input", "query", "context") if answered == "output" else ("context", "input", "query")
    return () if asked == "prompt" else ("context",)


_NAMED = {("instruction", "response"): "dolly", ("instruction", "output"): "alpaca"}

# In the order of detection: a row that has several of them is what the first says.
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
"""What `--columns` can rename, besides the fields of a turn."""


def format_problem(name: str) -> str:
    """What is wrong with the name of a format; empty for one that is known."""
    known = ("auto", *FORMATS)
    return "" if name in known else f"unknown format: {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}"


def format_of(row: Mapping[str, Any], among: Iterable[str]) -> tuple[str, bool]:
    """(the format of a row with our field names, whether all that it requires has a value); ("", False) for none.

    A key without a value counts as absent, so `messages: null` beside alpaca's fields is alpaca. Where no format is
    complete, the one with the most required fields present is returned; reading the row then gives the reason for its
    refusal.
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
    """The format of each row with our field names, "" for none; `format_name` is "auto" or the one that all have.

    Plain text only where no row is of another format, since it is learned without anything that asks for it.
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
    """The example in a row with our field names, and what was changed or not read. Raises Refusal.

    `names` (our field -> the user's) are the columns that the user named. `category` is "" where the row has none.
    """
    row = RowReader(fields, names or {})
    if format_name != "text" or row.names.keys() & {*JUDGEMENTS}:  # no answer is judged there, and a label is a class
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
    # What repeats a label, such as a language that is the source too, is read with it.
    unread = (column for column, value in row.left.items() if value not in (category, source))
    row.notes.columns = [row.names.get(column, column) for column in unread]
    return Example(row_id, tuple(messages), category, source, context, tools), row.notes


def _with_system(messages: list[Message], row: RowReader) -> list[Message]:
    system = read_system(row.take(*SYSTEM))
    own = {m.content for m in messages if m.role == "system" and m.content}
    if system and not own:
        return [Message("system", system), *messages]
    if own - {system} and system:
        row.notes.change("the column 'system', beside a system turn")
    return messages


def _checked(messages: list[Message], context: str, notes: Notes) -> tuple[list[Message], str]:
    """The turns from the first that asks to the last answer that is learned. Raises Refusal where nothing is left."""
    messages = [m for m in messages if m.role != "system" or m.content]
    begin = next((i for i, m in enumerate(messages) if m.role in ("user", "tool")), len(messages))
    if any(m.role == "assistant" for m in messages[:begin]) and begin < len(messages):
        notes.change("the model's turn at the beginning, before anything was asked")
        messages = [m for m in messages[:begin] if m.role == "system"] + messages[begin:]
    answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
    if not answers:
        raise Refusal("no answer")
    learned = [i for i in answers if messages[i].learned]
    if not learned:
        raise Refusal("every answer is marked as not to be learned")
    if begin == len(messages):
        raise Refusal("nothing is asked, there are answers alone")
    after = messages[learned[-1] + 1 :]
    if after:
        masked = any(m.role == "assistant" for m in after)
        notes.change("turns after the last answer" + (" that is learned" if masked else ""))
    messages = messages[: learned[-1] + 1]
    if any(not m.content and not m.extra for m in messages if m.role == "assistant" and m.learned):
        raise Refusal("empty answer")
    if any(not m.content for m in messages if m.role == "user"):
        raise Refusal("empty instruction")
    shortened = [replace(m, content=_BLANK_LINES.sub("", m.content)) if m.role == "assistant" else m for m in messages]
    if shortened != messages:
        notes.change("blank lines before an answer")
    return shortened, context
