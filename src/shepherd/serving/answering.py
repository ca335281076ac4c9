"""Answers of one model to questions, in batches: the first turns of all questions of a batch, then the second ones.

    model = run_model(arm_name("runs/demo"))
    answer_batch(model, questions, AnswerDecoding(max_new_tokens=256))      # a list of replies per question, one a turn

A model is in this process, or behind an OpenAI-compatible endpoint. Nothing here knows a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from shepherd.config import ModelTable
from shepherd.data.prompts import Template
from shepherd.data.tokenize import encode_prompt
from shepherd.data.values import Refusal
from shepherd.errors import DataError
from shepherd.evaluation.judge.calls.client import Complete, Completion, Decoding, Endpoint
from shepherd.evaluation.judge.calls.faults import CallError
from shepherd.evaluation.question_rows import Question
from shepherd.model.base import Base
from shepherd.model.generate import TOP_P, generate
from shepherd.model.lora import CohortLora
from shepherd.model.outline import context_window
from shepherd.rng import derive
from shepherd.types import Message

NAMED = 5
"""Most questions that an error names."""


@dataclass(frozen=True)
class AnswerDecoding:
    """How answers are generated: greedily at temperature 0, else drawn, each from numbers of its question and turn."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0

    def to_row(self) -> dict[str, Any]:
        """For keys and lines: what does not matter to greedy decoding is left out."""
        drawn = {"top_p": TOP_P, "seed": self.seed} if self.temperature > 0 else {}
        return {"max_new_tokens": self.max_new_tokens, "temperature": self.temperature, **drawn}

    def seed_of(self, question: Question, turn: int) -> int:
        """The seed of an answer, the same for every model."""
        return derive(self.seed, "answer", question.hash, turn)


class Reply(NamedTuple):
    """The answer to one turn. tokens: None where nobody counted. cut: it ended at the limit of new tokens."""

    text: str
    tokens: int | None
    cut: bool


Asked = tuple[Question, Sequence[str]]
"""A question and the answers to its turns so far."""


class AnsweringModel(Protocol):
    """What answers questions."""

    def facts(self) -> Mapping[str, str]:
        """The fields of an `AnswerLine` that identify the model."""

    def key(self, question: Question, decoding: AnswerDecoding) -> str:
        """Identifies everything that decides the answers, sha256 (hex)."""

    def batches(self, questions: Sequence[Question], size: int) -> list[list[Question]]:
        """The questions in parts of at most `size` that are answered together."""

    def replies(self, asked: Sequence[Asked], decoding: AnswerDecoding) -> list[Reply | CallError]:
        """The next turn of each; in place of a reply the reason why there is none."""


@dataclass(frozen=True, eq=False)
class LocalModel:
    """A base with or without an adapter. table: how the base was loaded. `lora` holds one slot; adapter_digest: ""
    without one. scale: of an adapter whose folder anyone may have changed, None for one of a run."""

    base: Base
    lora: CohortLora | None
    template: Template
    table: ModelTable
    adapter_digest: str = ""
    scale: float | None = None
    _prompts: dict[Question, list[int]] = field(default_factory=dict)

    @property
    def precision(self) -> str:
        """The dtype of the base, with its quantisation where there is one: "bfloat16, 4bit"."""
        dtype, quantize = str(self.base.dtype).removeprefix("torch."), self.table.quantize
        return dtype if quantize == "none" else f"{dtype}, {quantize}"

    def facts(self) -> Mapping[str, str]:
        """The fields of an `AnswerLine` that identify the model."""
        return {
            "adapter_digest": self.adapter_digest,
            "base": self.base.public_name,
            "base_digest": self.base.digest,
            "dtype": self.precision,
            "template": self.template.name,
        }

    def prompt(self, question: Question, answers: Sequence[str] = ()) -> list[int]:
        """Token ids up to the answer of the turn after `answers`. Raises Refusal where the template cannot hold it."""
        messages = [*question.before]
        for number, turn in enumerate(question.turns[: len(answers) + 1]):
            messages.append(Message("user", turn))
            messages += [Message("assistant", text) for text in answers[number : number + 1]]
        return encode_prompt(self.template, self.base.tokenizer, messages, question.context, question.tools)

    def first(self, question: Question) -> list[int]:
        """`prompt` of the first turn, kept."""
        if question not in self._prompts:
            self._prompts[question] = self.prompt(question)
        return self._prompts[question]

    def key(self, question: Question, decoding: AnswerDecoding) -> str:
        """The ids of the first prompt stand for tokenizer, template and the passage before it."""
        model: list[Any] = [self.adapter_digest, self.base.digest, self.precision]
        model += [] if self.scale is None else [self.scale]
        return _sha256([*model, self.first(question), question.hash, decoding.to_row()])

    def batches(self, questions: Sequence[Question], size: int) -> list[list[Question]]:
        """Parts of prompts of a similar length, the shortest first."""
        return _parts(sorted(questions, key=lambda question: len(self.first(question))), size)

    def too_long(self, question: Question, max_new_tokens: int) -> str:
        """Why question and answers do not fit into the model's window, or why they cannot be rendered; else ""."""
        window = context_window(self.base.model.config)
        try:
            prompt = len(self.first(question))
            if len(question.turns) > 1:
                prompt = len(self.prompt(question, ["x"] * (len(question.turns) - 1)))
        except Refusal as reason:
            return str(reason)
        needed = prompt + max_new_tokens * len(question.turns)
        if window is None or needed <= window:
            return ""
        return f"{prompt} tokens and {needed - prompt} for answers are more than the {window} that the model reads"

    def replies(self, asked: Sequence[Asked], decoding: AnswerDecoding) -> list[Reply | CallError]:
        """The next turn of each, as one batch."""
        answers = generate(
            self.base.model,
            self.base.tokenizer,
            [self.prompt(question, before) if before else self.first(question) for question, before in asked],
            lora=self.lora,
            stops=self.template.stops,
            max_new_tokens=decoding.max_new_tokens,
            temperature=decoding.temperature,
            seed=[decoding.seed_of(question, len(before)) for question, before in asked],
            batch_size=len(asked),
        )
        return [Reply(answer.text, len(answer.ids), answer.finish_reason == "length") for answer in answers]


@dataclass(frozen=True, eq=False)
class EndpointModel:
    """A model behind an endpoint; `complete` is `connected(endpoint)`. notes: what it did not honour, each once."""

    endpoint: Endpoint
    complete: Complete
    notes: dict[str, None] = field(default_factory=dict)

    def facts(self) -> Mapping[str, str]:
        """The model as asked for. Its digest and precision are not known."""
        return {"base": self.endpoint.model, "endpoint": self.endpoint.host}

    def key(self, question: Question, decoding: AnswerDecoding) -> str:
        """Address, model, messages and decoding."""
        return _sha256([self.endpoint.url, self.endpoint.model, _messages(question, ()), question.hash,
                        decoding.to_row()])  # fmt: skip

    def batches(self, questions: Sequence[Question], size: int) -> list[list[Question]]:
        """Parts in the order of the questions; `size` requests are under way at once."""
        return _parts(questions, size)

    def replies(self, asked: Sequence[Asked], decoding: AnswerDecoding) -> list[Reply | CallError]:
        """The next turn of each, all at once."""
        with ThreadPoolExecutor(len(asked)) as pool:
            return list(pool.map(lambda one: self._reply(one, decoding), asked))

    def _reply(self, asked: Asked, decoding: AnswerDecoding) -> Reply | CallError:
        question, before = asked
        drawn = decoding.temperature > 0
        wanted = Decoding(
            max_tokens=decoding.max_new_tokens,
            temperature=decoding.temperature,
            seed=decoding.seed_of(question, len(before)) % 2**31 if drawn else None,
            extra={"top_p": TOP_P} if drawn else {},
        )
        try:
            found: Completion = self.complete(_messages(question, before), wanted)
        except CallError as error:
            return error
        self.notes.update(dict.fromkeys(f"{self.endpoint.host} did not honour {name}" for name in found.ignored))
        if found.model and found.model != self.endpoint.model:
            self.notes[f"{self.endpoint.host} answered as {found.model}, asked for {self.endpoint.model}"] = None
        if found.refused or not found.text:
            self.notes[f"{self.endpoint.host} declined questions, or gave empty answers"] = None
        return Reply(found.text, found.tokens_out, found.finish == "length")


def answer_batch(
    model: AnsweringModel, questions: Sequence[Question], decoding: AnswerDecoding
) -> list[list[Reply] | CallError]:
    """The replies to all turns of each question, turn by turn; in place of them the reason why one is missing."""
    found: list[list[Reply] | CallError] = [[] for _ in questions]
    for turn in range(max(len(question.turns) for question in questions)):
        asked = [
            (place, (question, [reply.text for reply in before]))
            for place, (question, before) in enumerate(zip(questions, found, strict=True))
            if turn < len(question.turns) and not isinstance(before, CallError)
        ]
        if not asked:
            break
        for (place, _), reply in zip(asked, model.replies([one for _, one in asked], decoding), strict=True):
            before = found[place]
            if isinstance(reply, CallError) or isinstance(before, CallError):
                found[place] = reply if isinstance(reply, CallError) else before
            else:
                before.append(reply)
    return found


def check_window(model: LocalModel, questions: Sequence[Question], decoding: AnswerDecoding, name: str) -> None:
    """Raise DataError for questions whose turns and answers do not fit into the model's window, before any is asked."""
    reasons = {question.id: model.too_long(question, decoding.max_new_tokens) for question in questions}
    long = [(name, reason) for name, reason in reasons.items() if reason]
    if long:
        first = "\n".join(f"  {question}: {reason}" for question, reason in long[:NAMED])
        more = f"\n  and {len(long) - NAMED:,} more" if len(long) > NAMED else ""
        raise DataError(
            f"{name} cannot answer {len(long)} of {len(questions)} questions:\n{first}{more}",
            hint="lower --max-new-tokens, or leave these questions out",
        )


def _messages(question: Question, answers: Sequence[str]) -> list[dict[str, str]]:
    messages = [{"role": message.role, "content": message.content} for message in question.before]
    for number, turn in enumerate(question.shown[: len(answers) + 1]):
        messages.append({"role": "user", "content": turn})
        messages += [{"role": "assistant", "content": text} for text in answers[number : number + 1]]
    return messages


def _parts(questions: Sequence[Question], size: int) -> list[list[Question]]:
    return [list(questions[start : start + size]) for start in range(0, len(questions), size)]


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
