"""The conversations on which an exported model is compared with that of its run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shepherd.data.prompts import Rendered, Template
from shepherd.data.tokenize import encode
from shepherd.data.values import Refusal
from shepherd.errors import DataError
from shepherd.types import Message
from shepherd.updates.privacy.publication import place_of

CONVERSATIONS, TOKENS = 4, 128  # whose logits are compared: so many, at most so many tokens of each
FIXED = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Name three colours.", "Red, blue and green."),
    ("Write a short sentence about sheep.", "The sheep graze on the hill."),
)


def conversations_of(folder: Path, template: Template, tokenizer: Any) -> tuple[tuple[int, ...], ...]:
    """Held-out rows that the run answered, or fixed questions when it answered none, as token ids."""
    path = place_of(folder, "evaluation/generations.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    try:
        answered = [_conversation(record) for record in map(json.loads, lines[:CONVERSATIONS])]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read: {error!r}", hint="run `shepherd run` again") from None
    fixed = [([Message("user", question), Message("assistant", answer)], "") for question, answer in FIXED]
    texts = [([Message("text", answer)], "") for _, answer in FIXED]  # no template refuses these
    shown = next(filter(None, (_shown(conversations, template) for conversations in (answered, fixed, texts))))
    encoded = encode(shown, tokenizer)
    return tuple(tuple(ids[:TOKENS].tolist()) for ids, _ in encoded)


def _shown(conversations: Sequence[tuple[list[Message], str]], template: Template) -> list[Rendered]:
    """Those of the conversations (messages, tools) that the template shows."""
    rendered = []
    for messages, tools in conversations:
        with contextlib.suppress(Refusal):
            rendered.append(template.render(messages, "", tools))
    return rendered


def _conversation(record: Mapping[str, Any]) -> tuple[list[Message], str]:
    """(messages, tools) of a line of generations.jsonl, its reference for the answer."""
    asked = [
        Message(m["role"], m["content"], True, m.get("reasoning", ""), m.get("extra", "")) for m in record["prompt"]
    ]
    return [*asked, Message("assistant", record["reference"])], record.get("tools", "")
