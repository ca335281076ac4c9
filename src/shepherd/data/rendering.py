"""What every template gives: text, the characters of it that are learned, and no control token that a user wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shepherd.types import Message

Span = tuple[int, int]


@dataclass(frozen=True)
class Rendered:
    """`text`, and in characters of it: the responses with their end tokens, the context, the breaks."""

    text: str
    spans: tuple[Span, ...]
    context_span: Span | None = None
    breaks: tuple[int, ...] = ()


class Template(Protocol):
    """How messages become text. `end` is the token after a response, `stops` all those at which to stop generating."""

    name: str
    end: str
    stops: tuple[str, ...]

    def render(self, messages: Sequence[Message], context: str = "") -> Rendered:
        """The whole conversation. Raises Refusal for a row that the template cannot show."""

    def prompt(self, messages: Sequence[Message], context: str = "") -> str:
        """What generation starts from: all up to where the last response begins (an answer at the end is left out)."""

    def opening(self, messages: Sequence[Message], context: str = "") -> Rendered:
        """The same with its breaks, for `tokenize.encode_prompt`."""


def control_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The texts that the tokenizer turns into control tokens, longest first."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    texts = {token.content for token in added if token.special} | set(getattr(tokenizer, "all_special_tokens", ()))
    return tuple(sorted((t for t in texts if t), key=lambda t: (-len(t), t)))


def bare(prompt: str) -> str:
    """The prompt without spaces at its end: they belong to the response, whose first token (" The") carries them."""
    return prompt.rstrip(" ")


class Protected:
    """Control tokens that a user spelled out, hidden from the template and put back as text with a break inside."""

    def __init__(self, control: Sequence[str], texts: Sequence[str]) -> None:
        used = [token for token in control if any(token in text for text in texts)]
        self._hidden: dict[str, str] = {}
        if used:
            characters = set().union(*texts)
            free = (chr(c) for c in range(0xF0000, 0x10FFFE) if chr(c) not in characters)  # private use
            self._hidden = dict(zip(used, free, strict=False))

    def hide(self, text: str) -> str:
        for token, character in self._hidden.items():
            text = text.replace(token, character)
        return text

    def restore(self, text: str, spans: tuple[Span, ...], context_span: Span | None = None) -> Rendered:
        if not self._hidden:
            return Rendered(text, spans, context_span)
        tokens = {character: token for token, character in self._hidden.items()}
        pieces, breaks, grown = [], [], []
        length = 0
        for position, character in enumerate(text):
            piece = tokens.get(character, character)
            if character in tokens:
                breaks.append(length + 1)
                grown.append((position, len(piece) - 1))
            pieces.append(piece)
            length += len(piece)

        def move(position: int) -> int:
            return position + sum(extra for at, extra in grown if at < position)

        moved = tuple((move(a), move(b)) for a, b in spans)
        context_span = context_span and (move(context_span[0]), move(context_span[1]))
        return Rendered("".join(pieces), moved, context_span, tuple(breaks))


def model_name(tokenizer: Any) -> str:
    return getattr(tokenizer, "name_or_path", "") or "the model"
