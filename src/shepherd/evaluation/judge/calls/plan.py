"""The calls that a comparison needs: pairs of answers × orders × repeats, each with its key and its messages.

    planned(pairs, judge, secret)          # list[Planned], the same for the same input

Exchanging a and b gives the same calls: what decides a call is which answer is shown first, not which is called a.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from shepherd.errors import DataError
from shepherd.evaluation.judge.calls.client import Decoding
from shepherd.evaluation.judge.calls.cost import most_tokens
from shepherd.evaluation.judge.calls.ledger import key_of
from shepherd.evaluation.judge.calls.prompts import Quoted
from shepherd.evaluation.judge.calls.protocols import Protocol
from shepherd.evaluation.judge.calls.quoting import PLACEHOLDER, mark_of
from shepherd.evaluation.judge.calls.record import Call, Order

BOTH: tuple[Order, ...] = ("ab", "ba")
AGAIN_TOKENS = 64
"""Of the words of a re-ask."""
NAMED = 3
"""Most prompts that an error names."""


@dataclass(frozen=True)
class Shown:
    """An answer: one text per turn of the question. source: "RUN:ARM". cut: it ended at its limit of tokens."""

    texts: tuple[str, ...]
    source: str = ""
    cut: bool = False

    @property
    def hash(self) -> str:
        """sha256 of the texts, 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.texts, ensure_ascii=False).encode()).hexdigest()[:16]

    @property
    def chars(self) -> int:
        """Characters of all turns."""
        return sum(map(len, self.texts))


@dataclass(frozen=True)
class Item:
    """One question with the answers of both arms. before, reference: as in `Quoted`."""

    question: str | int
    turns: tuple[str, ...]
    a: Shown
    b: Shown
    category: str = ""
    question_hash: str = ""
    before: tuple[Mapping[str, str], ...] = ()
    reference: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """Two arms on the same questions. a, b: names in the table. seed: of the runs, None where the two differ."""

    a: str
    b: str
    items: tuple[Item, ...]
    seed: int | None = None


@dataclass(frozen=True)
class Judge:
    """Who judges, and how. endpoint: address without a key, or "local". window: tokens of prompt and reply together.
    answer_limit: characters of an answer that are shown."""

    endpoint: str
    model: str
    protocol: Protocol
    decoding: Decoding = field(default_factory=Decoding)
    window: int = 8192
    answer_limit: int = 8000


@dataclass(frozen=True)
class Planned:
    """A call to be made. call: its record, yet without a reply."""

    call: Call
    messages: tuple[Mapping[str, str], ...]
    decoding: Decoding

    @property
    def text(self) -> str:
        """All of the prompt, for its length."""
        return "\n".join(message["content"] for message in self.messages)


def planned(
    pairs: Iterable[Pair], judge: Judge, secret: bytes, orders: Sequence[Order] = BOTH, repeats: int = 1
) -> list[Planned]:
    """All calls, question by question, so that an interrupted command has judged the first questions of all pairs.

    DataError: a prompt that does not fit into the judge's window.
    """
    places = [(place, pair, item) for pair in pairs for place, item in enumerate(pair.items)]
    places.sort(key=lambda found: found[0])  # stable: pairs stay in order
    found = [
        _planned(pair, item, judge, secret, order, repeat)
        for _, pair, item in places
        for repeat in range(repeats)
        for order in orders
    ]
    _check_window(found, judge)
    return found


def _planned(pair: Pair, item: Item, judge: Judge, secret: bytes, order: Order, repeat: int) -> Planned:
    first, second = (item.a, item.b) if order == "ab" else (item.b, item.a)
    decoding = judge.decoding
    if repeat and decoding.seed is not None:
        decoding = dataclasses.replace(decoding, seed=decoding.seed + repeat)
    prompt = judge.protocol.prompt
    material = Quoted(item.turns, first.texts, second.texts, item.before, item.reference)

    def messages(mark: str) -> list[dict[str, str]]:
        return prompt.messages(material, mark, judge.answer_limit)

    shown = "" if first.texts != second.texts else pair.a if order == "ab" else pair.b
    shown += f" {prompt.id}" if prompt.references else ""  # its calls are its own, also where no answer is known
    key = key_of(judge.endpoint, judge.model, messages(PLACEHOLDER), decoding.to_row(), repeat, shown)
    call = Call(
        key=key, endpoint=judge.endpoint, model=judge.model, protocol=judge.protocol.name, prompt=prompt.id,
        prompt_hash=prompt.hash, question=item.question, a=pair.a, b=pair.b, order=order, repeat=repeat,
        category=item.category, question_hash=item.question_hash, seed=pair.seed, a_source=item.a.source,
        b_source=item.b.source, a_answer=item.a.hash, b_answer=item.b.hash, a_chars=item.a.chars, b_chars=item.b.chars,
        a_cut=item.a.cut, b_cut=item.b.cut, decoding=decoding.to_row(), answer_limit=judge.answer_limit,
        reference=Shown(item.reference).hash if prompt.references and any(item.reference) else "",
    )  # fmt: skip
    return Planned(call, tuple(messages(mark_of(secret, key))), decoding)


def _check_window(calls: Sequence[Planned], judge: Judge) -> None:
    """Servers such as transformers serve do not refuse a prompt beyond the window of the model. A second call repeats
    the prompt with the first reply."""
    room = judge.window - 2 * judge.decoding.max_tokens - AGAIN_TOKENS
    long: dict[tuple[str | int, str, str], int] = {}
    for planned_call in calls:
        tokens = most_tokens(len(planned_call.text.encode()))
        if tokens > room:
            call = planned_call.call
            long.setdefault((call.question, call.a, call.b), tokens)
    if not long:
        return
    named = [
        f"question {question!r}, {a} and {b}: about {tokens:,} tokens" for (question, a, b), tokens in long.items()
    ]
    more = f"\nand {len(named) - NAMED} more" if len(named) > NAMED else ""
    raise DataError(
        f"{len(named)} prompts do not fit into the judge's window of {judge.window:,} tokens with two replies of "
        f"{judge.decoding.max_tokens:,}\n" + "\n".join(named[:NAMED]) + more,
        hint="give the judge's real window with --window, or show less of an answer with --answer-limit",
    )


def again(planned_call: Planned, text: str, protocol: Protocol) -> Planned:
    """The re-ask after `text`, which nobody could read. Its key contains that of the first call and its text."""
    call = planned_call.call
    key = key_of(call.endpoint, call.model, [call.key, text], call.decoding, call.repeat, "again")
    messages = protocol.prompt.again([dict(message) for message in planned_call.messages], text)
    return Planned(dataclasses.replace(call, key=key, ask=1), tuple(messages), planned_call.decoding)
