"""The messages of a federation, as bytes: a head of JSON and a payload, read strictly; nothing is unpickled.

    Offer ▶ Facts      a run card down; what the site says of itself, or why it does not take part, up
    Train ▶ Answer     a task down; an update or a code up, with Progress before it
    Measure ▶ Measured a model down; sums and weights of losses up
    Finish ▶ Measured  the last models down; the measure of the site's own model up
    Bye                either way: the site leaves, or the run is over

    8 bytes    "shepsite"
    32 bytes   sha256 of all that follows
    4 bytes    length of the head, little endian
    head       {"kind", "run", "round", "attempt", …}
    payload    the card, the task (updates/task_wire.py), the update (updates/wire.py) or the model, unread here

Every message names its run, round and attempt. The sender's identity is the transport's; the checksum finds damage.
No free text goes up: a code, counts, digests, and the detail that training gives to a failure.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from shepherd.clients.progress import STATES
from shepherd.federation.cards import NAME, RUN
from shepherd.federation.verdicts import VERDICTS
from shepherd.types import ClientId, Stat
from shepherd.updates.layout import WireError, expect, is_number, is_size, json_object

MAGIC = b"shepsite"
_START = len(MAGIC) + 32 + 4
MOST_HEAD_BYTES = 2**16
MOST_GROUPS = 1000
OF_SITES = ("", "diverged", "out-of-memory", "no-state", "refused", "lost", "hang")
"""Codes of an answer; `error:ValueError` names the class of an exception."""
_ERROR = re.compile(r"error:[A-Za-z_][A-Za-z0-9_]{0,63}")

Check = Callable[[Any], bool]


def _text(pattern: str) -> Check:
    compiled = re.compile(pattern)
    return lambda value: type(value) is str and compiled.fullmatch(value) is not None


def _words(most: int) -> Check:
    return lambda value: type(value) is str and len(value) <= most and value.isprintable()


def _is_loss(value: Any) -> bool:
    return value is None or is_number(value)


def _is_group(value: Any) -> bool:
    if type(value) is not list or len(value) != 4:
        return False
    name, total, weight, rows = value
    return _words(200)(name) and is_number(total) and is_number(weight) and weight >= 0 and is_size(rows)


def _is_groups(value: Any) -> bool:
    return type(value) is list and len(value) <= MOST_GROUPS and all(map(_is_group, value))


def _is_code(value: Any) -> bool:
    """What befell the site, or "" for an answer with an update. Only the gate and the coordinator reject."""
    return type(value) is str and (value in OF_SITES or _ERROR.fullmatch(value) is not None)


_SESSION, _DIGEST = _text(r"([0-9a-f]{32})?"), _text(r"([0-9a-f]{64})?")
_VERDICT: Check = lambda value: type(value) is str and value in VERDICTS  # noqa: E731
_CHECKS: Mapping[str, Check] = {
    "run": _text(RUN), "round": is_size, "attempt": is_size,
    "client": _text(NAME), "session": _SESSION,
    "verdict": _VERDICT, "rows": is_size, "digest": _DIGEST, "base": _DIGEST, "tokenizer": _DIGEST,
    "version": _words(40), "counted": is_size, "cohort": is_size, "code": _is_code, "detail": _words(200),
    "state": lambda value: value in STATES, "step": is_size, "steps": is_size, "loss": _is_loss, "targets": is_size,
    "tokens": is_size, "seconds": lambda value: is_number(value) and (value == 0 or 1e-9 <= value < 1e12),
    "rows_of": lambda value: value in ("training", "held-out", "none"), "groups": _is_groups,
    "reason": _text(r"[a-z-]{0,32}"),
}  # fmt: skip
"""What each field of a head has to be."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a run. An attempt is one question to some sites: its number grows over the whole run."""

    PAYLOAD: ClassVar[str] = ""

    run: str
    round: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Offer(Message):
    """Coordinator -> site `client`: the run card, as JSON. round 0."""

    PAYLOAD = "card"

    client: ClientId
    card: bytes


@dataclass(frozen=True, slots=True)
class Facts(Message):
    """Site -> coordinator: the verdict on a card; where it is "admitted", rows as they are stated, and a salted digest.

    base, tokenizer, version: what the site has, so that a refusal names both sides. session: of the site's process.
    """

    session: str
    verdict: str
    rows: int
    digest: str
    base: str
    tokenizer: str
    version: str


@dataclass(frozen=True, slots=True)
class Train(Message):
    """Coordinator -> site `client`: a task for it alone, as bytes.

    counted: the last round in which an update of this site counted; 0: none. cohort: sites in this round.
    """

    PAYLOAD = "task"

    client: ClientId
    counted: int
    cohort: int
    task: bytes


@dataclass(frozen=True, slots=True)
class Answer(Message):
    """Site -> coordinator: an update as bytes, or the code of a failure with its detail."""

    PAYLOAD = "update"

    session: str
    code: str
    detail: str
    update: bytes


@dataclass(frozen=True, slots=True)
class Progress(Message):
    """Site -> coordinator, while it trains: see `clients.progress.Progress`. A loss that is not finite is None."""

    session: str
    state: str
    step: int
    steps: int
    loss: float | None
    targets: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Measure(Message):
    """Coordinator -> site `client`: a model as bytes, or b"" for the bare base, to be measured on the site's rows.

    rows_of: "training", "held-out", or "none": the site only keeps the model, which is the last one of the run.
    """

    PAYLOAD = "model"

    client: ClientId
    rows_of: str
    model: bytes


@dataclass(frozen=True, slots=True)
class Measured(Message):
    """Site -> coordinator: (category or "", total loss in nats, target tokens, rows) by group, or a code.

    Rows whose category is not shown are in the group "".
    """

    session: str
    code: str
    detail: str
    groups: tuple[tuple[str, float, float, int], ...]

    @property
    def stat(self) -> Stat:
        """The loss over all groups."""
        return sum((Stat(total, weight) for _, total, weight, _ in self.groups), Stat())


@dataclass(frozen=True, slots=True)
class Finish(Message):
    """Coordinator -> site `client`: the last models as the bytes of a task, of which the site makes its own model."""

    PAYLOAD = "task"

    client: ClientId
    counted: int
    task: bytes


@dataclass(frozen=True, slots=True)
class Bye(Message):
    """Either way: the site leaves the run, or the run is over for it. session: of the site; "" from the coordinator."""

    session: str
    reason: str


KINDS: Mapping[str, type[Message]] = {
    kind.__name__.lower(): kind for kind in (Offer, Facts, Train, Answer, Progress, Measure, Measured, Finish, Bye)
}
_HEADS: Mapping[str, tuple[str, ...]] = {
    name: tuple(field.name for field in fields(kind) if field.name != kind.PAYLOAD) for name, kind in KINDS.items()
}


def pack(message: Message) -> bytes:
    """The bytes of a message, the same for equal ones. Raises ValueError for a number that is not finite."""
    kind = type(message).__name__.lower()
    head = {"kind": kind, **{name: getattr(message, name) for name in _HEADS[kind]}}
    payload = getattr(message, message.PAYLOAD) if message.PAYLOAD else b""
    text = json.dumps(head, separators=(",", ":"), allow_nan=False).encode()
    content = b"".join([len(text).to_bytes(4, "little"), text, payload])
    return MAGIC + hashlib.sha256(content).digest() + content


def read(data: bytes, limit: int) -> Message:
    """The message in at most `limit` bytes. Raises WireError with a code of REASONS, without text of the sender."""
    expect(type(data) is bytes, "format", "the message is not bytes")
    expect(len(data) <= limit, "too-large", f"{len(data)} bytes, the limit is {limit}")
    expect(len(data) >= _START and data.startswith(MAGIC), "format", "the bytes are no message of a federation")
    with memoryview(data) as view:
        sound = hashlib.sha256(view[len(MAGIC) + 32 :]).digest() == data[len(MAGIC) : len(MAGIC) + 32]
    expect(sound, "damaged", "the checksum does not fit the content")
    length = int.from_bytes(data[_START - 4 : _START], "little")
    expect(length <= min(MOST_HEAD_BYTES, len(data) - _START), "format", f"the head claims {length} bytes")
    head = json_object(data[_START : _START + length], "head")
    name = head.pop("kind", None)
    kind = KINDS.get(name) if type(name) is str else None
    if kind is None:
        raise WireError("format", f"the kind is none of {', '.join(KINDS)}")
    names = _HEADS[kind.__name__.lower()]
    expect(head.keys() == set(names), "fields", f"the head of a {kind.__name__} is not {', '.join(names)}")
    for field in names:
        expect(_CHECKS[field](head[field]), "fields", f"{field} is of another kind or out of its range")
    payload = data[_START + length :]
    if kind.PAYLOAD:
        head[kind.PAYLOAD] = payload
    else:
        expect(not payload, "format", f"a {kind.__name__} has no payload")
    if head.get("code") == "refused":
        expect(head["detail"] in VERDICTS, "fields", "a refusal without a verdict that is known")
    if "groups" in head:
        head["groups"] = tuple(map(tuple, head["groups"]))
    return kind(**head)


def is_finite(value: float) -> float | None:
    """The number, or None where it is not finite: JSON has no other."""
    return value if math.isfinite(value) else None


def verdict_of(answer: Message | None) -> str:
    """The verdict or code in a site's answer; "" for none."""
    match answer:
        case Facts():
            return answer.verdict
        case Answer() | Measured():
            return answer.detail if answer.code == "refused" else answer.code
    return ""
