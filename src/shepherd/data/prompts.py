"""Prompt templates by name: messages in, the model's text and the spans of its answers out.

A chat template comes with the model; a text template is alpaca's or the user's. Both end every answer with the token
that stops generation, which is a target.

Control tokens come from templates only. A row that spells one out ("<|im_end|>") is rendered unchanged with a break
inside it, at which `tokenize.encode` starts anew, so that the tokenizer sees two ordinary pieces of text.
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
    """The error message for a value of data.template, as far as it is known without a tokenizer, or ""."""
    if name in NAMES:
        return ""
    if "{instruction}" not in name and name.isidentifier():
        return (
            f"unknown template: {name!r}.{did_you_mean(name, NAMES)} Known: {', '.join(NAMES)}, or a text "
            "that contains {instruction}"
        )
    return text_problem(name)


def build_template(name: str, tokenizer: Any) -> Template:
    """`chat`, `alpaca`, `auto` (chat if the tokenizer has a chat template, else alpaca), or a text with {instruction}.

    Raises ModelError for a tokenizer without chat template or end token, and for a chat template that fails, draws at
    random or omits answers; UsageError for an unknown name or an invalid text.
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
                hint='set data.template = "alpaca", or a text that contains {instruction}',
            )
        return ChatTemplate(tokenizer)
    if name == "alpaca":
        without_input = (ALPACA_WITHOUT_INPUT, ALPACA_INTRODUCTION_WITHOUT_INPUT)
        return TextTemplate("alpaca", ALPACA, tokenizer, ALPACA_INTRODUCTION, without_input)
    return TextTemplate("own text", name, tokenizer)
