"""Text templates: alpaca's and the user's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from shepherd.data.templates.rendering import (
    Protected,
    Rendered,
    Span,
    bare,
    control_tokens,
    is_text,
    plain,
    start_token,
    without_answer,
)
from shepherd.data.values import Refusal
from shepherd.types import Message

# Verbatim, since models have been tuned on this wording (Stanford Alpaca, 2023).
ALPACA_INTRODUCTION = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
ALPACA_INTRODUCTION_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
ALPACA = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n{response}"
ALPACA_WITHOUT_INPUT = "### Instruction:\n{instruction}\n\n### Response:\n{response}"


class TextTemplate:
    """A text with {instruction} and optionally {input} and {response}; the end token follows each answer.

    Without {response} the answer follows the text. Without {input} the context follows the instruction. Text after
    {response} is a target, since the model has to write it. Later turns repeat the block; a system message replaces the
    introduction. `without_input` is the pair (text, introduction) for conversations without a context.

    Conversations with reasoning or tools are refused, since a text has no place for them, and an answer without its
    reasoning, or to a missing tool result, would be a different answer.
    """

    day = ""

    def __init__(
        self,
        name: str,
        text: str,
        tokenizer: Any,
        introduction: str = "",
        without_input: tuple[str, str] | None = None,
    ) -> None:
        self.name = name
        self.end = tokenizer.eos_token
        self.stops: tuple[str, ...] = (self.end,)
        self._tokenizer = tokenizer
        self._control = control_tokens(tokenizer)
        self._with_input, self._introduction = text, introduction
        self._without_input, self._introduction_without_input = without_input or (text, introduction)
        self.notes = tuple(
            f"data.template holds a backslash and the letter {mark[1]}, not a {what}: write it between double quotes"
            for mark, what in {r"\n": "line break", r"\t": "tab"}.items()
            if mark in text
        )
        start = start_token(tokenizer)
        self._start = "" if start and text.startswith(start) else start

    def render(self, messages: Sequence[Message], context: str = "", tools: str = "") -> Rendered:
        if is_text(messages):
            return plain(messages, self._tokenizer)
        return self._render(messages, context, tools, generation=False)

    def prompt(self, messages: Sequence[Message], context: str = "", tools: str = "") -> str:
        return self.opening(messages, context, tools).text

    def opening(self, messages: Sequence[Message], context: str = "", tools: str = "") -> Rendered:
        return self._render(without_answer(messages), context, tools, generation=True)

    def _render(self, messages: Sequence[Message], context: str, tools: str, generation: bool) -> Rendered:
        _check(self.name, messages, tools)
        protected = Protected(self._control, [*(m.content for m in messages), context])
        context = protected.hide(context)
        hidden = [replace(m, content=protected.hide(m.content)) for m in messages]
        system, pairs = _pairs(hidden, generation)
        opening = system or (self._introduction if context else self._introduction_without_input)
        text = self._start + (f"{opening}\n\n" if opening else "")
        spans: list[Span] = []
        begins: list[int] = []
        context_span = None
        for number, (question, answer) in enumerate(pairs):
            last = number == len(pairs) - 1
            head, tail, inside = self._block(question, context if last else "")
            if inside is not None:
                context_span = (len(text) + inside, len(text) + inside + len(context))
            text += head
            if answer is None:
                text = bare(text)
                break
            end = "" if tail.rstrip().endswith(self.end) else self.end
            start, text = len(bare(text)), text + answer.content + tail + end
            begins.append(start)
            if answer.learned:
                spans.append((start, len(text)))
            text += "" if last else "\n\n"
        if not spans and not generation:
            raise Refusal("no answer that is a target")
        return protected.restore(Rendered(text, tuple(spans), context_span, begins=tuple(begins)))

    def _block(self, question: str, context: str) -> tuple[str, str, int | None]:
        """(text before the answer, text after it, position of the context in the former or None)."""
        body = self._with_input if context else self._without_input
        head, _, tail = body.partition("{response}")
        if context and "{input}" not in head:
            head = head.replace("{instruction}", "{instruction}\n\n{input}", 1)
        text, inside = "", None
        for part in re.split(r"(\{instruction\}|\{input\})", head):
            if part == "{input}" and context:
                inside = len(text)
            text += {"{instruction}": question, "{input}": context}.get(part, part)
        return text, tail, inside


def text_problem(text: str) -> str:
    """The error message for a user's template, or ""."""
    before, _, after = text.partition("{response}")
    if "{instruction}" not in before or "{response}" in after or "{instruction}" in after:
        return f"template {text!r}: {{instruction}} is required, and {{response}} may occur at most once, after it"
    unknown = [name for name in re.findall(r"\{(\w+)\}", text) if name not in ("instruction", "input", "response")]
    if unknown:
        known = "{instruction}, {input} and {response}"
        return f"template {text!r}: unknown placeholder {{{unknown[0]}}}; known are {known}"
    return ""


def _check(name: str, messages: Sequence[Message], tools: str) -> None:
    """Raise Refusal for tools and reasoning, for which a text has no place."""
    whose = f"the template {name!r} has no place for"
    if tools or any(m.role == "tool" or m.extra for m in messages):
        raise Refusal(f"{whose} tools")
    if any(m.reasoning for m in messages):
        raise Refusal(f"{whose} reasoning (as <think>…</think> in the answer it would be a target)")


def _pairs(messages: Sequence[Message], generation: bool) -> tuple[str, list[tuple[str, Message | None]]]:
    """The leading system text, and (instruction, answer) of each block; for generation the last answer is None."""
    system: list[str] = []
    pairs: list[tuple[str, Message | None]] = []
    prompts: list[str] = []
    for message in messages:
        if message.role == "system" and not pairs and not prompts:
            system.append(message.content)
        elif message.role != "assistant":
            prompts.append(message.content)
        elif prompts:
            pairs.append(("\n\n".join(prompts), message))
            prompts = []
        else:
            raise Refusal("two answers in a row")
    if generation:
        pairs.append(("\n\n".join(prompts), None))
    return "\n\n".join(system), pairs
