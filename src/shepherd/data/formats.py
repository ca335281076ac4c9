"""Row formats: the fields that identify each, and how its messages are read.

A format is a function that returns a `Format`:

    @formats
    def ticket() -> Format:
        \"\"\"A customer's question and the reply of the desk.\"\"\"
        def read(row):
            return [Message("user", row.text("asked")), Message("assistant", row.text("replied"))], ""
        return Format(("asked", "replied"), (), read)

A registered format is detected after those of this file; `data.format = "my_lab.rows:ticket"` reads all rows by one
that is not registered.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shepherd.data.refusals import JUDGEMENTS, ROW_MARKS
from shepherd.data.row_reader import Notes, RowReader
from shepherd.data.turns import REASONING, is_turns, read_history, read_turns, turns_in
from shepherd.data.values import Refusal, text
from shepherd.errors import UsageError, did_you_mean
from shepherd.registry import Registry
from shepherd.types import Message

SYSTEM = ("system", "system_prompt", "system_message", "systemInstruction", "system_instruction")
TOOLS = ("tools", "functions")
COMMON = ("category", "source")
NO_INPUT = ("<noinput>", "noinput", "no input", "n/a", "nan", "none", "null")


formats = Registry("format")


@dataclass(frozen=True)
class Format:
    """A format: `required` fields identify it, `read(row)` returns the messages without a system turn, and the context.

    optional: further fields of this format; `fields_of_rows` adds those of all formats.
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
        if passage.casefold() in NO_INPUT:
            row.notes.change(f"a placeholder for an empty input, such as {NO_INPUT[0]}")
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


def _add(name: str, about: str, form: Format) -> None:
    def factory() -> Format:
        return form

    factory.__name__, factory.__doc__ = name, about
    formats(factory)
    _BUILT_IN.append(name)


_BUILT_IN: list[str] = []
"""In the order of detection: the first match is the format of the row."""

_add("messages", "Turns under `messages`, each with role and content (OpenAI).", _conversation("messages"))
_add("sharegpt", "Turns under `conversations`, each with from and value (ShareGPT).", _conversation("conversations"))
_add("conversation", "Turns under `conversation`.", _conversation("conversation"))
for _q, _a in PAIRS:
    _about = f"A question under `{_q}`, its answer under `{_a}`."
    _add(_NAMED.get((_q, _a), f"{_q}_{_a}"), _about, _pair(_q, _a, _contexts(_q, _a)))
_add("text", "Plain text, all of it a target, where no row has another format.", Format(("text",), (), _plain))
_add("contents", "Turns under `contents`, each with role and parts (Gemini).", _conversation("contents"))


def in_order() -> list[str]:
    """The names of all formats in the order of detection: the built-in ones, then those that were added."""
    return [*_BUILT_IN, *added()]


def added() -> list[str]:
    """The names of formats from outside this file, sorted.

    Not those of plug-ins, which `data.format` has to name: how rows are read must not depend on what is installed.
    """
    return [name for name in formats if name not in _BUILT_IN and not formats.package(name)]


@functools.cache
def format_named(name: str) -> Format:
    """The format of this name, or of `module:function`. Raises UsageError when there is none."""
    form = formats.build(name)
    if not isinstance(form, Format):
        raise UsageError(f"format {name!r} returns no Format: {form!r}")
    return form


def fields_of_rows(format_name: str = "auto") -> tuple[str, ...]:
    """Fields that `--columns` can map, besides those of turns."""
    built_in = [format_named(name) for name in _BUILT_IN]
    others = [format_named(name) for name in added()]
    if format_name not in ("auto", *in_order()):
        others.append(format_named(format_name))
    return tuple(dict.fromkeys((
        *(field for form in built_in for field in form.required),
        *("context", "input", "history", *COMMON, *SYSTEM, *TOOLS, *REASONING, *ROW_MARKS, *JUDGEMENTS),
        *(field for form in others for field in (*form.required, *form.optional)),
    )))  # fmt: skip


def format_problem(name: str) -> str:
    """The error message for a format that is unknown or cannot be imported, or ""."""
    if name in ("auto", *in_order()):
        return ""
    known = ("auto", *dict.fromkeys((*in_order(), *formats.known())))
    if name in known:
        return ""
    if ":" in name:
        try:
            format_named(name)
        except UsageError as error:
            return error.message
        return ""
    return f"unknown format: {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}"
