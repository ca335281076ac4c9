"""One line of calls.jsonl: the two answers, the prompt, and the text of the judge, unread.

    Call.from_row(json.loads(line)).text       # "… SCORES: 8 7"

Nothing in a line is computed from the judge's text, so that lines stay true when a reading changes. The answers
themselves stand in the files of `shepherd answer`; a line has their hashes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

Outcome = Literal["answered", "refused", "failed"]
"""answered: there is a text, perhaps empty. refused: the judge or its filter declined. failed: no usable reply; this
call is made again by the next command."""
Order = Literal["ab", "ba"]
"""Whose answer the judge was shown first."""
PROTOCOLS = ("fedit", "pairwise")


@dataclass(frozen=True)
class Call:
    """One call of a judge.

    key: identifies everything that decides the call (`ledger.key_of`). model, answered_model: as asked for, and as
    named in the reply. prompt: id of the prompt; prompt_hash: sha256 of its wording. a, b: names of the two arms in
    a table, the same for runs that differ in the seed only; a_source, b_source: "RUN:ARM" of the answers. a_answer,
    b_answer: sha256 of the answers; a_chars, b_chars: their lengths before any cut, a_cut, b_cut: whether the
    answer ended at its limit of tokens. reference: sha256 of the reference answers that were shown, "" without;
    answer_limit: characters of an answer that were shown, 0 where it is not known. ask: 0, or 1 for the one re-ask
    after a text that nobody could read. seed: of the runs, None where the two differ. tokens: as the endpoint
    counted, None where it did not. tries: requests made, failed ones included. ignored: parameters that the
    endpoint did not honour. time: UTC, ISO 8601.
    """

    key: str
    endpoint: str
    model: str
    protocol: str
    prompt: str
    prompt_hash: str
    question: str | int
    a: str
    b: str
    order: Order
    repeat: int = 0
    ask: int = 0
    category: str = ""
    question_hash: str = ""
    seed: int | None = None
    a_source: str = ""
    b_source: str = ""
    a_answer: str = ""
    b_answer: str = ""
    a_chars: int = 0
    b_chars: int = 0
    a_cut: bool = False
    b_cut: bool = False
    reference: str = ""
    answer_limit: int = 0
    decoding: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    outcome: Outcome = "answered"
    text: str = ""
    answered_model: str = ""
    finish: str = ""
    tokens_in: int | None = None
    tokens_out: int | None = None
    seconds: float = 0.0
    tries: int = 1
    ignored: tuple[str, ...] = ()
    error: str = ""
    time: str = ""

    @property
    def drawn_by(self) -> str:
        """The decoding as JSON, the same for all repeats, each of which adds its number to the seed."""
        seed = self.decoding.get("seed")
        first = {"seed": seed - self.repeat} if isinstance(seed, int) else {}
        return json.dumps({**self.decoding, **first}, sort_keys=True, default=str)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Call:
        """Raises ValueError with the field that is missing or not of its kind; unknown fields are left out."""
        values = {name: row[name] for name in _KINDS if name in row}
        for name, (kinds, words) in _KINDS.items():
            if name not in values:
                if name in _REQUIRED:
                    raise ValueError(f"no {name}")
            elif not isinstance(values[name], kinds) or (isinstance(values[name], bool) and bool not in kinds):
                raise ValueError(f"{name} is {type(values[name]).__name__}, not {words}")
        for name, known in (("protocol", PROTOCOLS), ("order", get_args(Order)), ("outcome", get_args(Outcome))):
            if name in values and values[name] not in known:
                raise ValueError(f"{name} is {str(values[name])[:40]!r}, not one of {', '.join(known)}")
        if "ignored" in values:
            values["ignored"] = tuple(map(str, values["ignored"]))
        return cls(**values)

    def to_row(self) -> dict[str, Any]:
        """The line as JSON writes it."""
        row = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        return row | {"decoding": dict(self.decoding), "ignored": list(self.ignored)}


_NUMBER = ((int, float), "a number")
_TEXT = ((str,), "a text")
_FLAG = ((bool,), "true or false")
_COUNT = ((int,), "a whole number")
_PERHAPS = ((int, type(None)), "a whole number")
_OF_KIND: Mapping[str, tuple[tuple[type, ...], str]] = {
    "question": ((str, int), "a number or a name"),
    "repeat": _COUNT, "ask": _COUNT, "seed": _PERHAPS, "a_chars": _COUNT, "b_chars": _COUNT,
    "a_cut": _FLAG, "b_cut": _FLAG, "answer_limit": _COUNT, "decoding": ((dict,), "an object"), "tokens_in": _PERHAPS,
    "tokens_out": _PERHAPS, "seconds": _NUMBER, "tries": _COUNT, "ignored": ((list,), "a list"),
}  # fmt: skip
_KINDS = {one.name: _OF_KIND.get(one.name, _TEXT) for one in dataclasses.fields(Call)}
_REQUIRED = ("key", "endpoint", "model", "protocol", "prompt", "prompt_hash", "question", "a", "b", "order")


def settled(calls: Iterable[Call]) -> list[Call]:
    """One call per question, pair, order, repeat, seed and way of decoding: the re-ask where there is one, else the
    first; a failed one only where no other is there. In order of first appearance."""
    found: dict[tuple[Any, ...], Call] = {}
    for call in calls:
        place = (call.protocol, call.prompt_hash, call.a, call.b, call.seed, call.a_answer, call.b_answer,
                 call.reference, call.answer_limit, call.question, call.question_hash, call.order, call.repeat,
                 call.model, call.endpoint, call.drawn_by)  # fmt: skip
        before = found.get(place)
        if before is None or _rank(call) >= _rank(before):
            found[place] = call
    return list(found.values())


def _rank(call: Call) -> tuple[bool, int]:
    return call.outcome != "failed", call.ask
