"""A model on this machine in the place of a judge's endpoint, to try the plumbing without a key.

    complete = local_judge("smollm2-135m-instruct")
    complete([{"role": "user", "content": "…"}], Decoding(max_tokens=64)).text

A small model is not a judge: SmolLM2-135M follows the order of two answers in 93 % of its verdicts, not the answers.
"""

from __future__ import annotations

import threading
import time

from shepherd.data.prompts import build_template
from shepherd.data.tokenize import encode_prompt
from shepherd.data.values import Refusal
from shepherd.evaluation.judge.calls.client import Complete, Completion, Decoding, Messages
from shepherd.evaluation.judge.calls.faults import CallError
from shepherd.model.base import load_base
from shepherd.model.generate import generate
from shepherd.model.outline import context_window
from shepherd.types import Message

PREFIX = "local:"


def local_judge(name: str, device: str = "auto") -> Complete:
    """The function that completes chats with a base model, one at a time. Raises ModelError as `load_base`."""
    base = load_base(name, device=device)
    template = build_template("auto", base.tokenizer)
    window = context_window(base.model.config)
    turn = threading.Lock()

    def complete(messages: Messages, decoding: Decoding) -> Completion:
        start = time.monotonic()
        try:
            turns = [Message(message["role"], message["content"]) for message in messages]
            ids = encode_prompt(template, base.tokenizer, turns)
        except Refusal as reason:
            raise CallError(f"{PREFIX}{name} refuses the prompt: {reason}", reason="request") from None
        if window is not None and len(ids) + decoding.max_tokens > window:
            raise CallError(
                f"a prompt of {len(ids):,} tokens and a reply of {decoding.max_tokens:,} do not fit into the window of "
                f"{PREFIX}{name}, {window:,} tokens",
                hint="show less of an answer with --answer-limit",
                reason="request",
            )
        with turn:
            (answer,) = generate(
                base.model,
                base.tokenizer,
                [ids],
                stops=template.stops,
                max_new_tokens=decoding.max_tokens,
                temperature=decoding.temperature or 0.0,
                seed=decoding.seed or 0,
            )
        return Completion(
            answer.text,
            model=f"{PREFIX}{name}",
            finish=answer.finish_reason,
            tokens_in=len(ids),
            tokens_out=len(base.tokenizer.encode(answer.text, add_special_tokens=False)),
            ignored=tuple(decoding.extra),
            seconds=time.monotonic() - start,
        )

    return complete
