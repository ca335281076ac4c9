"""The coordinator's side of a network of sites: leases, presence, questions and the answers to them.

    hub = Hub(on_event)
    hub.attach(wire)                  # an engine's process; another one after a restart of it
    hub.handle(head, data)            # what comes from there: hello, answer, progress, tick

A question is acknowledged when it has arrived, and its answer is a message of the site, sent until it is taken. So no
connection is held while a site works, and a new one costs nothing. A site says each second which question it has; one
that has not the open one is sent it again. Time is that of the ticks of the engine's process, on the monotonic clock of
the machine, so a coordinator that is busy for a while does not take its sites for gone.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from shepherd.errors import ShepherdError
from shepherd.federation.transport import Aborted, Leases, Reply, Seen
from shepherd.federation.transports.bridge import Gone, Head
from shepherd.federation.transports.refusals import NO_MEMBER
from shepherd.types import ClientId

TOO_LARGE = "exceeds configured limit"
"""What the engine answers to a message above the limit of the other side."""
BEAT = 1.0
"""Seconds between two looks at whether it is enough."""
MOST_WAITING = 50
"""Messages of a site, beside its answer, that wait until they are read; what comes above is lost."""
DELIVERY = 600.0
"""Seconds that the engine's process may take to deliver a question; without progress it gives up earlier."""


class Wire(Protocol):
    """The process of the engine."""

    def call(self, head: Head, data: bytes = b"", *, timeout: float) -> Head:
        """The answer to a message."""

    def post(self, head: Head, data: bytes = b"") -> None:
        """Send a message."""


@dataclass
class Question:
    """What a site is to answer. limit: bytes of its answer."""

    key: str
    data: bytes
    limit: int
    begin: float
    sending: bool = False
    done: bool = False


class Hub:
    """A Transport whose bytes go through the process of an engine. gone: seconds without a sign after which a site is
    absent; lost: after which it has lost its question; members: the names that may connect, read again at each tick."""

    def __init__(
        self,
        on_event: Callable[..., None] = lambda kind, **facts: None,
        *,
        members: Callable[[], Collection[ClientId]] | None = None,
        gone: float = 5.0,
        lost: float = 60.0,
    ) -> None:
        self.on_event, self.members, self.lost = on_event, members, lost
        self.leases = Leases(gone)
        self.expelled: set[ClientId] = set()
        self.late = 0  # answers that nobody waited for
        self._now = self.heard = time.monotonic()  # of the engine's last sign there, and here
        self._wire: Wire | None = None
        self._aborted = ""
        self._lock = threading.RLock()
        self._open: dict[ClientId, Question] = {}
        self._arrived: queue.SimpleQueue[tuple[str, ClientId, bytes | None]] = queue.SimpleQueue()
        self._waiting: Counter[ClientId] = Counter()
        self._pool = ThreadPoolExecutor(32, "questions")
        self._connected: set[ClientId] = set()
        self._last: dict[ClientId, float] = {}
        self.names: frozenset[ClientId] | None = frozenset() if members is not None else None
        self._read_members()

    # The engine's process

    def attach(self, wire: Wire | None) -> None:
        """Send through this process from now on; None: there is none at present."""
        self._wire = wire

    def abort(self, why: str) -> None:
        """End every question, now and later, with Aborted."""
        self._aborted = why

    def handle(self, head: Head, data: bytes) -> Head | None:
        """Take what comes from the engine's process."""
        with self._lock:
            self._now = max(self._now, float(head.get("time", self._now)))
            self.heard = time.monotonic()
            client = str(head.get("client", ""))
            if head["event"] != "tick" and not self._is_member(client):
                self.on_event("refused", site=client, code="removed", why=NO_MEMBER)
                return {"code": "removed", "why": NO_MEMBER}
            match head["event"]:
                case "tick":
                    self._absences()
                case "register":
                    return self._register(client, head)
                case "hello":
                    return self._hello(client, head)
                case "answer":
                    return self._answer(client, head, data)
                case "progress":
                    self._progress(client, head, data)
                case "message":
                    self._put("message", client, data)
        return {"code": "ok"}

    # The protocol

    def present(self) -> Mapping[ClientId, Seen]:
        """The sites with a sign of life within `gone` seconds, as of the last tick."""
        with self._lock:
            return self.leases.present(self._now)

    def ask(
        self,
        messages: Mapping[ClientId, bytes],
        deadline: float,
        enough: Callable[[], bool],
        limit: int,
        observe: Callable[[ClientId, bytes], None],
    ) -> Iterator[Reply]:
        """Send each site its question, and yield the answers in the order of their arrival.

        A site that is absent at first is sent its question when it comes. None for one that has been absent for `lost`
        seconds since; an answer above the limit comes as zeros, one byte too many. Raises Aborted after `abort`.
        """
        begin = time.monotonic()
        with self._lock:
            self._arrived, self._waiting = queue.SimpleQueue(), Counter()
            self._open = {c: Question(secrets.token_hex(8), data, limit, begin) for c, data in messages.items()}
            for client in sorted(messages):
                self._send(client)
        try:
            while not enough():
                if self._aborted:
                    raise Aborted(self._aborted)
                if (left := begin + deadline - time.monotonic()) <= 0:
                    return
                try:
                    kind, client, data = self._arrived.get(timeout=min(BEAT, left))
                except queue.Empty:
                    yield from self._lost(begin)
                    continue
                if kind != "answer":
                    self._waiting[client] -= 1
                if kind == "progress":
                    observe(client, data or b"")
                else:
                    yield Reply(client, data, time.monotonic() - begin)
        finally:
            with self._lock:
                self._open = {}

    def tell(self, client: ClientId, message: bytes) -> None:
        """Send a message without an answer; it may be lost."""
        self._pool.submit(self._call, {"do": "tell", "client": client}, message)

    def expel(self, client: ClientId) -> None:
        """Refuse the site from now on."""
        with self._lock:
            self.expelled.add(client)
            self.leases.end(client)
            question = self._open.get(client)
            if question is not None and not question.done:
                question.done = True
                self._arrived.put(("answer", client, None))
        self._pool.submit(self._call, {"do": "expel", "client": client}, b"", 10.0)
        self.on_event("expelled", site=client)

    def close(self) -> None:
        """End all questions."""
        self.abort("the coordinator ends")
        self._pool.shutdown(wait=False, cancel_futures=True)

    # What sites send

    def _register(self, client: ClientId, head: Head) -> Head:
        """Whether a process may have the identity; not yet proved, so this does not count as a sign of life."""
        held = self.leases.present(self._now).get(client)
        if held is not None and held.session not in (head["session"], head["replaces"]):
            self.on_event("refused", site=client, code="lease", why="another process uses this identity")
            return {"code": "lease", "why": "another process uses this identity"}
        return {"code": "ok"}

    def _hello(self, client: ClientId, head: Head) -> Head:
        if not self.leases.sign(client, head["session"], float(head["time"]), head["replaces"]):
            return {"code": "lease", "why": "another process uses this identity"}
        if head["note"] == "leaving":
            self.leases.end(client)
            self._absences()
            return {"code": "ok"}
        self._last[client] = float(head["time"])
        if client not in self._connected:
            self._connected.add(client)
            self.on_event("connected", site=client)
        question = self._open.get(client)
        if question is not None and not question.done and head["key"] != question.key:
            self._send(client)
        return {"code": "ok"}

    def _answer(self, client: ClientId, head: Head, data: bytes) -> Head:
        question = self._open.get(client)
        if question is None or question.done or question.key != head["key"]:
            self.late += 1
            return {"code": "late"}
        if self.leases.present(self._now).get(client, Seen("", 0, 0)).session != head["session"]:
            return {"code": "lease", "why": "another process uses this identity"}
        question.done = True
        if head["note"] == "too-large" or len(data) > question.limit:
            data = bytes(question.limit + 1)
        self._arrived.put(("answer", client, data))
        return {"code": "ok"}

    def _progress(self, client: ClientId, head: Head, data: bytes) -> None:
        question = self._open.get(client)
        if question is not None and question.key == head["key"] and not question.done:
            self._put("progress", client, data)

    def _put(self, kind: str, client: ClientId, data: bytes) -> None:
        """Keep a message beside the answers until it is read: few of a site, and none without a question."""
        if self._open and self._waiting[client] < MOST_WAITING:
            self._waiting[client] += 1
            self._arrived.put((kind, client, data))

    # Delivery

    def _send(self, client: ClientId) -> None:
        question = self._open[client]
        if not question.sending:
            question.sending = True
            self._pool.submit(self._deliver, client, question)

    def _deliver(self, client: ClientId, question: Question) -> None:
        try:
            head = {"do": "ask", "client": client, "key": question.key, "limit": question.limit}
            answer = self._call(head, question.data)
        finally:
            question.sending = False  # what did not arrive is sent again after the next sign of the site
        if TOO_LARGE in str(answer.get("why", "")):
            why = f"a question of {len(question.data):,} bytes is larger than the site takes"
            self.on_event("refused", site=client, code="size", why=why)

    def _call(self, head: Head, data: bytes, timeout: float = DELIVERY) -> Head:
        if self._wire is None:
            return {"code": "no-engine"}
        try:
            return self._wire.call(head, data, timeout=timeout)
        except (Gone, TimeoutError):
            return {"code": "no-engine"}

    # Absence

    def _is_member(self, client: ClientId) -> bool:
        return client not in self.expelled and (self.names is None or client in self.names)

    def _read_members(self) -> None:
        """Read the list again; one that cannot be read stays as it was."""
        if self.members is not None:
            with suppress(OSError, ValueError, ShepherdError):
                self.names = frozenset(self.members())

    def _absences(self) -> None:
        self._read_members()
        for client in sorted(self.leases.present(self._now)):
            if not self._is_member(client):
                self.expel(client)
        for client in sorted(self._connected - self.leases.present(self._now).keys()):
            self._connected.remove(client)
            self.on_event("lost", site=client)

    def _lost(self, begin: float) -> Iterator[Reply]:
        """A reply for each site that has been absent for too long."""
        with self._lock:
            lost = []
            for client, question in sorted(self._open.items()):
                if not question.done and self._now - max(begin, self._last.get(client, 0.0)) > self.lost:
                    question.done = True
                    lost.append(client)
        for client in lost:
            yield Reply(client, None, time.monotonic() - begin)
