"""Rendered conversations: text, target spans, and protection against control tokens in the data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from shepherd.data.values import Refusal
from shepherd.types import Message

Span = tuple[int, int]


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation. spans, context_span and breaks are character positions in `text`.

    spans: the answers that are targets, with their end tokens. breaks: places at which encoding starts anew. begins:
    where each answer begins, target or not. changed: alterations of the row by the template, as reasons to count.
    """

    text: str
    spans: tuple[Span, ...]
    context_span: Span | None = None
    breaks: tuple[int, ...] = ()
    changed: tuple[str, ...] = ()
    begins: tuple[int, ...] = ()


class Template(Protocol):
    """A rule that renders messages. `end` is the token after an answer; generation stops at any of `stops`.

    notes: remarks for whoever trains with it, a sentence each. day: the date in its prompts, or "".
    """

    name: str
    end: str
    stops: tuple[str, ...]
    notes: tuple[str, ...]
    day: str

    def render(self, messages: Sequence[Message], context: str = "", tools: str = "") -> Rendered:
        """The whole conversation, verified: it contains every text, and each span is an answer with `learned`.

        Raises Refusal, with the reason, for a row that the template cannot represent.
        """

    def prompt(self, messages: Sequence[Message], context: str = "", tools: str = "") -> str:
        """The prompt of generation: all up to the beginning of the last answer, which is left out."""

    def opening(self, messages: Sequence[Message], context: str = "", tools: str = "") -> Rendered:
        """The prompt with its breaks and begins, for `tokenize.encode_prompt`. Raises Refusal for plain text."""


def control_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The texts of the tokenizer's control tokens, longest first."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    texts = {token.content for token in added if token.special} | set(getattr(tokenizer, "all_special_tokens", ()))
    return tuple(sorted((t for t in texts if t), key=lambda t: (-len(t), t)))


def start_token(tokenizer: Any) -> str:
    """The token that the tokenizer prepends to a text, or ""."""
    if not tokenizer.bos_token:
        return ""
    ids = tokenizer("a").input_ids
    return tokenizer.bos_token if ids and ids[0] == tokenizer.bos_token_id else ""


def is_text(messages: Sequence[Message]) -> bool:
    """Whether a row is plain text, to which no template applies."""
    return any(m.role == "text" for m in messages)


def plain(messages: Sequence[Message], tokenizer: Any) -> Rendered:
    """A row of plain text: start token, text and end token, of which text and end token are targets."""
    text = "".join(m.content for m in messages)
    protected = Protected(control_tokens(tokenizer), [text])
    start = start_token(tokenizer)
    text = start + protected.hide(text) + tokenizer.eos_token
    return protected.restore(Rendered(text, ((len(start), len(text)),)))


def without_answer(messages: Sequence[Message]) -> Sequence[Message]:
    """The conversation without its last answer, as generation sees it. Raises Refusal for plain text."""
    if is_text(messages):
        raise Refusal("a plain text has no prompt")
    return messages[:-1] if messages and messages[-1].role == "assistant" else messages


def bare(prompt: str) -> str:
    """The prompt without trailing spaces, which belong to the first token of the answer (" The")."""
    return prompt.rstrip(" ")


class Protected:
    """Control tokens spelled out in a row: hidden from the template, restored as text with a break inside."""

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
