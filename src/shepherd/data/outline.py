"""Where the texts of a conversation stand in what a chat template makes of it: proven, not searched for.

A conversation is rendered a second time with a mark in place of every text: its outline. What stands between the marks
is the template's own, and what was rendered must be just that with the texts put in for the marks, character by
character. White space at the edges of a text, and words that the template looks for ("</think>"), stay as they are in
the marked conversation, so that the template treats it as it treats the real one. Rows of one shape share an outline.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from shepherd.data.templates.rendering import Span
from shepherd.data.tool_calls import CALLS, mapped_texts, names_in, stand
from shepherd.data.values import Refusal
from shepherd.types import Message

FIRST, MOST = 0x100000, 0xFFFD  # the marks: plane 16, which is for private use
NO_REASONING = "leaves out the reasoning of the answer (as <think>…</think> in the answer it is learned)"
_NAMES = {"system": "the system turn", "user": "a user turn", "tool": "a tool turn", "assistant": "an answer"}


class Piece(NamedTuple):
    """A text behind a mark: of which turn, and whether a template may write it in the form of JSON or Python."""

    turn: int
    text: str
    escaped: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """One assistant's turn in an outline.

    first, last: its marks, counted as they occur. head: characters of the template between where generation starts and
    the first mark. tail: those after the last mark that belong to the answer, its end token included; where it is not
    `closed` there is none. problem: why the turn cannot be learned, or ""; where it is `altered`, a part of it is not
    shown, or not once.
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
    """`literals` are the template's own texts, one more than the `marks` between them, which are numbers of pieces.

    answers: by turn. changed: what the template does to texts that stand all the same.
    """

    literals: tuple[str, ...]
    marks: tuple[int, ...]
    answers: Mapping[int, Answer]
    changed: tuple[str, ...]


class Renderer(NamedTuple):
    """What an outline asks of a template.

    show(messages, tools, generation) is the text, before(messages, tools) what an answer to them starts from.
    end_of(tail) of what follows a last answer is (characters that belong to it, whether an end token closes it), and
    closes(text) whether there is an end token in what follows an earlier one.
    """

    show: Callable[[Sequence[Message], str, bool], str]
    before: Callable[[Sequence[Message], str], str]
    end_of: Callable[[str], tuple[int, bool]]
    closes: Callable[[str], bool]


def sketch(messages: Sequence[Message], kept: re.Pattern[str] | None) -> tuple[tuple[Message, ...], list[Piece]]:
    """The messages with marks for their texts but for what `kept` matches, and the pieces behind the marks."""
    pieces: list[Piece] = []

    def marked(text: str, turn: int, escaped: bool = False) -> str:
        parts = kept.split(text) if kept else [text]
        if not any(part.strip() for part in parts[::2]):
            parts = [text]  # it is nothing but such words
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

    drawn = []
    for turn, m in enumerate(messages):
        extra = m.extra
        if CALLS in extra:
            fields = mapped_texts(json.loads(extra), partial(of_call, turn=turn))
            extra = json.dumps(fields, ensure_ascii=False)
        reasoning = marked(m.reasoning, turn) if m.reasoning else ""
        drawn.append(Message(m.role, marked(m.content, turn, m.role == "tool"), True, reasoning, extra))
    if len(pieces) > MOST:
        raise Refusal("more pieces of text than can be told apart")
    return tuple(drawn), pieces


def make_outline(messages: Sequence[Message], tools: str, generation: bool, renderer: Renderer) -> Outline:
    """The outline of messages that hold marks. Raises Refusal where a turn does not stand in it, in its order."""
    text = renderer.show(messages, tools, generation)
    owners = {number: turn for turn, m in enumerate(messages) for number in _marks(m.content + m.reasoning + m.extra)}
    occurring = [number for number in _marks(text) if number in owners]
    changed: dict[str, None] = {}
    problems = [_standing(turn, message, text, changed) for turn, message in enumerate(messages)]
    _check_order([owners[number] for number in occurring])
    if tools:
        _check_tools(messages, tools, generation, text, renderer)
    answers = {}
    for turn, message in enumerate(messages):
        if message.role == "assistant" and any(owners[number] == turn for number in occurring):
            answer, start = _answer(messages, turn, tools, generation, text, owners, renderer)
            answers[turn] = replace(answer, problem=problems[turn] or answer.problem, altered=bool(problems[turn]))
            # White space before an answer may be the template's own, which looks the same.
            if (
                not answers[turn].problem
                and message.content not in text[start:]
                and message.content.lstrip() in text[start:]
            ):
                changed["the chat template changes white space of the answer"] = None
    literals = re.split(f"[{''.join(map(_mark, owners))}]", text) if owners else [text]
    return Outline(tuple(literals), tuple(occurring), answers, tuple(changed))


def fill(outline: Outline, text: str, pieces: Sequence[Piece], messages: Sequence[Message]) -> list[Span]:
    """The characters of `text` behind each mark. Raises Refusal where it is not the outline with the pieces put in."""
    spans: list[Span] = []
    at, turn = len(outline.literals[0]), 0
    stands = text.startswith(outline.literals[0])
    for number, literal in zip(outline.marks, outline.literals[1:], strict=True):
        turn = pieces[number].turn
        forms = (f for f in _forms(pieces[number]) if text.startswith(f, at) and text.startswith(literal, at + len(f)))
        form = next(forms, None)
        if form is None or not stands:
            stands = False
            break
        spans.append((at, at + len(form)))
        at += len(form) + len(literal)
    if not stands or at != len(text):
        raise Refusal(f"the chat template changes the text of {_NAMES[messages[turn].role]}")
    return spans


def _standing(turn: int, message: Message, text: str, changed: dict[str, None]) -> str:
    """What keeps an answer from being learned, or "". Raises Refusal where a text of the turn does not stand."""
    found, answer, name = _compare(message.content, text), message.role == "assistant", _NAMES[message.role]
    if found == "spaced":
        changed[f"the chat template changes white space of {'the answer' if answer else 'a prompt'}"] = None
    elif found == "gone":
        raise Refusal(
            f"the chat template leaves out {'a later system turn' if message.role == 'system' and turn else name}"
        )
    elif found == "cut" and answer and _mark(_marks(message.content)[-1]) in text:
        return f"cuts {'<think>…</think>' if '</think>' in message.content else 'a part'} out of the answer"
    elif found:
        raise Refusal(f"the chat template changes the text of {name}")
    if CALLS in message.extra and not stand(message.extra, text):
        raise Refusal("the chat template leaves out a tool call")
    if answer and any(text.count(_mark(number)) > 1 for number in _marks(message.content)):
        return "shows the text of an answer twice"
    found = _compare(message.reasoning, text)
    if found == "spaced":
        changed["the chat template changes white space of the reasoning"] = None
    return NO_REASONING if found not in ("", "spaced") else ""


def _compare(value: str, text: str) -> str:
    """What a template did to a text with marks: nothing (""), or it is "spaced" otherwise, "cut", "gone", "changed"."""
    if not value.strip() or value in text:
        return ""
    there = [_mark(number) in text for number in _marks(value)]
    if not all(there):
        return "cut" if any(there) else "gone"
    if "".join(value.split()) in "".join(text.split()):
        return "spaced"
    return "changed" if there else "gone"


def _check_order(turns: Sequence[int]) -> None:
    """`turns` are those of the marks as they occur; the first mark of each turn must come in the order of the turns."""
    latest = -1
    for turn in dict.fromkeys(turns):
        if turn < latest:
            raise Refusal("the chat template rewrites earlier turns: it changes their order")
        latest = turn


def _check_tools(messages: Sequence[Message], tools: str, generation: bool, text: str, renderer: Renderer) -> None:
    try:
        without = renderer.show(messages, "", generation)
    except Refusal:
        without = ""  # it insists on them
    if text == without:
        raise Refusal("the chat template leaves out the tools")
    if any(name not in text for name in names_in(tools)):
        raise Refusal("the chat template leaves out a part of the tools")


def _answer(
    messages: Sequence[Message],
    turn: int,
    tools: str,
    generation: bool,
    text: str,
    owners: Mapping[int, int],
    renderer: Renderer,
) -> tuple[Answer, int]:
    """Where the turn would be generated from and to, and at which character of `text` that begins.

    It is learned only where a conversation that ends with it is the beginning of this one, as it is when the answer is
    generated: templates take the reasoning out of earlier turns, or write their last one otherwise.
    """
    places = [(at, owners[ord(c) - FIRST]) for at, c in enumerate(text) if ord(c) - FIRST in owners]
    own = [n for n, (_, owner) in enumerate(places) if owner == turn]
    begin, problem = places[own[0]][0], ""
    before = renderer.before(messages[:turn], tools)
    shared = _shared(text, before)
    between = any(shared <= at < begin for at, _ in places)
    if between or shared > begin:
        problem = "rewrites earlier turns"
    elif shared < len(before):
        problem = "rewrites earlier turns"
        if not _marks(before[shared:]):
            opened = before[_begin_of_token(before, shared) :]
            problem = f"begins a generated answer with {opened!r}, and shows answers otherwise"
    start = min(shared, begin)
    whole = turn == len(messages) - 1 and not generation
    alone = text if whole else renderer.show(messages[: turn + 1], tools, False)
    stop = max((at for at, c in enumerate(alone) if owners.get(ord(c) - FIRST) == turn), default=-1) + 1
    tail, closed = renderer.end_of(alone[stop:])
    last = own[-1]
    if stop and text.startswith(alone[:stop]):
        last = sum(at < stop for at, _ in places) - 1  # a later turn may name a call of this one again
    if not problem and (not stop or not text.startswith(alone[: stop + tail])):
        problem = "writes an answer otherwise once the conversation goes on"
    follows = text[places[last][0] + 1 : places[last + 1][0] if last + 1 < len(places) else len(text)]
    if not follows.startswith(alone[stop : stop + tail]):
        tail, closed = 0, renderer.closes(follows)
    return Answer(own[0], last, begin - start, tail, closed, problem), start


def _forms(piece: Piece) -> Iterator[str]:
    yield piece.text
    if piece.escaped:
        yield json.dumps(piece.text, ensure_ascii=False)[1:-1]
        yield json.dumps(piece.text)[1:-1]
        yield repr(piece.text)[1:-1]


def _shared(a: str, b: str) -> int:
    """How many characters two texts have in common from their beginning."""
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _begin_of_token(text: str, at: int) -> int:
    """Where the token <…> that `at` stands in begins, or `at`."""
    begin = text.rfind("<", 0, at + 1)
    return at if begin < 0 or ">" in text[begin:at].removesuffix(">") else begin


def _mark(number: int) -> str:
    return chr(FIRST + number)


def _marks(text: str) -> list[int]:
    return [ord(c) - FIRST for c in text if FIRST <= ord(c) <= FIRST + MOST]
