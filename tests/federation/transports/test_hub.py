"""The coordinator's side of a network: which sign, question and answer counts, over an engine that is a list."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from network_sites import Events, until
from shepherd.federation.transport import Aborted, Reply
from shepherd.federation.transports.bridge import Gone
from shepherd.federation.transports.hub import MOST_WAITING, Hub


class Engine:
    """The process of an engine: what was sent, and the code that each sending gets."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, bytes]] = []
        self.keys: dict[str, str] = {}
        self.answer: dict = {"code": "ok"}

    def call(self, head: dict, data: bytes = b"", *, timeout: float) -> dict:
        if self.answer == {}:
            raise Gone
        self.sent.append((head["do"], head["client"], data))
        self.keys[head["client"]] = head.get("key", "")
        return self.answer

    def post(self, head: dict, data: bytes = b"") -> None:
        raise AssertionError


class Federation:
    """A hub whose time passes by hand."""

    def __init__(self, **how: object) -> None:
        self.engine, self.events = Engine(), Events()
        self.hub = Hub(self.events, **how)
        self.hub.attach(self.engine)
        self.now = self.hub._now

    def send(self, event: str, client: str, data: bytes = b"", **head: str) -> str:
        head = {"session": f"of {client}", "replaces": "", "key": "", "note": "", **head}
        answer = self.hub.handle({"event": event, "client": client, "time": self.now, **head}, data)
        return str((answer or {}).get("code"))

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.hub.handle({"event": "tick", "time": self.now}, b"")

    def ask(self, *clients: str, deadline: float = 5.0, limit: int = 100) -> Iterator[Reply]:
        answered: set[str] = set()
        observe = lambda client, data: self.events("progress", site=client, data=data)  # noqa: E731
        for reply in self.hub.ask(dict.fromkeys(clients, b"?"), deadline, lambda: len(answered) == len(clients), limit,
                                  observe):  # fmt: skip
            answered.add(reply.client)
            yield reply

    def begin(self, *clients: str, **how: object) -> list[Reply]:
        """Ask in a thread: the replies, which come."""
        replies: list[Reply] = []
        self.thread = threading.Thread(target=lambda: replies.extend(self.ask(*clients, **how)), daemon=True)
        self.thread.start()
        until(lambda: self.engine.keys.keys() >= set(clients))
        return replies


@pytest.fixture
def federation():
    made = Federation()
    yield made
    made.hub.close()


def test_a_question_is_answered_once_and_only_with_its_key(federation):
    federation.send("hello", "a")
    replies = federation.begin("a")
    key = federation.engine.keys["a"]
    assert federation.send("answer", "a", b"old", key="another") == "late"
    assert federation.send("progress", "a", b"half", key=key) == "ok"
    assert federation.send("answer", "a", b"new", key=key) == "ok"
    assert federation.send("answer", "a", b"again", key=key) == "late"
    federation.thread.join(5)
    assert [(reply.client, reply.data) for reply in replies] == [("a", b"new")]
    assert federation.hub.late == 2
    assert federation.events.of("progress") == [{"site": "a", "data": b"half"}]


def test_a_site_that_has_not_the_open_question_is_sent_it_again(federation):
    federation.engine.answer = {"code": "absent"}
    federation.begin("a", deadline=20)
    until(lambda: len(federation.engine.sent) == 1)
    federation.engine.answer = {"code": "ok"}
    key = federation.engine.keys["a"]
    time.sleep(0.05)
    federation.send("hello", "a")
    until(lambda: len(federation.engine.sent) == 2)
    federation.send("hello", "a", key=key)
    time.sleep(0.1)
    assert federation.engine.sent == [("ask", "a", b"?")] * 2
    federation.send("answer", "a", b"!", key=key)
    federation.thread.join(5)


def test_a_second_process_is_refused_while_the_first_gives_signs(federation):
    assert federation.send("hello", "a") == "ok"
    assert federation.send("register", "a", session="second") == "lease"
    assert federation.send("hello", "a", session="second") == "lease"
    assert federation.send("hello", "a", session="next", replaces="of a") == "ok"
    assert federation.send("hello", "a") == "lease"
    federation.passes(6)
    assert federation.send("register", "a") == "ok"
    assert federation.send("hello", "a") == "ok"


def test_an_answer_of_a_process_without_the_lease_does_not_count(federation):
    federation.send("hello", "a")
    replies = federation.begin("a")
    assert federation.send("answer", "a", b"!", key=federation.engine.keys["a"], session="second") == "lease"
    assert federation.send("answer", "a", b"!", key=federation.engine.keys["a"]) == "ok"
    federation.thread.join(5)
    assert len(replies) == 1


def test_a_site_is_absent_after_five_seconds_of_the_engines_time_and_none_passes_without_a_tick(federation):
    federation.send("hello", "a")
    time.sleep(0.01)
    assert set(federation.hub.present()) == {"a"}
    federation.passes(4)
    assert set(federation.hub.present()) == {"a"}
    federation.passes(2)
    assert not federation.hub.present()
    assert federation.events.all == [("connected", {"site": "a"}), ("lost", {"site": "a"})]


def test_a_site_that_is_away_for_a_minute_has_lost_its_question(federation):
    federation.send("hello", "a")
    replies = federation.begin("a")
    federation.passes(59)
    time.sleep(0.05)
    assert not replies
    federation.passes(3)
    federation.thread.join(5)
    assert [reply.data for reply in replies] == [None]


def test_a_site_that_says_goodbye_is_absent_at_once(federation):
    federation.send("hello", "a")
    federation.send("hello", "a", note="leaving")
    assert not federation.hub.present()
    assert federation.send("hello", "a", session="next") == "ok"


def test_an_answer_above_the_limit_comes_as_one_byte_too_many(federation):
    federation.send("hello", "a")
    federation.send("hello", "b")
    replies = federation.begin("a", "b", limit=10)
    federation.send("answer", "a", bytes(11), key=federation.engine.keys["a"])
    federation.send("answer", "b", b"", key=federation.engine.keys["b"], note="too-large")
    federation.thread.join(5)
    assert [len(reply.data) for reply in replies] == [11, 11]


def test_a_removed_site_loses_its_question_and_every_message_of_it_is_refused(federation):
    federation.send("hello", "a")
    replies = federation.begin("a")
    federation.hub.expel("a")
    federation.thread.join(5)
    assert [reply.data for reply in replies] == [None]
    assert {federation.send(event, "a") for event in ("hello", "register", "answer", "progress")} == {"removed"}
    until(lambda: ("expel", "a", b"") in federation.engine.sent)


def test_the_list_of_members_is_read_at_each_tick_and_stays_where_it_cannot_be_read():
    names = {"a"}

    def members() -> set[str]:
        if not names:
            raise OSError
        return names

    federation = Federation(members=members)
    assert federation.send("hello", "a") == "ok"
    assert federation.send("hello", "b") == "removed"
    names.clear()
    federation.passes(1)
    assert federation.send("hello", "a") == "ok"
    names.add("b")
    federation.passes(1)
    assert federation.send("hello", "a") == "removed"
    assert federation.send("hello", "b") == "ok"
    assert federation.events.of("expelled") == [{"site": "a"}]
    federation.hub.close()


def test_a_site_that_answers_nothing_keeps_nobody_waiting_beyond_the_deadline(federation):
    for client in "ab":
        federation.send("hello", client)
    replies = federation.begin("a", "b", deadline=0.3)
    federation.send("answer", "b", b"!", key=federation.engine.keys["b"])
    federation.thread.join(5)
    assert [reply.client for reply in replies] == ["b"]


def test_a_question_ends_with_aborted_where_the_engine_cannot_be_started(federation):
    asking = federation.ask("a", deadline=20)
    threading.Timer(0.1, federation.hub.abort, ["the engine ends"]).start()
    with pytest.raises(Aborted, match="the engine ends"):
        next(asking)


def test_a_message_that_answers_nothing_comes_with_the_next_question(federation):
    federation.send("hello", "a")
    replies = federation.begin("a")
    federation.send("message", "a", b"bye")
    federation.thread.join(5)
    assert [reply.data for reply in replies] == [b"bye"]


def test_a_dead_engine_loses_a_message_and_no_question(federation):
    federation.send("hello", "a")
    federation.engine.answer = {}
    federation.hub.tell("a", b"bye")
    federation.hub.attach(None)
    federation.hub.tell("a", b"bye")
    another = Engine()
    replies: list[Reply] = []
    thread = threading.Thread(target=lambda: replies.extend(federation.ask("a")), daemon=True)
    thread.start()
    time.sleep(0.1)
    federation.hub.attach(another)
    federation.send("hello", "a")
    until(lambda: another.sent)
    federation.send("answer", "a", b"!", key=another.keys["a"])
    thread.join(5)
    assert [reply.data for reply in replies] == [b"!"]


def test_a_question_that_is_larger_than_a_site_takes_is_named(federation):
    federation.engine.answer = {"code": "comm_error", "why": "Blob size 9 exceeds configured limit 8"}
    federation.begin("a", deadline=0.2)
    until(lambda: federation.events.of("refused"))
    assert federation.events.of("refused")[0]["code"] == "size"
    federation.thread.join(5)


def test_what_a_site_sends_beside_its_answer_is_kept_within_bounds(federation):
    federation.send("hello", "a")
    federation.send("hello", "b")
    for _ in range(500):  # nobody reads between two questions
        federation.send("message", "a", bytes(1000))
    assert federation.hub._arrived.empty()
    read = threading.Event()
    federation.events.all = HeldUp(read)
    replies = federation.begin("a", "b")
    for _ in range(500):
        federation.send("progress", "a", bytes(1000), key=federation.engine.keys["a"])
        federation.send("message", "a", bytes(1000))
    assert federation.hub._arrived.qsize() <= MOST_WAITING
    for client in "ab":
        assert federation.send("answer", client, b"!", key=federation.engine.keys[client]) == "ok"
    read.set()
    federation.thread.join(5)
    assert [reply for reply in replies if reply.data == b"!"]
    assert {reply.client for reply in replies if reply.data == b"!"} == {"a", "b"}
    assert federation.hub._waiting["a"] == 0


class HeldUp(list):
    """A list that takes progress when it is let: the reader is behind."""

    def __init__(self, go: threading.Event) -> None:
        super().__init__()
        self.go = go

    def append(self, item: tuple[str, dict]) -> None:
        if item[0] == "progress":
            self.go.wait(5)
        super().append(item)
