"""A coordinator: admission, leases, who hangs, is late or lost, and a journal with one line for every change."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest

from federation_schedules import BASE, CARD, TOKENIZER, MemoryPlace, Numbers, card_of, task_of
from shepherd.clients.progress import Progress as Steps
from shepherd.errors import DataError
from shepherd.federation.cards import Policy
from shepherd.federation.coordinator import Coordinator
from shepherd.federation.groups import Group
from shepherd.federation.messages import Bye, Progress, Train, pack, read
from shepherd.federation.policy import Own
from shepherd.federation.site import Site
from shepherd.federation.site_store import SiteStore
from shepherd.federation.states import MOST_IGNORED, RUN, SITE, Ledger
from shepherd.federation.states import Site as SiteState
from shepherd.federation.transport import Aborted, Leases, Seen
from shepherd.federation.transports.memory import Arrival, Crash, MemoryTransport
from shepherd.types import ClientFailure, SiteFacts, Stat
from shepherd.updates.replies import Late
from shepherd.updates.wire import Sealed

OWN = Own(BASE, TOKENIZER, "0.1.0")
PROGRESS = Progress("demo", 1, 0, "0" * 32, "training", 1, 2, 0.5, 3, 4, 0.1)


class Measuring(Numbers):
    def measure(self, model, rows_of):
        return {"flu": Group(Stat(3.0 * ord(self.client), 2.0), 4)}

    def finish(self, task, private):
        return {"flu": Group(Stat(float(private["p"][0]), 1.0), 4)}


class Federation:
    """Sites of numbers in memory, and a coordinator whose journal is a list."""

    def __init__(self, names: str = "abc", card=CARD, patience: float = math.inf, **policies) -> None:
        self.places = {name: MemoryPlace() for name in names}
        self.trainers = {name: Measuring(name) for name in names}
        self.own = dict.fromkeys(names, OWN)
        self.lines: list[dict] = []
        self.policies, self.card, self.patience = policies, card, patience
        self.transport = MemoryTransport({name: lambda name=name: self.site(name) for name in names})
        self.coordinator = self.another()
        self.coordinator.open()

    def site(self, name: str) -> Site:
        usual = {"approve": "policy", "least_cohort": 1, "min_rows_round": 1, "least_group": 4}
        policy = Policy(**{**usual, **self.policies.get(name, {})})
        return Site(name, policy, self.own[name], self.trainers[name], SiteStore(self.places[name]))

    def another(self) -> Coordinator:
        """A coordinator with the journal of the one before."""
        ledger = Ledger(lambda line: self.lines.append(json.loads(json.dumps(line))), list(self.lines))
        return Coordinator(self.card, self.transport, ledger, patience=self.patience, clock=self.transport.clock)

    def round(self, number: int = 1, rows=None, deadline: float = 20.0, **options) -> dict:
        """{client: reply} of a round of all admitted sites."""
        clients = rows or dict.fromkeys(self.coordinator.facts(), 0)
        return {r.client: r for r in self.coordinator.train(task_of(number, 1, clients), deadline, **options)}

    def states(self) -> dict[str, str]:
        return {name: site.state for name, site in sorted(self.coordinator.ledger.sites.items())}


def admitted(*args, **options) -> Federation:
    federation = Federation(*args, **options)
    assert set(federation.coordinator.admit().values()) == {"admitted"}
    return federation


# Admission


def test_sites_are_admitted_refused_or_waited_for_and_nobody_is_offered_the_card_twice():
    federation = Federation(a={"approve": "ask"}, b={"methods": ("ffa_lora",)})
    federation.own["c"] = replace(OWN, base="e" * 64)
    federation.transport.restart("c")
    coordinator = federation.coordinator
    assert coordinator.admit() == {"a": "approval", "b": "method", "c": "base"}
    assert federation.states() == {"a": "offered", "b": "refused", "c": "refused"}
    (line,) = (line for line in federation.lines if line.get("client") == "c" and line.get("state") == "refused")
    assert (line["reason"], line["base"]) == ("base", "e" * 64), "both are named: ours is in the card"
    assert coordinator.facts() == {}
    federation.transport.running["a"].approve("demo")
    assert coordinator.admit()["a"] == "admitted"
    assert list(coordinator.facts()) == ["a"] and coordinator.facts()["a"].rows == 4
    assert "a" not in coordinator.admit()


def test_a_site_that_restarts_shows_its_rows_again_and_other_rows_are_refused():
    federation = admitted("ab")
    assert federation.coordinator.admit() == {}
    federation.transport.restart("a")
    assert federation.coordinator.admit() == {"a": "admitted"}
    federation.trainers["b"].facts = SiteFacts(5, "other rows")
    federation.transport.restart("b")
    assert federation.coordinator.admit() == {"b": "rows-changed"}
    federation.places["b"] = MemoryPlace()  # and without the site's record it shows to the coordinator
    federation.transport.restart("b")
    assert federation.coordinator.admit() == {"b": "rows-changed"}
    assert list(federation.coordinator.facts()) == ["a"]


def test_the_sites_of_a_round_are_those_of_its_first_draw_also_after_a_restart_and_with_too_few_the_run_waits():
    federation = Federation(card=card_of(federation={"rounds": 4, "method": "fedit", "min_updates": 2}))
    transport = federation.transport
    for name in "bc":
        transport.stop(name)
    transport.clock.now += 10.0
    federation.coordinator.admit()
    assert federation.coordinator.eligible(1) == federation.coordinator.eligible(1) == ()
    assert federation.coordinator.ledger.state == "paused"
    for name in "bc":
        transport.start(name)
    federation.coordinator.admit()
    assert federation.coordinator.eligible(1) == ("a", "b", "c")
    transport.stop("a")
    transport.clock.now += 10.0
    assert federation.another().eligible(1) == ("a", "b", "c")
    transport.stop("b")
    transport.clock.now += 10.0
    assert federation.another().eligible(2) == federation.another().eligible(1) == ()
    states = [line["state"] for line in federation.lines if line["event"] == "run"]
    assert states == ["drafted", "open", "paused"], "one line, however often it is looked at"


# Who answers


def test_one_process_at_a_time_has_the_lease_of_a_site_and_answers_of_another_are_ignored():
    leases = Leases(gone=5.0)
    assert leases.sign("a", "one", 0.0) and not leases.sign("a", "two", 4.0)
    assert leases.sign("a", "one", 4.0) and not leases.sign("a", "two", 8.9)
    assert leases.present(8.9) == {"a": Seen("one", 0.0, 4.0)}
    assert leases.sign("a", "two", 9.0), "a process that is gone holds nothing"
    assert leases.sign("a", "three", 9.1, replaces="two") and not leases.sign("a", "two", 9.2)
    assert leases.present(20.0) == {}
    leases.end("a")
    assert leases.sign("a", "two", 9.3)

    federation = admitted("ab")
    copy = federation.site("a")  # the same folder, started elsewhere

    def hop(hop):
        if hop.way == "down" and hop.client == "a":
            federation.transport.send_up("a", copy.handle(hop.data))
        return [Arrival(2.0, hop.data)]

    federation.transport.hop = hop
    assert isinstance(federation.round()["a"], Sealed)
    ignored = [line for line in federation.lines if line["event"] == "ignored"]
    assert [(line["client"], line["reason"]) for line in ignored] == [("a", "lease")]


def test_a_site_that_sends_in_vain_without_end_gets_a_limited_number_of_lines():
    federation = admitted("ab")
    for _ in range(500):
        federation.transport.send_up("a", b"junk")
        federation.transport.send_up("c", b"junk")
    assert isinstance(federation.round()["b"], Sealed)
    ignored = [line["client"] for line in federation.lines if line["event"] == "ignored"]
    assert (ignored.count("a"), ignored.count("c")) == (MOST_IGNORED, MOST_IGNORED)


def test_a_copy_of_a_site_cannot_take_it_out_of_the_run():
    federation = admitted("ab")
    federation.transport.send_up("a", pack(Bye("demo", 0, 0, "0" * 32, "left")))
    assert isinstance(federation.round()["a"], Sealed)
    federation.transport.send_up("b", federation.transport.running["b"].leave("demo"))
    assert federation.round(2, {"a": 4, "b": 5})["b"] == ClientFailure("b", 2, "lost", "the site has left")
    assert federation.states() == {"a": "answered", "b": "left"}


@pytest.mark.parametrize("unit", ["client", "example"])
def test_a_private_run_draws_a_round_once(unit):
    federation = Federation(card=card_of(federation={"rounds": 4, "method": "fedit", "min_updates": 2}))
    federation.coordinator.admit()
    federation.coordinator.eligible(1)
    federation.coordinator.card = SimpleNamespace(
        privacy=SimpleNamespace(unit=unit), federation=federation.coordinator.card.federation
    )
    federation.coordinator.ledger.site("b", "removed")
    federation.coordinator.ledger.failed = 1
    assert federation.coordinator.eligible(1) == ("a", "b", "c")


@pytest.mark.parametrize("how", ["left", "removed", "refused"])
def test_a_round_with_a_site_that_is_gone_for_good_is_drawn_anew_once(how):
    federation = Federation(card=card_of(federation={"rounds": 4, "method": "fedit", "min_updates": 2}))
    federation.coordinator.admit()
    assert federation.coordinator.eligible(1) == ("a", "b", "c")
    if how == "refused":
        federation.coordinator.ledger.site("b", "offered")
    federation.coordinator.ledger.site("b", how)
    assert federation.coordinator.eligible(1) == federation.another().eligible(1) == ("a", "b", "c"), "not yet failed"
    federation.coordinator.ledger.failed = 1
    assert federation.coordinator.eligible(1) == ("a", "c") == federation.another().eligible(1)
    lines = [line["clients"] for line in federation.lines if line["event"] == "eligible"]
    assert lines == [["a", "b", "c"], ["a", "c"]]
    with pytest.raises(ValueError, match="the sites of round 1 are known already"):
        federation.coordinator.ledger._change({"event": "eligible", "round": 1, "clients": ["a"]})


@pytest.mark.parametrize("how", ["left", "removed"])
def test_a_site_that_leaves_at_work_or_is_removed_does_not_hold_a_round_without_a_deadline(how):
    federation, looks = admitted("ab"), iter([False] * 100)

    def hop(hop):
        if hop.client == "b" and hop.way == "down" and how == "left":
            federation.transport.send_up("b", federation.transport.running["b"].leave("demo"))
        elif hop.client == "b" and hop.way == "down":
            federation.coordinator.remove("b")
        return [] if hop.client == "b" and hop.way == "down" else [Arrival(0.0, hop.data)]

    federation.transport.hop = hop
    replies = federation.round(deadline=math.inf, enough=lambda: next(looks))
    assert isinstance(replies["a"], Sealed)
    assert replies["b"] == ClientFailure("b", 1, "lost", "the site has left")
    assert federation.states() == {"a": "answered", "b": how}


def test_who_is_connected_at_the_deadline_is_late_and_who_is_gone_is_lost():
    federation = admitted()
    federation.transport.hop = lambda hop: [Arrival(30.0 * (hop.way == "up" and hop.client == "a"), hop.data)]
    federation.trainers["b"].watch = lambda task, private: crash()
    replies = federation.round(deadline=20.0)
    assert replies["a"] == Late("a", 1) and isinstance(replies["c"], Sealed)
    assert replies["b"] == ClientFailure("b", 1, "lost", "the site is gone")
    assert federation.states() == {"a": "late", "b": "lost", "c": "answered"}
    assert federation.coordinator.seconds.keys() == {"c"}


def crash():
    raise Crash


def test_a_connected_site_without_a_step_for_the_patience_hangs_and_one_with_steps_does_not():
    federation = admitted("ab", patience=10.0)
    transport, seen, observers = federation.transport, [], []
    transport.hop = lambda hop: [Arrival(25.0 if hop.way == "up" else 0.0, hop.data)] if hop.client == "a" else []
    ask, session = transport.ask, transport.running["a"].session
    transport.ask = lambda *given: observers.append(given[-1]) or ask(*given)

    def enough() -> bool:  # at each look a step of a
        attempt = federation.coordinator.ledger.attempt
        observers[0]("a", pack(replace(PROGRESS, attempt=attempt, session=session)))
        return False

    replies = federation.round(deadline=math.inf, enough=enough, observe=seen.append)
    assert isinstance(replies["a"], Sealed)
    assert replies["b"] == ClientFailure("b", 1, "hang", "no step for 10 s")
    assert seen[0] == {"a": Steps("training", 1, 2, 0.5, 3, 4, 0.1)}
    assert federation.states() == {"a": "answered", "b": "lost"}


def test_enough_answers_end_the_wait_and_the_others_are_late():
    federation = admitted()
    federation.transport.hop = lambda hop: [Arrival(ord(hop.client) - 96.0, hop.data)]
    found = []
    for reply in federation.coordinator.train(task_of(1, 1, dict.fromkeys("abc", 0)), 60.0, lambda: len(found) >= 2):
        found.append(reply)
    assert [type(reply).__name__ for reply in found] == ["Sealed", "Sealed", "Late"] and found[2].client == "c"
    assert federation.transport.clock() < 10.0


def test_a_site_that_does_not_take_part_at_present_is_lost_without_a_question():
    federation = admitted("ab")
    federation.transport.stop("b")
    federation.trainers["b"].facts = SiteFacts(5, "other rows")
    federation.transport.start("b", federation.coordinator.ledger.of("b").session)
    federation.coordinator.admit()
    replies = federation.round(1, {"a": 0, "b": 0})
    assert replies["b"].code == "lost" and isinstance(replies["a"], Sealed)
    assert {line["client"] for line in federation.lines if line.get("state") == "working"} == {"a"}


def test_an_aborted_transport_raises_and_the_same_task_is_another_attempt_with_the_same_bits():
    federation = admitted("ab")
    transport = federation.transport

    def abort(hop):
        if hop.way == "up" and hop.client == "b":
            raise Aborted
        return [Arrival(0.0, hop.data)]

    transport.hop = abort
    first = []
    with pytest.raises(Aborted):
        first.extend(federation.coordinator.train(task_of(1, 1, {"a": 0, "b": 0})))
    transport.hop = lambda hop: [Arrival(0.0, hop.data)]
    federation.coordinator = federation.another()
    again = federation.round()
    assert again["a"].data != b"" and all(isinstance(reply, Sealed) for reply in again.values())
    attempts = [line["attempt"] for line in federation.lines if line["event"] == "attempt"]
    assert attempts == [1, 2, 3], "an offer and two attempts"


def test_a_further_cohort_of_a_round_is_another_attempt_and_late_answers_of_the_first_stay_late():
    federation = admitted()
    federation.transport.hop = lambda hop: [Arrival(25.0 * (hop.way == "up" and hop.client == "a"), hop.data)]
    first = federation.round(1, {"a": 0, "b": 0}, deadline=20.0)
    federation.transport.hop = lambda hop: [Arrival(10.0 * (hop.way == "up"), hop.data)]
    second = federation.round(1, {"c": 0}, deadline=20.0)
    kinds = {client: type(reply).__name__ for client, reply in {**first, **second}.items()}
    assert kinds == {"a": "Late", "b": "Sealed", "c": "Sealed"}
    assert federation.states() == {"a": "late", "b": "answered", "c": "answered"}
    ignored = [(line["client"], line["reason"]) for line in federation.lines if line["event"] == "ignored"]
    assert ignored == [("a", "uninvited")]


def test_a_task_names_the_round_that_counted_and_its_cohort():
    federation, sent = admitted("ab"), []

    def hop(hop):
        sent.append(read(hop.data, 2**20))
        return [Arrival(0.0, hop.data)]

    federation.transport.hop = hop
    federation.round(1, {"a": 0, "b": 0})
    federation.round(2, {"a": 4, "b": 0})
    federation.round(3, {"a": 4, "b": 5})
    tasks = [m for m in sent if isinstance(m, Train)]
    assert [(m.client, m.counted, m.cohort) for m in tasks] == [
        ("a", 0, 2), ("b", 0, 2), ("a", 1, 2), ("b", 0, 2), ("a", 1, 2), ("b", 2, 2),
    ]  # fmt: skip
    with pytest.raises(DataError, match="the journal has no task of a that ended at row 5"):
        federation.round(4, {"a": 5})


def test_an_update_that_the_gate_rejected_is_noted_when_its_round_is_committed():
    federation = admitted("ab")
    federation.round()
    federation.coordinator.settle(1, {"a": "rejected", "b": "trained", "c": "rejected"})
    assert federation.states() == {"a": "rejected", "b": "answered"}


# Measures, and the end


def test_sites_measure_and_make_their_own_models_and_the_run_is_over():
    federation = admitted("ab")
    federation.round()
    coordinator = federation.coordinator
    measured = coordinator.measure(None, ["b", "a"])
    assert {client: m.stat for client, m in measured.items()} == {"a": Stat(291.0, 2.0), "b": Stat(294.0, 2.0)}
    federation.transport.stop("b")
    assert list(coordinator.measure(None, ["a", "b"], deadline=5.0)) == ["a"]
    finished = coordinator.finish(task_of(5, 1, {"a": 4}))
    kept = SiteStore(federation.places["a"]).state("demo", 1, 4)["p"][0]
    assert finished["a"].stat == Stat(float(kept), 1.0)
    coordinator.end()
    assert federation.states() == {"a": "finished", "b": "answered"} and coordinator.ledger.state == "finished"
    assert coordinator.facts().keys() == {"b"}


def test_a_site_that_is_removed_is_expelled_and_never_offered_the_card_again():
    federation = admitted("ab")
    federation.coordinator.remove("a")
    federation.transport.start("a")
    assert federation.coordinator.admit() == {} and list(federation.coordinator.facts()) == ["b"]
    assert "a" not in federation.transport.present()


def test_a_stopped_run_can_be_opened_again():
    federation = admitted("a")
    federation.coordinator.stop()
    federation.coordinator.open()
    assert federation.coordinator.ledger.state == "open"


# The journal


def test_only_the_steps_of_the_tables_exist():
    for before, after in product(SITE, SITE):
        lines = []
        ledger = Ledger(lines.append)
        ledger.sites["a"] = SiteState(before)
        possible = after in SITE[before] or (after in ("left", "removed") and before != "removed")
        about = {"session": "s", "rows": 1, "digest": "d", "round": 1, "attempt": 1, "end": 4}
        if possible:
            ledger.site("a", after, **about)
        else:
            with pytest.raises(ValueError, match="does not become"):
                ledger.site("a", after, **about)
        assert len(lines) == possible and ledger.of("a").state == (after if possible else before)
    for before, after in product(RUN, RUN):
        ledger = Ledger(lambda line: None)
        ledger.state = before
        if after in RUN[before]:
            ledger.run(after)
        else:
            with pytest.raises(ValueError, match="does not become"):
                ledger.run(after)


def test_a_change_that_cannot_be_written_has_not_happened():
    def full(line):
        raise OSError("no space left")

    ledger = Ledger(full)
    for change in (
        lambda: ledger.run("drafted"), lambda: ledger.site("a", "offered"), lambda: ledger.connection("a", True),
        lambda: ledger.attempted(1, "a", "train"), lambda: ledger.eligible_in(1, "a"),
    ):  # fmt: skip
        with pytest.raises(OSError, match="no space left"):
            change()
    assert (ledger.state, ledger.attempt, ledger.eligible, ledger.present) == ("", 0, {}, set())
    assert ledger.of("a").state == ""


@pytest.mark.parametrize(
    "line",
    [
        {"event": "site", "client": "a", "state": "working", "round": 1, "attempt": 1, "end": 4},
        {"event": "run", "state": "finished"},
        {"event": "attempt", "attempt": 1, "round": 1, "for": "train", "clients": []},
        {"event": "connection", "client": "b", "present": False},
        {"event": "dance"},
        {"event": "eligible"},
        {"client": "a"},
    ],
    ids=str,
)
def test_a_journal_whose_lines_do_not_follow_from_each_other_is_refused_with_the_line(line):
    good = [
        {"event": "run", "state": "drafted"},
        {"event": "attempt", "attempt": 1, "round": 0, "for": "offer", "clients": ["a"]},
    ]
    with pytest.raises(DataError, match="line 3 of the journal does not follow"):
        Ledger(lambda line: None, [*good, line])
