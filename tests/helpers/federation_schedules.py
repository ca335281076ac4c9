"""Schedules of faults for a federation of numbers: a real coordinator and real sites over the transport in memory.

A schedule is a seed. It decides what happens to each message and each process; the rules (federation_rules.py) follow
what really arrived and say what has to come of it. No tensors but of one number, no files, no PyTorch.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from federation_rules import ROWS, Rules, ideal, kept, moved
from shepherd.clients.progress import Progress
from shepherd.federation import messages
from shepherd.federation.cards import Policy, RunCard
from shepherd.federation.coordinator import Coordinator
from shepherd.federation.messages import Answer, Train, pack
from shepherd.federation.policy import Own
from shepherd.federation.site import Site
from shepherd.federation.site_store import SiteStore
from shepherd.federation.states import OVER, Ledger
from shepherd.federation.transport import Aborted
from shepherd.federation.transports.memory import Arrival, Crash, Hop, MemoryTransport
from shepherd.outcomes import outcome_of
from shepherd.types import (
    Adapter,
    ClientFailure,
    ClientModel,
    ClientUpdate,
    Factors,
    SiteFacts,
    TrainTask,
    Work,
)
from shepherd.updates import wire
from shepherd.updates.gate import Gate
from shepherd.updates.layout import WireError
from shepherd.updates.replies import Late

BASE, TOKENIZER, SECRET = "b" * 64, "c" * 64, "Planted8472"
LARGE = 2**20


@lru_cache(maxsize=256)
def read(data: bytes, limit: int = LARGE) -> messages.Message:
    """A message, read once for all who look at it."""
    return messages.read(data, limit)


def card_of(**changes: Any) -> RunCard:
    """The card of a federation of numbers."""
    fields: dict[str, Any] = {
        "run": "demo", "version": "0.1.0", "base": {"name": "numbers", "digest": BASE}, "tokenizer": TOKENIZER,
        "lora": {"r": 1, "alpha": 1.0}, "federation": {"rounds": 4, "method": "fedit"},
        "method": {"train": "B"}, "training": {"learning_rate": 0.1, "batch_size": 2}, "parameters": 2,
    }  # fmt: skip
    return RunCard(**fields | changes)


CARD = card_of()
POLICY = Policy(approve="policy", least_cohort=1, min_rows_round=1)


def task_of(number: int, model: int, rows: Mapping[str, int]) -> TrainTask:
    """A task for the clients in `rows`, which go on from those rows."""
    pair = Factors(np.ones((1, 1), np.float32), np.full((1, 1), model, np.float32))
    view = ClientModel(Adapter({"q": pair}, 1, 1.0, base_digest=BASE), ("B",), "B")
    work = {client: Work(client, first, ROWS[client], (0.1,) * -(-ROWS[client] // 2)) for client, first in rows.items()}
    return TrainTask(number, dict.fromkeys(work, view), 0, work)


class MemoryPlace:
    """What outlasts a site's process, without a disk."""

    def __init__(self, fails: Callable[[], bool] = lambda: False) -> None:
        self.files: dict[str, bytes] = {}
        self.fails = fails

    def read(self, name):
        return self.files.get(name)

    def write(self, name, data):
        if self.fails():
            raise OSError(28, "no space left")
        self.files[name] = data

    def remove(self, name):
        self.files.pop(name, None)

    def folders(self, name):
        return sorted({file.split("/")[1] for file in self.files if file.startswith(f"{name}/")})

    def append(self, name, line):
        if self.fails():
            raise OSError(28, "no space left")
        self.files[name] = self.files.get(name, b"") + line


class Numbers:
    """The trainer of a site of numbers. `mood` decides whether it trains, fails, raises or ends."""

    def __init__(self, client: str, mood=lambda: "well", watch=lambda task, private: None) -> None:
        self.client, self.mood, self.watch = client, mood, watch
        self.facts = SiteFacts(ROWS[client], "rows of " + client)

    def load_rows(self, card):
        return self.facts

    def train(self, task, private, observe):
        before = int(private["p"][0]) if private else 0
        self.watch(task, before)
        observe({self.client: Progress("training", 1, 2)})
        mood = self.mood()
        if mood == "crash":
            raise Crash
        if mood == "raise":
            raise ValueError(SECRET)
        if mood == "diverge":
            return ClientFailure(self.client, task.round, "diverged", "the loss became nan in local step 1")
        model = int(task.views[self.client].adapter.factors["q"].B[0, 0])
        step = moved(self.client, task.round, model, before) if mood != "nan" else float("nan")
        after = {"p": np.array([kept(self.client, task.round, model, before)])}
        delta = {"q.B": np.full((1, 1), step, np.float32)}
        return ClientUpdate(self.client, task.round, delta, ROWS[self.client], 9, 2, {"loss": 1.0}, after)

    def measure(self, model, rows_of):
        raise NotImplementedError

    def finish(self, task, private):
        raise NotImplementedError


class Watched(MemoryTransport):
    """The transport in memory, which shows each reply to the schedule before the coordinator has it."""

    schedule: Any = None

    def ask(self, messages, deadline, enough, limit, observe):
        training = any(isinstance(read(data), Train) for data in messages.values())
        for reply in super().ask(messages, deadline, enough, limit, observe):
            if training:
                self.schedule.arrived(reply)
            yield reply


class Schedule:
    """One seed: two or three sites, two to four rounds, and faults. `run` raises AssertionError."""

    def __init__(self, seed: int, hits: Counter[str]) -> None:
        self.rng, self.hits, self.rules = random.Random(seed), hits, Rules()
        self.clients = tuple(sorted(self.rng.sample(sorted(ROWS), self.rng.choice((2, 3)))))
        self.rounds = self.rng.choice((2, 3, 4))
        self.intensity = self.rng.choice((0.05, 0.15, 0.3))
        self.places = {client: MemoryPlace(lambda: self.strikes("site: disk full", 0.05)) for client in self.clients}
        self.handling: dict[str, Train] = {}
        self.sessions: dict[str, str] = {}
        self.lines: list[str] = []
        self.wrong: list[Exception] = []
        self.transport = Watched({client: self.starter(client) for client in self.clients}, self.hop)
        self.transport.schedule = self
        self.card = CARD
        self.coordinator = self.coordinates()
        self.state = {"round": 0, "model": 1, "rows": dict.fromkeys(self.clients, 0)}
        self.counted: list[list[str]] = []
        self.cohorts: dict[int, tuple[str, ...]] = {}

    # Processes

    def starter(self, client: str):
        def start():
            trainer = Numbers(client, self.mood, lambda task, private: self.trains(client, task, private))
            site = Site(client, POLICY, Own(BASE, TOKENIZER, "0.1.0"), trainer, SiteStore(self.places[client]))
            handle = site.handle

            def watched(data, report):
                message = read(data)
                if isinstance(message, Train):
                    self.handling[client] = message
                try:
                    return handle(data, report)
                except OSError:  # it cannot write its log
                    raise Crash from None

            site.handle = watched  # type: ignore[method-assign]
            self.sessions[client] = site.session
            return site

        return start

    def coordinates(self) -> Coordinator:
        ledger = Ledger(self.write, map(json.loads, self.lines))
        return Coordinator(self.card, self.transport, ledger, clock=self.transport.clock)

    def write(self, line: Mapping[str, Any]) -> None:
        if self.strikes("journal: disk full", 0.02):
            raise OSError(28, "no space left")
        self.lines.append(json.dumps(line))

    # Faults

    def strikes(self, kind: str, share: float = 1.0) -> bool:
        """Whether a fault of this kind happens now."""
        happens = self.rng.random() < share * self.intensity
        self.hits[kind] += happens
        return happens

    def mood(self) -> str:
        for mood in ("crash", "raise", "diverge", "nan"):
            if self.strikes(f"training: {mood}", 0.3):
                return mood
        return "well"

    def hop(self, hop: Hop) -> list[Arrival]:
        message = read(hop.data)
        if isinstance(message, Train) and hop.way == "down":
            if message.attempt > self.rules.attempts:
                self.rules.asks(message.attempt)
            expected = self.rules.asks_also(hop.client)
            first = self.state["rows"][hop.client]
            given = {"round": message.round, "first_row": first, "counted": message.counted}
            assert given == expected, f"the task of {hop.client} says {given}, expected {expected}"
        here = Arrival(self.rng.uniform(0.1, 3.0), hop.data)
        way = hop.way
        if self.strikes(f"{way}: aborted", 0.15):
            raise Aborted
        if self.strikes(f"{way}: lost", 0.5):
            return []
        arrivals = [here]
        if self.strikes(f"{way}: delayed", 0.5):
            arrivals = [here._replace(seconds=self.rng.choice((15.0, 25.0, 70.0)))]
        if self.strikes(f"{way}: duplicated", 0.5):
            arrivals.append(here._replace(seconds=self.rng.uniform(0.1, 30.0)))
        if hop.earlier and self.strikes(f"{way}: replayed", 0.5):
            arrivals.append(Arrival(self.rng.uniform(0.0, 5.0), self.rng.choice(hop.earlier)))
        if self.strikes(f"{way}: site restarted", 0.4):
            self.transport.restart(hop.client)
        elif self.strikes(f"{way}: site stopped", 0.2):
            self.transport.stop(hop.client)
        if way == "up" and isinstance(message, Answer) and not message.code:
            arrivals += self.forged(message, max(arrival.seconds for arrival in arrivals))
        return arrivals

    def forged(self, answer: Answer, last: float) -> list[Arrival]:
        """What a broken or hostile process of the same site sends, before or after its good answer."""
        update, envelope = wire.unpack(answer.update)
        other = replace(update, delta={name: array + 1 for name, array in update.delta.items()})
        kinds = {
            "forged: other counts": lambda: replace(
                answer, update=wire.pack(replace(other, num_examples=900), envelope)
            ),
            "forged: other session": lambda: replace(answer, session="0" * 32, update=wire.pack(other, envelope)),
            "forged: other run": lambda: replace(answer, run="other", update=wire.pack(other, envelope)),
            "forged: other attempt": lambda: replace(
                answer, attempt=answer.attempt - 1, update=wire.pack(other, envelope)
            ),
            "forged: second answer": lambda: replace(answer, update=wire.pack(other, envelope)),
        }
        found = []
        for kind, make in kinds.items():
            if self.strikes(kind, 0.25):
                found.append(Arrival(last + 0.5 if kind == "forged: second answer" else 0.0, pack(make())))
        if self.strikes("forged: damaged", 0.3):
            data = bytearray(pack(answer))
            data[self.rng.randrange(len(data))] ^= self.rng.randrange(1, 256)
            found.append(Arrival(0.0, bytes(data)))
        return found

    # What the rules see

    def trains(self, client: str, task: TrainTask, private: int) -> None:
        try:
            self.rules.trains(client, self.handling[client].attempt, task.round, private)
        except (AssertionError, KeyError) as error:
            self.wrong.append(error)  # a site keeps the text of an exception to itself
            raise

    def arrived(self, reply) -> None:
        answer: dict[str, Any] | None = None
        holds = False
        try:
            message = read(reply.data)
        except WireError:
            self.rules.arrives(reply.client, None, holds)
            return
        if not isinstance(message, Answer):
            return
        answer = {"run": message.run, "attempt": message.attempt, "code": message.code}
        if not message.code:
            update, _ = wire.unpack(message.update)
            value = float(update.delta["q.B"][0, 0])
            answer |= {"rows": update.num_examples, "finite": bool(np.isfinite(value)), "moved": value}
        self.rules.arrives(reply.client, answer, message.session == self.sessions[reply.client])

    # The run

    def run(self) -> None:
        """Rounds until all are committed; faults stop after a while, so that every schedule ends."""
        self.intensity, wanted = 0.0, self.intensity
        self.coordinator.open()
        self.intensity = wanted
        for step in range(60):
            if self.state["round"] == self.rounds:
                break
            self.intensity *= step <= 25
            self.between_rounds()
            try:
                self.one_round()
            except (Aborted, OSError):
                self.hits["coordinator restarted"] += 1
                self.coordinator = self.coordinates()
            if self.wrong:
                raise self.wrong[0]
        assert self.state["round"] == self.rounds, "the run does not end"
        self.check()

    def between_rounds(self) -> None:
        for client in self.clients:
            if client not in self.transport.running and (self.intensity == 0 or self.rng.random() < 0.6):
                self.transport.start(client, self.sessions[client])  # as one that notes the session of the former
        if self.strikes("coordinator restarted between rounds", 0.5):
            self.coordinator = self.coordinates()
        self.transport.clock.now += 6.0 * (self.rng.random() < 0.5)

    def one_round(self) -> None:
        number = self.state["round"] + 1
        self.coordinator.admit(10.0)
        eligible = self.coordinator.eligible(number)
        if not eligible:
            self.hits["paused"] += 1
            return
        before = self.cohorts.get(number, eligible)
        over = any(self.coordinator.ledger.of(client).state in ("refused", *OVER) for client in before)
        assert over or before == eligible, "a round has other sites after a restart"
        self.cohorts[number] = eligible
        draw = random.Random(number)
        cohort = sorted(draw.sample(eligible, max(1, len(eligible) - draw.randrange(2))))
        self.rules.attempt = None  # one that was not committed has not happened
        wanted = max(1, len(cohort) - (self.rng.random() < 0.2))
        task = task_of(number, self.state["model"], {c: self.state["rows"][c] for c in cohort})
        gate, updates, outcomes = Gate(run="demo", tokenizer=TOKENIZER), {}, {}
        enough = lambda: len(updates) >= wanted < len(cohort)  # noqa: E731
        for reply in self.coordinator.train(task, 20.0, enough):
            if isinstance(reply, Late):
                outcomes.setdefault(reply.client, "late")
                continue
            passed = gate.admit(reply, task)
            if isinstance(passed, ClientFailure):
                outcomes[passed.client] = outcome_of(passed.code, passed.detail)
                assert SECRET not in f"{passed.code}{passed.detail}"
            else:
                updates[passed.client] = passed
                outcomes[passed.client] = "trained"
        self.commit(number, cohort, updates, outcomes)

    def commit(self, number: int, cohort: list[str], updates: dict, outcomes: dict[str, str]) -> None:
        asked = self.rules.attempt.clients if self.rules.attempt is not None else ()
        if asked:
            expected = self.rules.commits(set(self.transport.present()))
        else:
            expected, self.rules.round = {}, number
        for client in set(cohort) - set(asked):
            self.hits["site not admitted"] += 1
            expected[client] = "lost"
        assert outcomes == expected, f"round {number}: {outcomes}, expected {expected}"
        self.hits.update(f"outcome: {outcome}" for outcome in outcomes.values())
        added = sum(u.num_examples * int(u.delta["q.B"][0, 0]) for u in updates.values())
        self.state["model"] = (self.state["model"] + added) % 1009
        self.state["rows"] |= {c: self.state["rows"][c] + ROWS[c] for c in updates}
        self.state["round"] = number
        self.counted.append(sorted(updates))
        assert self.state["model"] == self.rules.model
        if not self.strikes("killed after the commit", 0.5):
            self.coordinator.settle(number, outcomes)
            states = {c: self.coordinator.ledger.of(c).state for c in asked}
            words = {c: "answered" if word == "trained" else word for c, word in outcomes.items() if c in asked}
            assert states == words, f"round {number}: the journal says {states}, expected {words}"
        else:
            self.coordinator = self.coordinates()

    def check(self) -> None:
        """The end is that of a federation without faults in which the same sites counted."""
        model, private = ideal(self.counted)
        assert (self.state["model"], self.rules.model) == (model, model)
        for client in self.clients:
            assert self.rules.private[client] == private[client]
            last = max((n for n, sites in enumerate(self.counted, 1) if client in sites), default=0)
            if last:
                there = SiteStore(self.places[client]).state("demo", last, self.state["rows"][client])
                assert int(there["p"][0]) == private[client], f"{client} has not what it kept of round {last}"
            outside = [
                name for name in self.places[client].files if not name.startswith(("runs/demo/", "audit", "salt"))
            ]
            assert not outside
        Ledger(lambda line: None, map(json.loads, self.lines))
        assert SECRET not in "".join(self.lines)
