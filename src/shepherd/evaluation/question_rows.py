"""Rows of a file of questions, and which of their columns are unused.

    question, unused = question_of("mine.jsonl:3", {"id": 7, "instruction": "Sum it up.", "input": "…", "topic": "x"})
    question.context, unused                # ("…", ["topic"])

A row has an id (`question_id`, `id` or `prompt_id`) and a question, in one of three forms:

    turns                                          a list of texts, or of turns of the user after system messages
    text, question, prompt or instruction          one text, with an optional passage under `context` or `input`; a
                                                   prompt is complete, so it has no passage
    messages, conversations or conversation        a conversation: its last turn of the user is the question, what
                                                   stands before is given, and an answer after it is the reference

Further columns that are read: `system` (a system message), `category`, and `reference` (reference answers, one for each
turn). A table cell may hold a list as text: JSON, or Python as pandas writes it. A blank text is a missing one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from shepherd.data.formats import NO_INPUT, SYSTEM
from shepherd.data.row_reader import RowReader
from shepherd.data.trees import shorten
from shepherd.data.turns import is_turns, read_turns, turns_in
from shepherd.data.values import Refusal, missing, text, visible
from shepherd.errors import DataError
from shepherd.evaluation.answer_files import QuestionId, hash_of
from shepherd.evaluation.question_cells import has_role, items_of, list_in
from shepherd.types import Message

IDS = ("question_id", "id", "prompt_id")
TURNS = ("turns", "text", "question", "prompt", "instruction")
PASSAGES = ("context", "input")
CONVERSATIONS = ("messages", "conversations", "conversation")


@dataclass(frozen=True)
class Question:
    """A question of one or more turns of the user; each follows the answer to the one before.

    before: a conversation that precedes the first turn. context: the passage that the only turn is about, where the
    template has a place for it. tools: as in `Example`. reference: answers known to be right, by turn, "" where one is
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


def absent(value: Any) -> bool:
    """Whether a column has no value: it is missing, or a blank text."""
    return missing(value) or (isinstance(value, str) and not visible(value))


def question_of(where: str, fields: Mapping[str, Any]) -> tuple[Question, list[str]]:
    """The question of a row, and what of it is not used, by name. where: names the row in errors.

    Raises DataError for a row that holds no question.
    """
    row = RowReader({key: value for key, value in fields.items() if not absent(value)}, {})
    try:
        name = _id(where, row.take(*IDS))
        before, turns, passage, reference = _asked(where, row, fields)
        if not any(message.role == "system" for message in before) and (system := row.text(*SYSTEM)):
            before = (Message("system", system), *before)
        category = row.label("category")
        reference = reference or _reference(where, row, len(turns))
    except Refusal as reason:
        raise DataError(f"{where}: {reason}", hint="mend the row, or remove it") from None
    unused = [*row.left, *row.notes.columns, *(f"a turn's {name}" for name in row.notes.fields)]
    return Question(name, turns, category, reference, before, passage), unused


def _id(where: str, value: Any) -> QuestionId:
    """A number or a name. Parquet writes whole numbers as 1.0 where another row has none."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"{where}: question_id is {value!r}, not a number or a name", hint="write it as a text")
    return text(value, "question_id") if isinstance(value, str) else value


Asked = tuple[tuple[Message, ...], tuple[str, ...], str, tuple[str, ...]]
"""What stands before the question, its turns, its passage, and the answers that are known."""


def _asked(where: str, row: RowReader, fields: Mapping[str, Any]) -> Asked:
    key = next((key for key in TURNS if key in row.left), "")
    named = [name for name in CONVERSATIONS if name in row.left]
    if talk := next((name for name in named if not key or is_turns(items_of(turns_in(row.left[name])))), ""):
        before, turns, answer = _conversation(where, row, talk)
        if key:
            _take_copies(where, row, key, talk, [*before, Message("user", turns[0])])
        return before, turns, "", (answer,) if answer else ()
    if key:
        before, turns = _turns(where, row, key)
        passage = "" if key == "prompt" else _passage(row)
        if passage and len(turns) > 1:
            turns, passage = (f"{turns[0]}\n\n{passage}", *turns[1:]), ""
        return before, turns, passage, ()
    if empty := next((key for key in (*TURNS, *CONVERSATIONS) if key in fields), ""):
        raise _no_turns(where, empty, fields[empty])
    raise DataError(
        f"{where}: no question among its fields ({', '.join(map(str, fields))})",
        hint=f"add {', '.join(TURNS)} or {CONVERSATIONS[0]}",
    )


def _take_copies(where: str, row: RowReader, key: str, talk: str, messages: Sequence[Message]) -> None:
    """Take the columns that repeat one turn of the conversation. Raises DataError where none does."""
    said = {message.content for message in messages if message.role != "assistant"}
    alone = {name: value for name in TURNS if len(value := items_of(row.left.get(name))) == 1}
    copies = [name for name, (turn,) in alone.items() if isinstance(turn, str) and turn.strip() in said]
    if not copies:
        raise DataError(
            f"{where}: {key} and {talk} hold different questions",
            hint=f"remove one of them; {talk} is read where the other repeats one of its turns",
        )
    for name in copies:
        row.take(name)


def _passage(row: RowReader) -> str:
    """The first passage that is a text and no placeholder, or "". Others stay unused."""
    for key in PASSAGES:
        if not isinstance(row.left.get(key), str):
            continue
        passage = row.text(key)
        if passage.strip().casefold() not in NO_INPUT:
            return passage
        row.notes.columns = ["a placeholder for an empty input"]
    return ""


def _turns(where: str, row: RowReader, key: str) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """The system messages, and the turns of the user."""
    value = list_in(where, key, row.take(key), strict=key == "turns")
    items = items_of(value)
    with_role = [has_role(item) for item in items]
    if any(with_role) and not all(with_role):
        raise DataError(
            f"{where}: {key} holds turns with a role and turns without one: {shorten(repr(value), 60)}",
            hint="give each turn a role, or none of them",
        )
    before: tuple[Message, ...] = ()
    if any(with_role):
        messages = _read(where, row, key, items)
        before = tuple(takewhile(lambda message: message.role == "system", messages))
        if other := next((message.role for message in messages[len(before) :] if message.role != "user"), ""):
            raise _misplaced(where, key, other)
        turns: list[Any] = [message.content for message in messages[len(before) :]]
    else:
        turns = [item.get("content") if isinstance(item, Mapping) else item for item in items]
        objects = [item for item in items if isinstance(item, Mapping)]
        fields = [name for item in objects for name, field in item.items() if name != "content" and not absent(field)]
        row.notes.fields += dict.fromkeys(fields)
    if not turns or not all(isinstance(turn, str) and visible(turn) for turn in turns):
        raise _no_turns(where, key, value)
    return before, tuple(text(turn, repr(key)) for turn in turns)


def _misplaced(where: str, key: str, role: str) -> DataError:
    """The error for a turn among those of the user."""
    if role == "system":
        return DataError(f"{where}: {key} has a system message after a turn of the user", hint="put it first")
    return DataError(
        f"{where}: {key} has a turn of the role {role!r}, and the model gives the answers itself",
        hint="leave it out, or give the conversation under messages: then its last turn of the user is asked",
    )


def _no_turns(where: str, key: str, value: Any) -> DataError:
    return DataError(f"{where}: {key} is {shorten(repr(value), 60)}", hint="a turn is a text that is not empty")


def _conversation(where: str, row: RowReader, key: str) -> tuple[tuple[Message, ...], tuple[str, ...], str]:
    """What stands before the last turn of the user, that turn, and the answer to it, or "" where it is masked."""
    messages = _read(where, row, key, row.take(key))
    last = messages.pop() if messages and messages[-1].role == "assistant" else None
    answer = last.content if last else ""
    if last and answer and not last.learned:
        row.notes.columns.append("an answer that is masked")
        answer = ""
    if not messages or messages[-1].role != "user" or not visible(messages[-1].content):
        raise DataError(f"{where}: {key} ends without a turn of the user that can be answered", hint="remove the row")
    return tuple(messages[:-1]), (messages[-1].content,), answer


def _read(where: str, row: RowReader, key: str, value: Any) -> list[Message]:
    """The messages without reasoning, which neither an endpoint nor a judge gets, and without empty system messages."""
    messages = read_turns(value, repr(key), row.notes)
    if any(message.extra or message.role == "tool" for message in messages):
        raise DataError(f"{where}: {key} calls tools, and questions of a file are asked without tools",
                        hint="such rows can be held-out rows of a run: --questions held-out")  # fmt: skip
    if any(message.reasoning for message in messages) and "reasoning" not in row.notes.fields:
        row.notes.fields.append("reasoning")
    return [replace(message, reasoning="") for message in messages if message.role != "system" or message.content]


def _reference(where: str, row: RowReader, turns: int) -> tuple[str, ...]:
    """Reference answers by turn. Those that are not texts, or more than turns, stay unused."""
    listed = items_of(list_in(where, "reference", row.left.get("reference"), strict=turns > 1))
    if len(listed) > turns or not all(item is None or isinstance(item, str) for item in listed):
        return ()
    row.take("reference")
    found = tuple(text(item, "'reference'") for item in listed)
    return (*found, *[""] * (turns - len(found))) if any(found) else ()
