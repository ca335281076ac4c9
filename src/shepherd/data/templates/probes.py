"""Probes of a chat template: its properties, found by rendering short conversations."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from shepherd.data.templates.rendering import bare
from shepherd.data.values import Refusal
from shepherd.errors import ModelError
from shepherd.types import Message

OTHER_TEMPLATE = 'set data.template = "alpaca", or a text that contains {instruction}'

Render = Callable[[Sequence[Message], str, bool], str]
"""render(messages, tools, generation) is the text of a conversation. Raises Refusal."""


class AnswerFrame(NamedTuple):
    """The template's text around answers.

    opener: what precedes an answer without being in any generation prompt, or "". end: the control token that closes an
    answer, or "". notes: remarks for the user. text: the probe conversation as rendered.
    """

    opener: str
    end: str
    notes: tuple[str, ...]
    text: str


def renders_system(render: Render) -> bool:
    """Whether a leading system turn precedes the first user turn, in prompts and in training texts.

    Some templates refuse it, omit it once there is an answer (Mistral 7B v0.3), or move it as turns are added.
    """
    turns = [Message("system", "shepherd-system"), Message("user", "shepherd-1"), Message("assistant", "shepherd-2")]
    try:
        texts = [render(turns[:2], "", True), render(turns, "", False), render([*turns, *turns[1:]], "", False)]
    except Refusal:
        return False
    return all(0 <= text.find(turns[0].content) < text.find(turns[1].content) for text in texts)


def takes_objects(render: Render) -> bool:
    """Whether the arguments of a tool call may be objects, as in transformers, rather than texts."""
    call = {"name": "shepherd-tool", "arguments": {"shepherd-key": "shepherd-value"}}
    extra = json.dumps({"tool_calls": [{"id": "shepherd1", "type": "function", "function": call}]})
    try:
        render([Message("user", "shepherd-question"), Message("assistant", "", extra=extra)], "", False)
    except Refusal as refusal:
        return "TypeError" not in str(refusal)
    return True


def answer_frame(render: Render, control: Sequence[str], model: str) -> AnswerFrame:
    """The text around answers, by the tokenizer's control tokens. Raises ModelError if the template omits answers."""
    question, answer = Message("user", "shepherd-question"), Message("assistant", "shepherd-answer")
    try:
        text = render([question, answer], "", False)
        opened, unopened = render([question], "", True), render([question], "", False)
    except Refusal as error:
        reason = str(error).replace("the chat template fails: ", "").replace("the chat template ", "")
        raise ModelError(f"the chat template of {model} fails: {reason}", hint=OTHER_TEMPLATE) from None
    head, found, after = text.partition(answer.content)
    if not found:
        raise ModelError(f"the chat template of {model} does not show the assistant's turn", hint=OTHER_TEMPLATE)
    ends = [(after.find(token), -len(token), token) for token in control if token in after]
    end = min(ends)[2] if ends else ""
    start = bare(opened)
    written = head.removeprefix(start) if head.startswith(start) else ""
    if not written.strip():
        return AnswerFrame("", end, (), text)
    if opened == unopened:
        note = (
            f"the chat template has no generation prompt: {written!r} precedes every answer, in training and when "
            "answers are generated; other tools have to do the same"
        )
        return AnswerFrame(written, end, (note,), text)
    note = f"the chat template begins an answer with {written!r}, which is part of the target"
    return AnswerFrame("", end, (note,), text)
