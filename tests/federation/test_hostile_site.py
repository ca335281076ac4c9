"""A site, or somebody with its certificate, that sends in good form what is not true: it harms nobody but itself."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_coordinator import admitted

from federation_schedules import BASE, CARD, TOKENIZER, card_of, task_of
from shepherd.federation.coordinator import Coordinator
from shepherd.federation.limits import MOST_ROWS
from shepherd.federation.messages import (
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
from shepherd.federation.states import Ledger
from shepherd.federation.transports.memory import MemoryTransport
from shepherd.types import ClientFailure, ClientUpdate
from shepherd.updates import wire
from shepherd.updates.layout import WireError
from shepherd.updates.wire import Envelope, Sealed

SESSIONS = {name: str(place) * 32 for place, name in enumerate("ab", 1)}


class Says:
    """A site's process that answers as the test asks; else as it should, with an update of zeros."""

    def __init__(self, name: str, **answers: Any) -> None:
        self.name, self.answers, self.session = name, answers, SESSIONS[name]
        self.asked: list[Message] = []

    def handle(self, data, report):
        message = read(data, 2**24)
        self.asked.append(message)
        names = {"run": message.run, "round": message.round, "attempt": message.attempt, "session": self.session}
        match message:
            case Offer():
                good: Message = Facts(**names, verdict="admitted", rows=4, digest="d" * 64, base=BASE,
                                      tokenizer=TOKENIZER, version="0.1.0")  # fmt: skip
            case Train():
                good = Answer(**names, code="", detail="", update=self.update(message))
            case Measure() | Finish():
                good = Measured(**names, code="", detail="", groups=(("", 12.0, 8.0, 4),))
            case _:
                return None
        return pack(replace(good, **self.answers.get(type(good).__name__.lower(), {})))

    def update(self, message: Train) -> bytes:
        counts = {"num_examples": 4, "num_tokens": 9, "steps": 2, **self.answers.get("counts", {})}
        delta = {"q.B": np.zeros((1, 1), np.float32)}
        return wire.pack(
            ClientUpdate(self.name, message.round, delta, **counts, metrics={}),
            Envelope(message.run, "n", BASE, TOKENIZER, 1, 1.0),
        )


class Federation:
    """Two such sites and a coordinator."""

    def __init__(self, card=CARD, **b: Any) -> None:
        self.sites = {"a": Says("a"), "b": Says("b", **b)}
        self.transport = MemoryTransport({name: lambda name=name: self.sites[name] for name in "ab"})
        self.lines: list[dict] = []
        ledger = Ledger(lambda line: self.lines.append(json.loads(json.dumps(line))))
        self.coordinator = Coordinator(card, self.transport, ledger, clock=self.transport.clock)
        self.coordinator.open()
        self.verdicts = self.coordinator.admit(5.0)

    def round(self) -> dict:
        return {r.client: r for r in self.coordinator.train(task_of(1, 1, {"a": 0, "b": 0}), 5.0)}


# Admission


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        ({"rows": 0}, "no-rows"), ({"rows": MOST_ROWS + 1}, "many-rows"), ({"rows": 2**40 - 1}, "many-rows"),
        ({"digest": ""}, "cannot"), ({"base": "e" * 64}, "base"), ({"tokenizer": ""}, "tokenizer"),
        ({"version": "0.0.9"}, "version"),
    ],
)  # fmt: skip
def test_a_site_that_admits_itself_without_what_the_run_needs_is_refused(facts, verdict):
    federation = Federation(facts=facts)
    assert federation.verdicts == {"a": "admitted", "b": verdict}
    assert federation.coordinator.facts().keys() == {"a"}
    assert federation.coordinator.ledger.of("b").reason == verdict
    assert federation.coordinator.admit(5.0) == {"b": verdict}, "and again, where it is offered again"


@pytest.mark.parametrize("name", ["../outside", "a b", "a\n", "", "\u0430", "a" * 65])
def test_a_certificate_with_a_name_that_no_site_may_have_takes_no_part(name):
    transport = MemoryTransport({"a": lambda: Says("a"), name: lambda: Says("a")})
    lines: list[dict] = []
    coordinator = Coordinator(CARD, transport, Ledger(lines.append), clock=transport.clock)
    coordinator.open()
    assert coordinator.admit(5.0) == {"a": "admitted"}
    assert coordinator.eligible(1) == ("a",) and {line.get("client", "a") for line in lines} == {"a"}


# Answers


@pytest.mark.parametrize(("tokens", "code"), [(5 * 512, ""), (5 * 512 + 1, "count"), (10**12, "count")])
def test_target_tokens_may_be_weights_so_there_is_a_limit_from_the_rows_of_the_task(tokens, code):
    reply = Federation(counts={"num_tokens": tokens}).round()["b"]
    assert getattr(reply, "code", "") == code and isinstance(reply, Sealed if not code else ClientFailure)


def test_the_head_of_an_update_is_as_small_as_that_of_its_task_before_it_is_read():
    text = b'{"a":[' + b"[]," * 2**21 + b"[]]}"
    federation = Federation(card_of(parameters=2**28), answer={"update": len(text).to_bytes(8, "little") + text})
    tracemalloc.start()
    reply = federation.round()["b"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reply.code == "too-large" and peak < 2**26


# Measures


GOOD = ("", 12.0, 8.0, 4)
BAD = {
    "more rows than it has": ("", 12.0, 8.0, 5),
    "more targets than its rows can have": ("", 12.0, 4 * 512 + 1.0, 4),
    "a weight that dominates all others": ("", 1e300, 1e300, 4),
    "a loss that is no loss": ("", -12.0, 8.0, 4),
    "a loss that overflows": ("", 1.7e308, 8.0, 4),
    "a loss of no targets": ("", 12.0, 0.0, 4),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_measure_that_cannot_be_is_left_out_with_a_line(kind):
    federation = Federation(measured={"groups": (BAD[kind],)})
    assert federation.coordinator.measure(None, "ab", "held-out", 5.0).keys() == {"a"}
    ignored = [line for line in federation.lines if line["event"] == "ignored"]
    assert [(line["client"], line["reason"]) for line in ignored] == [("b", "count")]


def test_groups_that_are_together_too_many_rows_are_left_out():
    federation = Federation(measured={"groups": (("x", 1.0, 1.0, 3), ("y", 1.0, 1.0, 2))})
    assert federation.coordinator.measure(None, "ab", "held-out", 5.0).keys() == {"a"}
    twice = Federation(measured={"groups": (("x", 1.0, 1.0, 2), ("x", 1.0, 1.0, 2))})
    assert twice.coordinator.measure(None, "ab", "held-out", 5.0).keys() == {"a"}, "a category is there once"


def test_a_site_that_leaves_right_after_its_last_answer_does_not_end_the_run():
    federation = admitted("ab")
    federation.round()
    finish = federation.transport.running["a"].handle

    def leaves(data, report):
        answer = finish(data, report)
        federation.transport._push(0.0, "a", "up", answer)
        return pack(Bye("demo", 0, 0, federation.transport.running["a"].session, "left"))

    federation.transport.running["a"].handle = leaves
    found = federation.coordinator.finish(task_of(5, 1, {"a": 4, "b": 5}), 5.0)
    assert found.keys() == {"a", "b"}
    assert federation.states() == {"a": "left", "b": "finished"}
    federation.coordinator.end()


def test_a_further_cohort_of_a_round_states_all_sites_of_the_round():
    card = card_of(federation={"rounds": 4, "method": "fedit", "min_updates": 2})
    federation = admitted(card=card, **{name: {"least_cohort": 2} for name in "abc"})
    first = federation.round(1, {"a": 0, "b": 0})
    second = federation.round(1, {"c": 0})
    assert all(isinstance(reply, Sealed) for reply in {**first, **second}.values())
    alone = federation.round(2, {"c": 6})
    assert alone["c"].code == "refused", "a round of its own is of one site"


@pytest.mark.parametrize("seconds", [1e-320, 1e300, -1.0])
def test_progress_has_no_seconds_that_would_make_a_rate_infinite(seconds):
    good = Progress("demo", 1, 2, SESSIONS["a"], "training", 1, 2, 0.5, 3, 2**39, 0.5)
    assert read(pack(good), 2**20) == good
    with pytest.raises(WireError, match="seconds is of another kind or out of its range"):
        read(pack(replace(good, seconds=seconds)), 2**20)


# A coordinator that is back before its sites


def test_an_uncommitted_round_waits_for_its_sites_after_a_restart_and_is_not_committed_without_them():
    federation = admitted(card=card_of(federation={"rounds": 4, "method": "fedit", "min_updates": 2}))
    assert federation.coordinator.eligible(1) == ("a", "b", "c")
    federation.round()
    for name in "abc":
        federation.transport.stop(name)
    federation.transport.clock.now += 10.0
    federation.coordinator = federation.another()
    federation.coordinator.open()
    federation.coordinator.admit()
    assert federation.coordinator.eligible(1) == (), "nobody is there: a round now would be of lost sites only"
    assert federation.coordinator.ledger.state == "paused"
    federation.transport.start("b")
    federation.coordinator.admit()
    assert federation.coordinator.eligible(1) == ()
    federation.transport.start("c")
    federation.coordinator.admit()
    assert federation.coordinator.eligible(1) == ("a", "b", "c"), "the same draw"


def test_a_run_that_could_not_write_its_first_line_can_be_stopped():
    def full(line):
        raise OSError(28, "no space left")

    coordinator = Coordinator(CARD, MemoryTransport({}), Ledger(full))
    with pytest.raises(OSError, match="no space left"):
        coordinator.open()
    coordinator.stop()
    assert coordinator.ledger.state == ""
