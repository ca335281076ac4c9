"""Templates that are plain text: alpaca's, or the user's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from shepherd.data.formats import Refusal
from shepherd.data.rendering import Protected, Rendered, Span, bare, control_tokens
from shepherd.types import Message

# Word for word as in the data set's format, since that is the wording that models have been tuned on.
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
    """A text with {instruction} and, where wanted, {input} and {response}; the end token follows each response.

    Without {response} the response goes at the end. Without {input} the context follows the instruction. What stands
    after {response} is learned, since the model has to write it. Later turns repeat the block; a system message
    stands first, in place of the introduction. (text, introduction) is one pair; `without_input` is the pair for a
    conversation without a context.
    """

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
        self.stops = (self.end,)
        self._control = control_tokens(tokenizer)
        self._with_input, self._introduction = text, introduction
        self._without_input, self._introduction_without_input = without_input or (text, introduction)
        self._start = tokenizer.bos_token if _adds_bos(tokenizer) else ""

    def render(self, messages: Sequence[Message], context: str = "") -> Rendered:
        return self._render(messages, context, generation=False)

    def prompt(self, messages: Sequence[Message], context: str = "") -> str:
        return self.opening(messages, context).text

    def opening(self, messages: Sequence[Message], context: str = "") -> Rendered:
        if messages and messages[-1].role == "assistant":
            messages = messages[:-1]
        return self._render(messages, context, generation=True)

    def _render(self, messages: Sequence[Message], context: str, generation: bool) -> Rendered:
        protected = Protected(self._control, [*(m.content for m in messages), context])
        context = protected.hide(context)
        system, pairs = _pairs([Message(m.role, protected.hide(m.content)) for m in messages], generation)
        opening = system or (self._introduction if context else self._introduction_without_input)
        text = self._start + (f"{opening}\n\n" if opening else "")
        spans: list[Span] = []
        context_span = None
        for number, (asked, answer) in enumerate(pairs):
            last = number == len(pairs) - 1
            head, tail, inside = self._block(asked, context if last else "")
            if inside is not None:
                context_span = (len(text) + inside, len(text) + inside + len(context))
            text += head
            if answer is None:
                text = bare(text)
                break
            start, text = len(bare(text)), text + answer + tail + self.end
            spans.append((start, len(text)))
            text += "" if last else "\n\n"
        return protected.restore(text, tuple(spans), context_span)

    def _block(self, asked: str, context: str) -> tuple[str, str, int | None]:
        """The text before the response, the text after it, and where the context begins in the former."""
        body = self._with_input if context else self._without_input
        head, _, tail = body.partition("{response}")
        if context and "{input}" not in head:
            head = head.replace("{instruction}", "{instruction}\n\n{input}", 1)
        text, inside = "", None
        for part in re.split(r"(\{instruction\}|\{input\})", head):
            if part == "{input}" and context:
                inside = len(text)
            text += {"{instruction}": asked, "{input}": context}.get(part, part)
        return text, tail, inside


def text_problem(text: str) -> str:
    """What is wrong with a template of the user's own; empty where nothing is."""
    before, _, after = text.partition("{response}")
    if "{instruction}" not in before or "{response}" in after or "{instruction}" in after:
        return f"template {text!r}: {{instruction}} stands in it, and {{response}} at most once, after it"
    unknown = [name for name in re.findall(r"\{(\w+)\}", text) if name not in ("instruction", "input", "response")]
    if unknown:
        known = "{instruction}, {input} and {response}"
        return f"template {text!r}: nothing is put in for {{{unknown[0]}}}, only for {known}"
    return ""


def _pairs(messages: Sequence[Message], generation: bool) -> tuple[str, list[tuple[str, str | None]]]:
    """The leading system text, and (instruction, answer) for each block; the last answer is None for generation."""
    system: list[str] = []
    pairs: list[tuple[str, str | None]] = []
    waiting: list[str] = []
    for message in messages:
        if message.role == "system" and not pairs and not waiting:
            system.append(message.content)
        elif message.role != "assistant":
            waiting.append(message.content)
        elif waiting:
            pairs.append(("\n\n".join(waiting), message.content))
            waiting = []
        else:
            raise Refusal("two answers in a row")
    if generation:
        pairs.append(("\n\n".join(waiting), None))
    return "\n\n".join(system), pairs


def _adds_bos(tokenizer: Any) -> bool:
    if not tokenizer.bos_token:
        return False
    ids = tokenizer("a").input_ids
    return bool(ids) and ids[0] == tokenizer.bos_token_id
