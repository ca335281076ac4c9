"""A conversation with one or more tuned models: prompts that fit their windows, answers, and what is remembered.

    conversation = Conversation(load_voices("runs/demo", "base"))
    exchange = conversation.ask("Why is grass green?")
    texts = [exchange.answer(index, print) for index in range(len(conversation.voices))]
    conversation.remember(exchange, texts)

Nothing here knows a terminal: `cli/chat.py` shows a conversation there, and a web page or an endpoint can do as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shepherd.data.tokenize import encode_prompt
from shepherd.data.values import Refusal
from shepherd.model.generate import generate
from shepherd.model.lora import CohortLora
from shepherd.model.outline import context_window
from shepherd.rng import derive
from shepherd.serving.tuned import Tuned, load_tuned
from shepherd.store.adapters import ArmName
from shepherd.types import Message

Emit = Callable[[str], None]
"""Receives an answer while it grows: each time the whole text so far."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn: greedy at temperature 0. Every model draws the answer of turn t from the same numbers."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0


@dataclass
class Voice:
    """One model in a conversation, and its history: questions and answers in turn."""

    name: str
    tuned: Tuned
    lora: CohortLora | None
    history: list[Message] = field(default_factory=list)

    def prompt(self, question: str, system: str, max_new_tokens: int) -> tuple[list[int], int, int]:
        """(token ids, room for the answer, exchanges dropped so that both fit into the context window).

        Raises Refusal when the question alone is too long, or when the template refuses it.
        """
        window = context_window(self.tuned.base.model.config)
        forgotten = 0
        while True:
            first = [Message("system", system)] if system else []
            messages = [*first, *self.history, Message("user", question)]
            ids = encode_prompt(self.tuned.template, self.tuned.base.tokenizer, messages)
            room = max_new_tokens if window is None else min(max_new_tokens, window - len(ids))
            if room == max_new_tokens or (not self.history and room > 0):
                return ids, room, forgotten
            if not self.history:
                raise Refusal(f"it has {len(ids)} tokens with its system message, and {self.name} reads {window}")
            del self.history[:2]
            forgotten += 1

    def answer(self, ids: Sequence[int], room: int, sampling: Sampling, turn: int, emit: Emit) -> str:
        """The answer to a prompt; `emit` receives the text so far while it grows."""
        base = self.tuned.base
        return generate(
            base.model,
            base.tokenizer,
            [ids],
            lora=self.lora,
            stops=self.tuned.template.stops,
            max_new_tokens=room,
            temperature=sampling.temperature,
            seed=derive(sampling.seed, "chat", turn),
            on_text=emit,
        )[0].text


@dataclass(frozen=True)
class Prompt:
    """Token ids for one voice, the room for its answer, and how many exchanges were dropped from its history."""

    ids: list[int]
    room: int
    forgotten: int


@dataclass
class Conversation:
    """Questions to several models with the same system message; `turn` counts the questions since the last reset."""

    voices: Sequence[Voice]
    sampling: Sampling = field(default_factory=Sampling)
    system: str = ""
    turn: int = 0

    def ask(self, question: str) -> Exchange:
        """The next turn: a prompt for every voice. Raises Refusal where one of them cannot take the question."""
        turn, self.turn = self.turn, self.turn + 1
        room = self.sampling.max_new_tokens
        prompts = tuple(Prompt(*voice.prompt(question, self.system, room)) for voice in self.voices)
        return Exchange(question, turn, self.voices, self.sampling, prompts)

    def remember(self, exchange: Exchange, answers: Sequence[str]) -> None:
        """Add a completed exchange to the history of every voice."""
        for voice, text in zip(self.voices, answers, strict=True):
            voice.history += [Message("user", exchange.question), Message("assistant", text)]

    def reset(self) -> None:
        """Forget all exchanges; the system message stays."""
        self.turn = 0
        for voice in self.voices:
            voice.history.clear()


@dataclass(frozen=True)
class Exchange:
    """One question and the prompts made of it, one per voice. It enters no history by itself."""

    question: str
    turn: int
    voices: Sequence[Voice]
    sampling: Sampling
    prompts: tuple[Prompt, ...]

    def answer(self, index: int, emit: Emit) -> str:
        """The answer of voice `index`; `emit` receives the text so far while it grows."""
        prompt = self.prompts[index]
        return self.voices[index].answer(prompt.ids, prompt.room, self.sampling, self.turn, emit)


def load_voices(
    run_dir: ArmName | Path | str, compare: ArmName | str | None = None, round_number: int | None = None
) -> list[Voice]:
    """The tuned model of a run and, with `compare`, "base" or another adapter, of this run or another.

    `round_number` takes the adapter of that round's checkpoint in place of the final one. Raises ModelError where a
    base is no longer the one that an adapter was trained on.
    """
    tuned = load_tuned(run_dir, round_number=round_number)
    voices = [Voice(tuned.name, tuned, tuned.lora)]
    if compare == "base":
        voices.append(Voice("base", tuned, None))
    elif compare is not None:
        other = load_tuned(compare, shared=tuned.base)
        voices.append(Voice(other.name if other.name != tuned.name else str(compare), other, other.lora))
    return voices
