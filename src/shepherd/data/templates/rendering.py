"""What every template gives: text, the characters of it that are learned, and no control token that a user wrote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from shepherd.data.values import Refusal
from shepherd.types import Message

Span = tuple[int, int]


@dataclass(frozen=True)
class Rendered:
    """`text`, and in characters of it: the learned answers with their end tokens, the context, the breaks.

    begins: where each answer begins that stands in it, learned or not.
    changed: what the template did to the row that its text does not show, a reason each, to be counted.
    """

    text: str
    spans: tuple[Span, ...]
    context_span: Span | None = None
    breaks: tuple[int, ...] = ()
    changed: tuple[str, ...] = ()
    begins: tuple[int, ...] = ()


class Template(Protocol):
    """How messages become text. `end` is the token after a response, `stops` all those at which to stop generating.

    notes: what someone should know who trains with it, a sentence each. day: the day that its prompts are written on,
    or "" where they carry none.
    """

    name: str
    end: str
    stops: tuple[str, ...]
    notes: tuple[str, ...]
    day: str

    def render(self, messages: Sequence[Message], context: str = "", tools: str = "") -> Rendered:
        """The whole conversation, proven: every text stands in it, and each span is an answer whose `learned` is set.

        Raises Refusal for a row that the template cannot show, with the reason.
        """

    def prompt(self, messages: Sequence[Message], context: str = "", tools: str = "") -> str:
        """What generation starts from: all up to where the last response begins (an answer at the end is left out)."""

    def opening(self, messages: Sequence[Message], context: str = "", tools: str = "") -> Rendered:
        """The same with its breaks and begins, for `tokenize.encode_prompt`. Raises Refusal for a row of plain text."""


def control_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The texts that the tokenizer turns into control tokens, longest first."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    texts = {token.content for token in added if token.special} | set(getattr(tokenizer, "all_special_tokens", ()))
    return tuple(sorted((t for t in texts if t), key=lambda t: (-len(t), t)))


def start_token(tokenizer: Any) -> str:
    """The token that the tokenizer puts before a text by itself, or ""."""
    if not tokenizer.bos_token:
        return ""
    ids = tokenizer("a").input_ids
    return tokenizer.bos_token if ids and ids[0] == tokenizer.bos_token_id else ""


def is_text(messages: Sequence[Message]) -> bool:
    """Whether a row is a plain text, which no template touches."""
    return any(m.role == "text" for m in messages)


def plain(messages: Sequence[Message], tokenizer: Any) -> Rendered:
    """A row of plain text: the tokenizer's start token, the text and its end token, learned whole."""
    text = "".join(m.content for m in messages)
    protected = Protected(control_tokens(tokenizer), [text])
    start = start_token(tokenizer)
    whole = start + protected.hide(text) + tokenizer.eos_token
    return protected.restore(Rendered(whole, ((len(start), len(whole)),)))


def without_answer(messages: Sequence[Message]) -> Sequence[Message]:
    """The conversation up to its last answer, which an answer is generated to. Raises Refusal for a plain text."""
    if is_text(messages):
        raise Refusal("a plain text has no prompt")
    return messages[:-1] if messages and messages[-1].role == "assistant" else messages


def bare(prompt: str) -> str:
    """The prompt without spaces at its end: they belong to the response, whose first token (" The") carries them."""
    return prompt.rstrip(" ")


class Protected:
    """Control tokens that a user spelled out, hidden from the template and put back as text with a break inside."""

    def __init__(self, control: Sequence[str], texts: Iterable[str]) -> None:
        texts = list(texts)
        used = [token for token in control if any(token in text for text in texts)]
        self._hidden: dict[str, str] = {}
        if used:
            characters = set().union(*texts)
            free = (chr(c) for c in range(0xF0000, 0xFFFFE) if chr(c) not in characters)  # private use
            self._hidden = dict(zip(used, free, strict=False))

    def hide(self, text: str) -> str:
        for token, character in self._hidden.items():
            text = text.replace(token, character)
        return text

    def restore(self, rendered: Rendered) -> Rendered:
        if not self._hidden:
            return rendered
        tokens = {character: token for token, character in self._hidden.items()}
        pieces, breaks, grown = [], [], []
        length = 0
        for position, character in enumerate(rendered.text):
            piece = tokens.get(character, character)
            if character in tokens:
                breaks.append(length + 1)
                grown.append((position, len(piece) - 1))
            pieces.append(piece)
            length += len(piece)

        def move(position: int) -> int:
            return position + sum(extra for at, extra in grown if at < position)

        context = rendered.context_span
        return replace(
            rendered,
            text="".join(pieces),
            spans=tuple((move(a), move(b)) for a, b in rendered.spans),
            context_span=context and (move(context[0]), move(context[1])),
            breaks=tuple(breaks),
            begins=tuple(map(move, rendered.begins)),
        )


def model_name(tokenizer: Any) -> str:
    return getattr(tokenizer, "name_or_path", "") or "the model"
