"""Outlines of rendered conversations: the verified position of every text in the output of a chat template.

The outline is a second rendering of the conversation, with a mark in place of every text. The literals between the
marks belong to the template, and the real rendering must equal the outline with the texts substituted for the marks,
character by character. White space at the edges of a text and texts that the template searches for ("</think>") are
kept in the marked conversation, so that the template treats both alike. Rows of one shape share an outline.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from shepherd.data.templates.rendering import Span
from shepherd.data.tool_calls import CALLS, are_rendered, mapped_texts, names_in
from shepherd.data.values import Refusal
from shepherd.types import Message

FIRST, MOST = 0x100000, 0xFFFD  # the marks are characters of plane 16, for private use
NO_REASONING = "omits the reasoning of the answer (as <think>…</think> in the answer it would be a target)"
_NAMES = {"system": "the system turn", "user": "a user turn", "tool": "a tool turn", "assistant": "an answer"}


class Piece(NamedTuple):
    """The text that a mark stands for, its turn, and whether a template may escape it as JSON or Python."""

    turn: int
    text: str
    escaped: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """An assistant's turn in an outline.

    first, last: its marks, numbered by occurrence. head: characters of the template between the start of generation and
    the first mark. tail: characters after the last mark that belong to the answer, including its end token; without one
    the answer is not `closed`. problem: why the turn cannot be a target, or "". altered: a part of its text is missing
    or repeated.
    """

    first: int
    last: int
    head: int
    tail: int
    closed: bool
    problem: str = ""
    altered: bool = False


@dataclass(frozen=True, slots=True)
class Outline:
    """`literals` are the texts of the template, one more than the `marks` between them, which are indices of pieces.

    answers: by turn. changed: alterations by the template that leave all texts in place.
    """

    literals: tuple[str, ...]
    marks: tuple[int, ...]
    answers: Mapping[int, Answer]
    changed: tuple[str, ...]


class Renderer(NamedTuple):
    """The functions of a template that outlines need.

    render(messages, tools, generation) is the text, prompt(messages, tools) the prompt of an answer to them.
    end_of(tail): for the text after a last answer, (characters that belong to it, whether an end token closes it).
    closes(text): whether the text after an earlier answer has an end token.
    """

    render: Callable[[Sequence[Message], str, bool], str]
    prompt: Callable[[Sequence[Message], str], str]
    end_of: Callable[[str], tuple[int, bool]]
    closes: Callable[[str], bool]


def sketch(messages: Sequence[Message], kept: re.Pattern[str] | None) -> tuple[tuple[Message, ...], list[Piece]]:
    """The messages with marks in place of their texts, except matches of `kept`, and the pieces behind the marks."""
    pieces: list[Piece] = []

    def marked(text: str, turn: int, escaped: bool = False) -> str:
        parts = kept.split(text) if kept else [text]
        if not any(part.strip() for part in parts[::2]):
            parts = [text]  # the text has nothing else
        for at, part in enumerate(parts):
            core = part.strip()
            if core and at % 2 == 0:
                left, right = part.split(core) if part != core else ("", "")
                parts[at] = left + _mark(len(pieces)) + right
                pieces.append(Piece(turn, core, escaped))
        return "".join(parts)

    def of_call(text: str, turn: int) -> str:
        pieces.append(Piece(turn, text, True))
        return _mark(len(pieces) - 1)

    marked_messages = []
    for turn, m in enumerate(messages):
        extra = m.extra
        if CALLS in extra:
            fields = mapped_texts(json.loads(extra), partial(of_call, turn=turn))
            extra = json.dumps(fields, ensure_ascii=False)
        reasoning = marked(m.reasoning, turn) if m.reasoning else ""
        marked_messages.append(Message(m.role, marked(m.content, turn, m.role == "tool"), True, reasoning, extra))
    if len(pieces) > MOST:
        raise Refusal("more pieces of text than can be distinguished")
    return tuple(marked_messages), pieces


def make_outline(messages: Sequence[Message], tools: str, generation: bool, renderer: Renderer) -> Outline:
    """The outline of marked messages. Raises Refusal if a turn is missing or out of order."""
    text = renderer.render(messages, tools, generation)
    owners = {number: turn for turn, m in enumerate(messages) for number in _marks(m.content + m.reasoning + m.extra)}
    occurring = [number for number in _marks(text) if number in owners]
    changed: dict[str, None] = {}
    problems = [_problem(turn, message, text, changed) for turn, message in enumerate(messages)]
    _check_order([owners[number] for number in occurring])
    if tools:
        _check_tools(messages, tools, generation, text, renderer)
    answers = {}
    for turn, message in enumerate(messages):
        if message.role == "assistant" and any(owners[number] == turn for number in occurring):
            answer, start = _answer(messages, turn, tools, generation, text, owners, renderer)
            answers[turn] = replace(answer, problem=problems[turn] or answer.problem, altered=bool(problems[turn]))
            # White space before an answer may belong to the template, which looks the same.
            if (
                not answers[turn].problem
                and message.content not in text[start:]
                and message.content.lstrip() in text[start:]
            ):
                changed["the chat template changes white space of the answer"] = None
    literals = re.split(f"[{''.join(map(_mark, owners))}]", text) if owners else [text]
    return Outline(tuple(literals), tuple(occurring), answers, tuple(changed))


def fill(outline: Outline, text: str, pieces: Sequence[Piece], messages: Sequence[Message]) -> list[Span]:
    """The span in `text` of each mark. Raises Refusal if it is not the outline with the pieces substituted."""
    spans: list[Span] = []
    at, turn = len(outline.literals[0]), 0
    matches = text.startswith(outline.literals[0])
    for number, literal in zip(outline.marks, outline.literals[1:], strict=True):
        turn = pieces[number].turn
        forms = (f for f in _forms(pieces[number]) if text.startswith(f, at) and text.startswith(literal, at + len(f)))
        form = next(forms, None)
        if form is None or not matches:
            matches = False
            break
        spans.append((at, at + len(form)))
        at += len(form) + len(literal)
    if not matches or at != len(text):
        raise Refusal(f"the chat template changes the text of {_NAMES[messages[turn].role]}")
    return spans


def _problem(turn: int, message: Message, text: str, changed: dict[str, None]) -> str:
    """Why an answer cannot be a target, or "". Raises Refusal if a text of the turn is missing or altered."""
    found, answer, name = _compare(message.content, text), message.role == "assistant", _NAMES[message.role]
    if found == "spaced":
        changed[f"the chat template changes white space of {'the answer' if answer else 'a prompt'}"] = None
    elif found == "gone":
        raise Refusal(f"the chat template omits {'a later system turn' if message.role == 'system' and turn else name}")
    elif found == "cut" and answer and _mark(_marks(message.content)[-1]) in text:
        return f"removes {'<think>…</think>' if '</think>' in message.content else 'a part'} from the answer"
    elif found:
        raise Refusal(f"the chat template changes the text of {name}")
    if CALLS in message.extra and not are_rendered(message.extra, text):
        raise Refusal("the chat template omits a tool call")
    if answer and any(text.count(_mark(number)) > 1 for number in _marks(message.content)):
        return "renders the text of an answer twice"
    found = _compare(message.reasoning, text)
    if found == "spaced":
        changed["the chat template changes white space of the reasoning"] = None
    return NO_REASONING if found not in ("", "spaced") else ""


def _compare(value: str, text: str) -> str:
    """The template's effect on a marked text: none (""), "spaced" (white space), "cut", "gone" or "changed"."""
    if not value.strip() or value in text:
        return ""
    present = [_mark(number) in text for number in _marks(value)]
    if not all(present):
        return "cut" if any(present) else "gone"
    if "".join(value.split()) in "".join(text.split()):
        return "spaced"
    return "changed" if present else "gone"


def _check_order(turns: Sequence[int]) -> None:
    """Raise Refusal if the turns' first marks are out of order. `turns`: the turn of each mark, by occurrence."""
    latest = -1
    for turn in dict.fromkeys(turns):
        if turn < latest:
            raise Refusal("the chat template rewrites earlier turns: it changes their order")
        latest = turn


def _check_tools(messages: Sequence[Message], tools: str, generation: bool, text: str, renderer: Renderer) -> None:
    try:
        without = renderer.render(messages, "", generation)
    except Refusal:
        without = ""  # it requires tools
    if text == without:
        raise Refusal("the chat template omits the tools")
    if any(name not in text for name in names_in(tools)):
        raise Refusal("the chat template omits a part of the tools")


def _answer(
    messages: Sequence[Message],
    turn: int,
    tools: str,
    generation: bool,
    text: str,
    owners: Mapping[int, int],
    renderer: Renderer,
) -> tuple[Answer, int]:
    """The extent of a generated answer, and the position in `text` at which it begins.

    An answer is a target only if the conversation up to it is a prefix of the whole one, as in generation. Templates
    may remove the reasoning of earlier turns, or render the last turn differently.
    """
    places = [(at, owners[ord(c) - FIRST]) for at, c in enumerate(text) if ord(c) - FIRST in owners]
    marks = [n for n, (_, owner) in enumerate(places) if owner == turn]
    begin, problem = places[marks[0]][0], ""
    prompt = renderer.prompt(messages[:turn], tools)
    shared = _common_prefix(text, prompt)
    between = any(shared <= at < begin for at, _ in places)
    if between or shared > begin:
        problem = "rewrites earlier turns"
    elif shared < len(prompt):
        problem = "rewrites earlier turns"
        if not _marks(prompt[shared:]):
            opened = prompt[_begin_of_token(prompt, shared) :]
            problem = f"begins a generated answer with {opened!r}, and renders given answers differently"
    start = min(shared, begin)
    is_last = turn == len(messages) - 1 and not generation
    prefix = text if is_last else renderer.render(messages[: turn + 1], tools, False)
    stop = max((at for at, c in enumerate(prefix) if owners.get(ord(c) - FIRST) == turn), default=-1) + 1
    tail, closed = renderer.end_of(prefix[stop:])
    last = marks[-1]
    if stop and text.startswith(prefix[:stop]):
        last = sum(at < stop for at, _ in places) - 1  # a later turn may repeat a call of this one
    if not problem and (not stop or not text.startswith(prefix[: stop + tail])):
        problem = "renders an answer differently once the conversation continues"
    follows = text[places[last][0] + 1 : places[last + 1][0] if last + 1 < len(places) else len(text)]
    if not follows.startswith(prefix[stop : stop + tail]):
        tail, closed = 0, renderer.closes(follows)
    return Answer(marks[0], last, begin - start, tail, closed, problem), start


def _forms(piece: Piece) -> Iterator[str]:
    yield piece.text
    if piece.escaped:
        yield json.dumps(piece.text, ensure_ascii=False)[1:-1]
        yield json.dumps(piece.text)[1:-1]
        yield repr(piece.text)[1:-1]


def _common_prefix(a: str, b: str) -> int:
    """The length of the longest common prefix."""
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _begin_of_token(text: str, at: int) -> int:
    """The beginning of the token <…> around position `at`, or `at`."""
    begin = text.rfind("<", 0, at + 1)
    return at if begin < 0 or ">" in text[begin:at].removesuffix(">") else begin


def _mark(number: int) -> str:
    return chr(FIRST + number)


def _marks(text: str) -> list[int]:
    return [ord(c) - FIRST for c in text if FIRST <= ord(c) <= FIRST + MOST]
