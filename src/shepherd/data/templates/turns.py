"""Turns of a conversation in the form of chat templates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from shepherd.data.outline import Outline
from shepherd.data.templates.rendering import Span
from shepherd.data.values import Refusal
from shepherd.types import Message


def turn_of(message: Message) -> dict[str, Any]:
    """A turn as templates read it. Reasoning has two names: "reasoning_content" (Qwen 3), "thinking" (gpt-oss)."""
    turn = {"role": message.role, "content": message.content}
    if message.reasoning:
        turn |= {"reasoning_content": message.reasoning, "thinking": message.reasoning}
    return {**json.loads(message.extra), **turn} if message.extra else turn


def place_of(outline: Outline, turn: int, spans: Sequence[tuple[int, Span]]) -> Span:
    """The target span of an answer, by the positions of its first and last marks."""
    answer = outline.answers[turn]
    return spans[answer.first][1][0] - answer.head, spans[answer.last][1][1] + answer.tail


def join_context(messages: Sequence[Message], context: str) -> list[Message]:
    """The messages with the context after the last instruction, separated by an empty line."""
    joined = list(messages)
    if context:
        last = max((i for i, m in enumerate(joined) if m.role == "user"), default=None)
        if last is None:
            raise Refusal("a context without an instruction")
        joined[last] = replace(joined[last], content=f"{joined[last].content}\n\n{context}")
    return joined


def find_context(question: int, context: str, spans: Sequence[tuple[int, Span]], text: str) -> Span | None:
    """The span of the context, at the end of turn `question`."""
    stop = max((place[1] for turn, place in spans if turn == question), default=0)
    stop += len(context) - len(context.rstrip())
    return (stop - len(context), stop) if context and text.endswith(context, 0, stop) else None


def system_into_user(messages: Sequence[Message]) -> list[Message]:
    """The messages with each system turn merged into the next user turn, for templates without system turns."""
    out: list[Message] = []
    pending: list[str] = []
    for message in messages:
        if message.role == "system":
            pending.append(message.content)
        elif message.role == "user":
            out.append(replace(message, content="\n\n".join([*pending, message.content])))
            pending = []
        else:
            out.append(message)
    if pending:
        raise Refusal("a system turn without a user turn after it, and the chat template has no place for it")
    return out
