"""Rows of a file of questions, and what of them is not used.

    question, unused = question_of("mine.jsonl:3", {"id": 7, "instruction": "Sum it up.", "input": "…", "topic": "x"})
    question.context, unused                # ("…", ["topic"])

A row has an id (`question_id`, `id` or `prompt_id`) and a question, in one of three forms:

    turns                                          a list of texts, or of turns of the user after a system message
    text, question, prompt or instruction          one text, with an optional passage under `context` or `input`
    messages, conversations or conversation        a conversation: its last turn of the user is the question, what
                                                   stands before is given, and an answer after it is the reference

Further columns that are read: `system` (a system message), `category`, and `reference` (right answers, one for each
turn).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shepherd.data.formats import NO_INPUT, SYSTEM
from shepherd.data.row_reader import RowReader
from shepherd.data.trees import shorten
from shepherd.data.turns import is_turns, read_turns
from shepherd.data.values import Refusal, visible
from shepherd.errors import DataError
from shepherd.evaluation.answer_files import QuestionId, hash_of
from shepherd.types import Message

IDS = ("question_id", "id", "prompt_id")
ONE_TURN = ("text", "question", "prompt", "instruction")
PASSAGES = ("context", "input")
CONVERSATIONS = ("messages", "conversations", "conversation")


@dataclass(frozen=True)
class Question:
    """A question of one or more turns of the user; each follows the answer to the one before.

    before: a conversation that precedes the first turn. context: the passage that the only turn is about, where the
    template has a place for it. tools: as in `Example`. reference: right answers, one for each turn, "" where one is
    missing; empty where there are none.
    """

    id: QuestionId
    turns: tuple[str, ...]
    category: str = ""
    reference: tuple[str, ...] = ()
    before: tuple[Message, ...] = ()
    context: str = ""
    tools: str = ""

    @property
    def shown(self) -> tuple[str, ...]:
        """The turns as a person or a judge reads them: the passage stands after the question."""
        return (f"{self.turns[0]}\n\n{self.context}", *self.turns[1:]) if self.context else self.turns

    @property
    def preceding(self) -> list[dict[str, str]]:
        """The conversation that precedes the first turn, as JSON has it: first the tools that may be called, under the
        role `tools`; `extra` where a turn calls some, `reasoning` where an answer has it."""
        tools = [{"role": "tools", "content": self.tools}] if self.tools else []
        further = [
            {name: text for name in ("extra", "reasoning") if (text := getattr(message, name))}
            for message in self.before
        ]
        turns = [{"role": message.role, "content": message.content} for message in self.before]
        return [*tools, *(turn | more for turn, more in zip(turns, further, strict=True))]

    @property
    def hash(self) -> str:
        """Identifies the texts, not the id."""
        return hash_of(self.shown, self.preceding)


def question_of(where: str, fields: Mapping[str, Any]) -> tuple[Question, list[str]]:
    """The question of a row, and the names of its columns that are not used. where: names the row in errors.

    Raises DataError for a row that holds no question.
    """
    row = RowReader(fields, {})
    try:
        name = row.take(*IDS)
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise DataError(f"{where}: question_id is {name!r}, not a number or a name", hint="write it as a text")
        before, turns, passage, reference = _asked(where, row, list(fields))
        if not any(message.role == "system" for message in before) and (system := row.text(*SYSTEM)):
            before = (Message("system", system), *before)
        category = row.label("category")
        reference = reference or _reference(row, len(turns))
    except Refusal as reason:
        raise DataError(f"{where}: {reason}", hint="mend the row, or remove it") from None
    unused = [*row.left, *(f"a turn's {name}" for name in row.notes.fields)]
    return Question(name, turns, category, reference, before, passage), unused


Asked = tuple[tuple[Message, ...], tuple[str, ...], str, tuple[str, ...]]
"""What stands before the question, its turns, its passage, and the answers that are known."""


def _asked(where: str, row: RowReader, columns: Sequence[object]) -> Asked:
    if key := next((key for key in ("turns", *ONE_TURN) if key in row.left), ""):
        before, turns = _turns(where, row, key)
        passage = next((row.text(key) for key in PASSAGES if isinstance(row.left.get(key), str)), "")
        if passage.strip().casefold() in NO_INPUT:
            passage = ""
        if passage and len(turns) > 1:
            turns, passage = (f"{turns[0]}\n\n{passage}", *turns[1:]), ""
        return before, turns, passage, ()
    if key := next((key for key in CONVERSATIONS if key in row.left), ""):
        before, turns, answer = _conversation(where, row, key)
        return before, turns, "", (answer,) if answer else ()
    raise DataError(
        f"{where}: no question among its fields ({', '.join(map(str, columns))})",
        hint=f"add turns, or one of {', '.join((*ONE_TURN, CONVERSATIONS[0]))}",
    )


def _turns(where: str, row: RowReader, key: str) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """A system message where there is one, and the turns of the user."""
    value = row.take(key)
    listed = value if isinstance(value, list) else [value]
    before: tuple[Message, ...] = ()
    if is_turns(value) and all("role" in turn or "from" in turn for turn in listed):
        messages = _read(where, row, key, value)
        count = sum(message.role == "system" for message in messages[:1])
        before, listed = tuple(messages[:count]), [message.content for message in messages[count:]]
        if other := next((message.role for message in messages[count:] if message.role != "user"), ""):
            raise DataError(
                f"{where}: {key} has a turn of the role {other!r}, and the model gives the answers itself",
                hint="leave it out, or give the conversation under messages: then its last turn of the user is asked",
            )
    else:
        listed = [turn.get("content") if isinstance(turn, Mapping) else turn for turn in listed]
    if not listed or not all(isinstance(turn, str) and visible(turn) for turn in listed):
        raise DataError(f"{where}: {key} is {shorten(repr(value), 60)}", hint="a turn is a text that is not empty")
    return before, tuple(listed)


def _conversation(where: str, row: RowReader, key: str) -> tuple[tuple[Message, ...], tuple[str, ...], str]:
    """What stands before the last turn of the user, that turn, and the answer to it, or ""."""
    messages = _read(where, row, key, row.take(key))
    answer = messages.pop().content if messages and messages[-1].role == "assistant" else ""
    if not messages or messages[-1].role != "user" or not visible(messages[-1].content):
        raise DataError(f"{where}: {key} ends without a turn of the user that can be answered", hint="remove the row")
    return tuple(messages[:-1]), (messages[-1].content,), answer


def _read(where: str, row: RowReader, key: str, value: Any) -> list[Message]:
    messages = read_turns(value, repr(key), row.notes)
    if any(message.extra or message.role == "tool" for message in messages):
        raise DataError(f"{where}: {key} calls tools, and questions of a file are asked without tools",
                        hint="such rows can be held-out rows of a run: --questions held-out")  # fmt: skip
    return messages


def _reference(row: RowReader, turns: int) -> tuple[str, ...]:
    """Right answers by turn. Those that are not texts, or more than turns, stay unused."""
    value = row.left.get("reference")
    listed = value if isinstance(value, list) else [value]
    if len(listed) > turns or not all(text is None or isinstance(text, str) for text in listed):
        return ()
    row.take("reference")
    return tuple(text or "" for text in listed) if any(listed) else ()
