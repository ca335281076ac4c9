"""Ten thousand hostile messages and tasks: no crash, every refusal has a name, nothing is written elsewhere."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from broken_disks import QuickDisk
from federation_schedules import BASE, CARD, POLICY, TOKENIZER, Numbers, task_of
from shepherd.federation.coordinator import Coordinator
from shepherd.federation.messages import (
    MAGIC,
    Answer,
    Bye,
    Facts,
    Finish,
    Measure,
    Measured,
    Message,
    Offer,
    Progress,
    Train,
    pack,
    read,
)
from shepherd.federation.policy import Own
from shepherd.federation.site import Site
from shepherd.federation.site_store import Folder, SiteStore
from shepherd.federation.states import SITE, Ledger
from shepherd.federation.transports.memory import MemoryTransport
from shepherd.federation.verdicts import VERDICTS
from shepherd.lowrank import LowRank
from shepherd.types import REASONS, GlobalModel, TransformSpec
from shepherd.updates.layout import WireError
from shepherd.updates.task_wire import pack_global, pack_task

SESSION = "5" * 32
WRONG = (None, True, "x", 5.5, -1, 2**41, -(2**70), 10**400, [], {}, [5], {"x": 5}, "../../outside", "a\x00b", "\ud800")
TASK = task_of(1, 1, {"a": 0})
MODEL = pack_global(GlobalModel(TASK.views["a"].adapter))
DOWN: list[Message] = [
    Offer("demo", 0, 1, "a", CARD.to_json()),
    Train("demo", 1, 2, "a", 0, 2, pack_task(TASK)),
    Measure("demo", 1, 3, "a", "held-out", MODEL),
    Finish("demo", 1, 4, "a", 0, pack_task(TASK)),
    Bye("other", 1, 5, "", "over"),
]
UP: list[Message] = [
    Facts("demo", 0, 1, SESSION, "admitted", 4, "d" * 64, BASE, TOKENIZER, "0.1.0"),
    Answer("demo", 1, 2, SESSION, "", "", b"update"),
    Answer("demo", 1, 2, SESSION, "error:ValueError", "", b""),
    Progress("demo", 1, 2, SESSION, "training", 1, 2, None, 3, 4, 0.5),
    Measured("demo", 1, 3, SESSION, "", "", (("", 5.0, 2.0, 12),)),
    Bye("demo", 1, 5, SESSION, "left"),
]


def sealed(head: Any, payload: bytes, text: bytes | None = None) -> bytes:
    """A message with any head, and a checksum that fits."""
    text = json.dumps(head).encode("utf-8", "surrogatepass") if text is None else text
    content = len(text).to_bytes(4, "little") + text + payload
    return MAGIC + hashlib.sha256(content).digest() + content


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """(head, payload) of a good message."""
    length = int.from_bytes(data[40:44], "little")
    return json.loads(data[44 : 44 + length]), data[44 + length :]


def spoilt(rng: random.Random, message: Message) -> tuple[str, bytes]:
    """(the kind of fault, a message with it)."""
    data = pack(message)
    head, payload = parts(data)
    kind = rng.choice(
        ("noise", "cut", "longer", "flipped", "field", "missing", "added", "kind", "json", "length", "payload")
    )
    if kind == "noise":
        return kind, rng.randbytes(rng.randrange(200))
    if kind == "cut":
        return kind, data[: rng.randrange(len(data))]
    if kind == "longer":
        return kind, data + rng.randbytes(rng.randrange(1, 9))
    if kind == "flipped":
        place = rng.randrange(len(data))
        return kind, data[:place] + bytes([data[place] ^ rng.randrange(1, 256)]) + data[place + 1 :]
    if kind == "field":
        head[rng.choice([name for name in head if name != "kind"])] = rng.choice(WRONG)
    elif kind == "missing":
        del head[rng.choice(list(head))]
    elif kind == "added":
        head[rng.choice(("path", "data", "policy", "device", ""))] = rng.choice(WRONG)
    elif kind == "kind":
        head["kind"] = rng.choice(("", "pickle", "train2", None, 5, ["train"], rng.choice(("facts", "offer", "bye"))))
    elif kind == "json":
        odd = (
            b"",
            b"[]",
            b"null",
            b"{" * 9000,
            b"[" * 9000,
            b'{"a":NaN}',
            b'{"run":1,"run":1}',
            b"\xff\xfe",
            b'{"a":1e999}',
        )
        return kind, sealed(None, payload, rng.choice(odd))
    elif kind == "length":
        text = json.dumps(head).encode()
        content = rng.choice((0, 5, 2**16, 2**31, 2**32 - 1)).to_bytes(4, "little") + text + payload
        return kind, MAGIC + hashlib.sha256(content).digest() + content
    else:
        payload = rng.choice((b"", b"x", rng.randbytes(60), payload[:-1], payload + b"x", b"\x80\x04K\x01."))
    return kind, sealed(head, payload)


def test_a_spoilt_message_is_read_as_it_stands_or_refused_with_a_code_and_without_its_text():
    rng, codes, details = random.Random(0), Counter(), []
    for index in range(5000):
        _, data = spoilt(rng, (DOWN + UP)[index % len(DOWN + UP)])
        try:
            message = read(data, 2**16)
        except WireError as error:
            codes[error.code] += 1
            details.append(error.detail)
            continue
        assert pack(message) == data or json.loads(json.dumps(parts(data)[0])) == parts(pack(message))[0]
    assert not any("outside" in detail or "pickle" in detail for detail in details)
    assert codes.keys() == {"format", "damaged", "fields"} <= REASONS.keys() and min(codes.values()) > 300


def hostile_tasks(rng: random.Random) -> Iterator[tuple[str, Message]]:
    """(why it has to be refused, a well-formed message with a task that the site must not take)."""
    attempt = 10
    while True:
        attempt += 1
        work, view = TASK.work["a"], TASK.views["a"]
        wide = replace(
            view.adapter, factors={"q": view.adapter.factors["q"]._replace(A=np.ones((1, 4000), np.float32))}
        )
        other = {
            "task": rng.choice((
                replace(TASK, views={"b": view}, work={"b": replace(work, client="b")}),
                replace(TASK, views=dict.fromkeys("ab", view), work={"a": work, "b": replace(work, client="b")}),
                replace(TASK, control={"q.B": np.ones((1, 1), np.float32)}),
                replace(TASK, clusters={"a": (view,)}),
                replace(TASK, objective=replace(TASK.objective, proximal=1.0)),
                replace(TASK, round=2),
                replace(TASK, seed=attempt),
                replace(TASK, remainder={"q": LowRank(np.ones((1, 2)), np.ones((2, 1)))}),
                replace(TASK, views={"a": replace(view, trains=("AB",))}),
                replace(TASK, work={"a": replace(work, rows=3)}),
            )),
            "steps": replace(TASK, work={"a": replace(work, learning_rates=(0.1,) * 1001)}),
            "rates": replace(TASK, work={"a": replace(work, learning_rates=(0.1, rng.choice((1.1, 1e300))))}),
            "rows": replace(TASK, work={"a": replace(work, rows=rng.choice((0, 100_001, 2**39)))}),
            "base": replace(TASK, views={"a": replace(view, adapter=replace(view.adapter, base_digest="e" * 64))}),
            "size": replace(TASK, views={"a": replace(view, adapter=wide)}),
            "transform": replace(TASK, transforms=(TransformSpec(rng.choice(("os:system", "clip", "no_such", ""))),)),
        }  # fmt: skip
        for reason, task in other.items():
            yield reason, Train("demo", 1, attempt, "a", 0, 2, pack_task(task))
        good = pack_task(TASK)
        yield "rounds", Train("demo", 5, attempt, "a", 0, 2, pack_task(replace(TASK, round=5)))
        yield "other-site", Train("demo", 1, attempt, "b", 0, 2, good)
        yield "not-admitted", Train("no-such-run", 1, attempt, "a", 0, 2, good)
        yield "stale", Train("demo", 1, 1, "a", 0, 2, good)
        yield "task", Train("demo", 1, attempt, "a", 0, 2, good[: rng.randrange(len(good))])
        place = rng.randrange(len(good))
        yield (
            "task",
            Train("demo", 1, attempt, "a", 0, 2, good[:place] + rng.randbytes(1 + rng.randrange(40)) + good[place:]),
        )
        yield "", Train("demo", 1, attempt, "a", 0, 2, pack_task(task_of(1, attempt, {"a": 0})))


def test_a_site_refuses_hostile_tasks_by_name_without_training_and_writes_only_in_its_folder(tmp_path):
    rng, refused, trained = random.Random(1), Counter(), []
    folder = tmp_path / "site"
    trainer = Numbers("a", watch=lambda task, private: trained.append(task))
    site = Site("a", POLICY, Own(BASE, TOKENIZER, "0.1.0"), trainer, SiteStore(Folder(folder, QuickDisk())))
    assert read(site.handle(pack(DOWN[0])), 2**20).verdict == "admitted"
    tasks = hostile_tasks(rng)
    site.handle(pack(Train("demo", 1, 5, "a", 0, 2, pack_task(TASK))))
    good = 1
    for _ in range(3000):
        reason, message = next(tasks)
        answer = read(site.handle(pack(message)), 2**20)
        given = answer.detail if answer.code == "refused" else answer.code
        assert given == reason, f"{message}: {given}, expected {reason}"
        refused[given] += 1
        good += not reason
    assert len(trained) == good
    for index in range(1000):
        _, data = spoilt(rng, DOWN[index % 4])
        sent = site.handle(data)
        if sent is not None:
            answer = read(sent, 2**20)
            assert isinstance(answer, Facts | Answer | Measured)
            code = answer.verdict if isinstance(answer, Facts) else answer.detail or answer.code
            assert code in VERDICTS or code in ("", "no-state", "error:NotImplementedError"), code
    assert min(refused.values()) > 100 and refused.keys() <= VERDICTS.keys() | {""}
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
    names = {path.relative_to(folder).parts[0] for path in folder.rglob("*")}
    assert names == {"runs", "audit.jsonl", "salt"}
    assert [path.name for path in (folder / "runs").iterdir()] == ["demo"]


class Liar:
    """A site's process that answers at random, now and then with what it should."""

    session = SESSION

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.attempt = rng, 0

    def handle(self, data, report):
        message = read(data, 2**20)
        self.attempt = message.attempt
        report(self.said(3))
        return self.said({"Offer": 0, "Train": self.rng.choice((1, 2))}[type(message).__name__])

    def said(self, which: int) -> bytes:
        message = replace(UP[which], attempt=self.attempt)
        return spoilt(self.rng, message)[1] if self.rng.random() < 0.7 else pack(message)


def test_a_coordinator_outlives_liars_and_its_journal_has_only_steps_that_exist():
    rng, lines, outcomes = random.Random(2), [], Counter()
    transport = MemoryTransport({name: lambda: Liar(rng) for name in "abcd"})
    coordinator = Coordinator(CARD, transport, Ledger(lines.append), clock=transport.clock)
    coordinator.open()
    for _ in range(300):
        outcomes.update(coordinator.admit(1.5).values())
        asked = dict.fromkeys(coordinator.facts(), 0)
        replies = list(coordinator.train(task_of(1, 1, asked), 1.5)) if asked else []
        assert sorted(reply.client for reply in replies) == sorted(asked)
        outcomes.update(type(reply).__name__ for reply in replies)
        for client in "abcd":
            transport.send_up(client, transport.running[client].said(rng.randrange(len(UP))))
        if rng.random() < 0.2:
            coordinator = Coordinator(CARD, transport, Ledger(lines.append, list(lines)), clock=transport.clock)
    assert outcomes["admitted"] > 20 and outcomes["ClientFailure"] > 50 and not outcomes["Sealed"], outcomes
    assert {line["state"] for line in lines if line["event"] == "site"} <= SITE.keys()
    reasons = Counter(line["reason"] for line in lines if line["event"] == "ignored")
    assert reasons["stale"] and reasons["format"] + reasons["fields"] > 100, reasons
