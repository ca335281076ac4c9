"""Talking to what a run tuned: questions from a stream in, answers as they come out, beside another model's if wished.

    chat("runs/demo", "base")           # each question is answered by the tuned model and by its base

On a terminal there are a prompt, labels and, where two models answer and the window is wide, two columns. Elsewhere
the answers alone go to `stdout`, an empty line between them. What a model writes is cleaned before it is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shepherd.data.formats import Refusal
from shepherd.data.tokenize import encode_prompt
from shepherd.model.generate import generate
from shepherd.model.lora import CohortLora
from shepherd.rng import derive
from shepherd.serving.tuned import Tuned, load_tuned
from shepherd.types import Message

Hear = Callable[[str], None]


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn: greedy at temperature 0. Every model draws the answer of turn t from the same numbers."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0


@dataclass
class Voice:
    """One model in the conversation, and what it remembers of it: question and answer in turn."""

    name: str
    tuned: Tuned
    lora: CohortLora | None
    history: list[Message] = field(default_factory=list)

    def prompt(self, question: str, system: str, max_new_tokens: int) -> tuple[list[int], int, int]:
        """(token ids, room for the answer, exchanges forgotten so that both fit into the model's window).

        Raises Refusal when the question alone is too long, or when the template cannot show it.
        """
        window = getattr(self.tuned.base.model.config.get_text_config(), "max_position_embeddings", None)
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

    def answer(self, ids: Sequence[int], room: int, sampling: Sampling, turn: int, hear: Hear) -> str:
        """The answer to a prompt; `hear` is told the text so far while it grows."""
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
            on_text=hear,
        )[0].text


def voices_of(run_dir: Path | str, compare: str | None, round_number: int | None) -> list[Voice]:
    tuned = load_tuned(run_dir, round_number=round_number)
    voices = [Voice(tuned.name, tuned, tuned.lora)]
    if compare == "base":
        voices.append(Voice("base", tuned, None))
    elif compare is not None:
        other = load_tuned(compare, shared=tuned.base)
        voices.append(Voice(other.name if other.name != tuned.name else str(compare), other, other.lora))
    return voices
