"""Messages -> the text that the model sees, and which characters of it are the response.

A chat template is the model's own; a text template is alpaca's or the user's. Both end every response with the token
at which generation stops, and that token is learned.

Control tokens come from templates only. A text that spells one out ("<|im_end|>") is rendered as it is, with a
`break` inside it: `tokenize.encode` starts afresh there, so that the tokenizer sees two ordinary pieces of text.
"""

from __future__ import annotations

from typing import Any

from shepherd.data.templates.chat import ChatTemplate
from shepherd.data.templates.rendering import Rendered, Template, model_name
from shepherd.data.templates.text import (
    ALPACA,
    ALPACA_INTRODUCTION,
    ALPACA_INTRODUCTION_WITHOUT_INPUT,
    ALPACA_WITHOUT_INPUT,
    TextTemplate,
    text_problem,
)
from shepherd.errors import ModelError, UsageError, did_you_mean

__all__ = ["Rendered", "Template", "build_template", "template_problem"]

NAMES = ("auto", "chat", "alpaca")


def template_problem(name: str) -> str:
    """What is wrong with data.template, as far as that can be told without a tokenizer; empty where nothing is."""
    if name in NAMES:
        return ""
    if "{instruction}" not in name and name.isidentifier():
        return (
            f"unknown template: {name!r}.{did_you_mean(name, NAMES)} Known: {', '.join(NAMES)}, or a text of your own "
            "that contains {instruction}"
        )
    return text_problem(name)


def build_template(name: str, tokenizer: Any) -> Template:
    """`chat`, `alpaca`, `auto` (chat where the tokenizer has one, else alpaca), or a text that has {instruction}.

    Raises ModelError for a tokenizer without a chat template or without an end token, and for a chat template that
    fails, draws at random or shows no answers; UsageError for another name, and for a text with a mistake.
    """
    if problem := template_problem(name):
        raise UsageError(problem)
    if not getattr(tokenizer, "eos_token", None):
        raise ModelError(
            f"the tokenizer of {model_name(tokenizer)} has no end token (eos_token)",
            hint="set eos_token in its tokenizer_config.json; without one the model never learns to stop",
        )
    has_chat = bool(getattr(tokenizer, "chat_template", None))
    if name == "auto":
        name = "chat" if has_chat else "alpaca"
    if name == "chat":
        if not has_chat:
            raise ModelError(
                f"the tokenizer of {model_name(tokenizer)} has no chat template",
                hint='set data.template = "alpaca", or a text of your own that contains {instruction}',
            )
        return ChatTemplate(tokenizer)
    if name == "alpaca":
        without_input = (ALPACA_WITHOUT_INPUT, ALPACA_INTRODUCTION_WITHOUT_INPUT)
        return TextTemplate("alpaca", ALPACA, tokenizer, ALPACA_INTRODUCTION, without_input)
    return TextTemplate("own text", name, tokenizer)
