"""A site's side of a network: the newest question counts, and its answer is sent until it is taken."""

from __future__ import annotations

import queue
import threading
from contextlib import contextmanager

import pytest

from network_sites import EchoSite, Events, until
from shepherd.federation.transports import link as links
from shepherd.federation.transports.bridge import Gone
from shepherd.federation.transports.link import A_SECOND, BURST, MOST_TOLD, SMALL, Link


class Engine:
    """The process of an engine. codes: of the next calls, by what they do; "gone" and "timeout" are raised."""

    def __init__(self, **codes: list[str]) -> None:
        self.codes, self.sent = codes, []

    def call(self, head: dict, data: bytes = b"", *, timeout: float) -> dict:
        self.sent.append((head, data))
        code = (self.codes.get(head["do"]) or ["ok"]).pop(0)
        if code in ("gone", "timeout"):
            raise Gone if code == "gone" else TimeoutError
        return {"code": code, "why": "Blob size 9 exceeds configured limit 8" if code == "comm_error" else ""}

    def post(self, head: dict, data: bytes = b"") -> None:
        self.sent.append((head, data))

    def of(self, what: str) -> list[tuple[dict, bytes]]:
        return [(head, data) for head, data in self.sent if head["do"] == what]


@contextmanager
def serving(link: Link):
    stop = threading.Event()
    thread = threading.Thread(target=link.serve, args=[stop], daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


def ask(link: Link, key: str, data: bytes = b"?") -> None:
    link.handle({"event": "ask", "key": key}, data)


def test_an_answer_is_sent_until_it_is_taken(monkeypatch):
    monkeypatch.setattr(links, "BEAT", 0.01)
    engine, link = Engine(answer=["gone", "timeout", "busy", "unknown", "ok"]), Link(EchoSite())
    link.attach(engine)
    with serving(link):
        ask(link, "one")
        ask(link, "one")  # the same once more
        until(lambda: len(engine.of("answer")) == 5)
        ask(link, "one")  # and after it is taken
        for message in (b"then", b"last"):
            link.handle({"event": "tell"}, message)
            until(lambda: message in link.site.seen)  # noqa: B023
    assert {(head["key"], data) for head, data in engine.of("answer")} == {("one", b"re:?")}
    assert link.site.seen == [b"?", b"then", b"last"]


def test_an_answer_above_the_limit_of_its_question_stays_at_the_site_and_is_said(monkeypatch):
    monkeypatch.setattr(links, "BEAT", 0.01)
    events = Events()
    engine, link = Engine(answer=["gone"]), Link(EchoSite(), on_event=events)
    link.attach(engine)
    with serving(link):
        for key, data, limit in (("one", b"four", 6), ("two", b"four", 7), ("three", b"", "hostile")):
            link.handle({"event": "ask", "key": key, "limit": limit}, data)
            until(lambda: any(head["key"] == key for head, _ in engine.of("answer")[1:]))  # noqa: B023
    assert [(head["key"], head["note"], data) for head, data in engine.of("answer")] == [
        ("one", "too-large", b""), ("one", "too-large", b""), ("two", "", b"re:four"), ("three", "", b"re:"),
    ]  # fmt: skip
    assert "larger than the coordinator takes" in events.reasons("failed")
    assert len(events.of("failed")) == 1


def test_the_newest_question_counts(monkeypatch):
    monkeypatch.setattr(links, "BEAT", 0.01)
    release = threading.Event()
    engine, link = Engine(), Link(EchoSite(lambda data: release.wait(10) if data == b"old" else None))
    link.attach(engine)
    with serving(link):
        ask(link, "one", b"old")
        until(lambda: link.site.seen)
        ask(link, "two", b"newer")
        ask(link, "three", b"newest")
        release.set()
        until(lambda: engine.of("answer"))
    assert link.site.seen == [b"old", b"newest"]
    assert [(head["key"], data) for head, data in engine.of("answer")] == [("three", b"re:newest")]


def test_a_sign_of_life_names_session_predecessor_and_question():
    engine, link = Engine(), Link(EchoSite(), replaces="former")
    link.attach(engine)
    ask(link, "one")
    assert link.beat() == "ok"
    head, _ = engine.sent[0]
    assert head == {"do": "hello", "key": "one", "session": link.site.session, "replaces": "former"}
    link.leave()
    assert engine.sent[1][0]["note"] == "leaving"


def test_connections_refusals_and_losses_are_events():
    engine, events = Engine(hello=["ok", "ok", "busy", "timeout", "gone", "ok", "lease"]), Events()
    link = Link(EchoSite(), on_event=events)
    link.attach(engine)
    for _ in range(7):
        link.beat()
    assert [kind for kind, _ in events.all] == ["connected", "lost", "connected", "refused"]


def test_silence_lasts_from_the_last_answer_of_the_coordinator():
    now = [0.0]
    engine, link = Engine(hello=["ok", "busy", "timeout", "comm_error"]), Link(EchoSite(), clock=lambda: now[0])
    link.attach(engine)
    for time, silence in ((1.0, 0.0), (2.0, 0.0), (3.0, 1.0), (9.0, 7.0)):
        now[0] = time
        link.beat()
        assert link.silence == silence
    link.attach(Engine())
    assert link.silence == 0.0


def test_a_full_disk_is_an_event_and_the_question_is_tried_again(monkeypatch):
    monkeypatch.setattr(links, "AGAIN", 0.01)
    failures = [OSError(28, "No space left on device"), None]

    def work(data: bytes) -> None:
        if failure := failures.pop(0):
            raise failure

    engine, events = Engine(), Events()
    link = Link(EchoSite(work), on_event=events)
    link.attach(engine)
    with serving(link):
        ask(link, "one")
        until(lambda: engine.of("answer"))
    assert link.site.seen == [b"?", b"?"]
    said = "cannot write to the disk: No space left on device; nothing is lost, and it goes on once there is space"
    assert events.of("failed") == [{"why": said}]


def test_the_text_of_an_exception_stays_at_the_site_and_the_next_question_is_answered():
    def work(data: bytes) -> None:
        if data == b"?":
            raise ValueError("SECRET")

    engine, events = Engine(), Events()
    link = Link(EchoSite(work), on_event=events)
    link.attach(engine)
    with serving(link):
        ask(link, "one")
        until(lambda: events.of("failed"))
        ask(link, "two", b"next")
        until(lambda: engine.of("answer"))
    assert events.of("failed") == [{"why": "error:ValueError"}]
    assert [data for _, data in engine.of("answer")] == [b"re:next"]
    assert "SECRET" not in str(engine.sent)


def test_an_answer_that_is_too_large_is_named_instead_of_sent_again(monkeypatch):
    monkeypatch.setattr(links, "BEAT", 0.01)
    engine, link = Engine(answer=["comm_error", "ok"]), Link(EchoSite())
    link.attach(engine)
    with serving(link):
        ask(link, "one")
        until(lambda: len(engine.of("answer")) == 2)
    assert [(head["note"], data) for head, data in engine.of("answer")] == [("", b"re:?"), ("too-large", b"")]


def test_progress_is_sent_five_times_a_second_at_most():
    now = [0.0]

    class Busy(EchoSite):
        def handle(self, data, report):
            for tenth in range(20):
                now[0] = tenth / 10
                report(b"%d" % tenth)

    engine, link = Engine(), Link(Busy(), clock=lambda: now[0])
    link.attach(engine)
    link.beat()
    with serving(link):
        ask(link, "one")
        until(lambda: now[0] == 1.9)
    assert 9 <= len(engine.of("progress")) <= 10


def test_messages_that_answer_nothing_go_up_and_come_down():
    outbox = queue.SimpleQueue()
    engine, link = Engine(), Link(EchoSite(), outbox=outbox)
    link.attach(engine)
    with serving(link):
        link.handle({"event": "tell"}, b"bye")
        until(lambda: link.site.seen)
    outbox.put(b"left")
    link.send_outbox()
    assert [data for _, data in engine.of("message")] == [b"left"]
    assert not engine.of("answer")


def test_a_coordinator_fills_neither_the_memory_of_a_site_nor_its_log(monkeypatch):
    now, waits = [0.0], []
    link = Link(EchoSite(), clock=lambda: now[0])
    for _ in range(100):
        link.handle({"event": "tell"}, bytes(SMALL + 1))
        link.handle({"event": "tell"}, b"bye")
    assert link._told == [b"bye"] * MOST_TOLD

    class Stop:
        def wait(self, seconds: float) -> None:
            waits.append(seconds)
            now[0] += seconds

    for _ in range(int(BURST) + 20):
        link._pace(Stop())
    assert waits == pytest.approx([1 / A_SECOND] * 20)
    assert now[0] == pytest.approx(20 / A_SECOND)
