"""A site's side of a network: signs of life, the question it is at work on, and the answer until it is taken.

    link = Link(site, on_event=...)
    link.attach(wire)                 # an engine's process; another one after a restart of it
    link.handle(head, data)           # what comes from there: a question, a message without an answer
    link.beat()                       # each second
    link.serve(stop)                  # works on questions until `stop` is set

The newest question counts. Its answer is sent until the coordinator has taken it, over as many connections as needed.
The engine's process is to be started again when nobody has answered for a while (`silence`): a connection that a
network has cut without a word looks like one that is open.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from shepherd.federation.transports.bridge import Gone, Head
from shepherd.federation.transports.hub import TOO_LARGE, Wire
from shepherd.outcomes import code_of

_log = logging.getLogger(__name__)
BEAT = 1.0
SILENCE = 15.0
"""Seconds without an answer to a sign of life after which the connection counts as cut."""
ANSWERS = ("ok", "lease", "removed", "busy")
"""What a coordinator answers to a sign of life; busy: it has not come to it."""
PROGRESS = 0.2
"""Seconds between two messages of progress."""
AGAIN = 5.0
"""Seconds until a site tries again what its disk refused."""
DELIVERY = 600.0
A_SECOND, BURST = 5.0, 200.0
"""Messages that a site works on, a second and at once: each has a line in its log, which no coordinator may fill."""
MOST_TOLD, SMALL = 16, 2**16
"""Messages without an answer that wait, and bytes of one; what comes above is lost."""


class Process(Protocol):
    """A site's process, as `federation.site.Site` is one."""

    session: str

    def handle(self, data: bytes, report: Callable[[bytes], None]) -> bytes | None:
        """The answer to a message."""


class Link:
    """The connection of a site's process to its coordinator. replaces: the session that this one takes the place of."""

    def __init__(
        self,
        site: Process,
        *,
        replaces: str = "",
        on_event: Callable[..., None] = lambda kind, **facts: None,
        outbox: queue.SimpleQueue[bytes] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.site, self.replaces, self.on_event, self.clock = site, replaces, on_event, clock
        self.outbox = outbox if outbox is not None else queue.SimpleQueue()
        self.connected = False
        self._reported = -math.inf
        self._left, self._paced = BURST, clock()
        self._wire: Wire | None = None
        self._heard = clock()
        self._key, self._limit = "", math.inf  # of the answer, in bytes
        self._question: bytes | None = None
        self._told: list[bytes] = []
        self._came = threading.Condition()

    # The engine's process

    def attach(self, wire: Wire | None) -> None:
        """Send through this process from now on; None: there is none at present."""
        self._wire = wire
        self._heard = self.clock()

    def handle(self, head: Head, data: bytes) -> Head | None:
        """Take what comes from the engine's process."""
        with self._came:
            if head["event"] == "ask" and head["key"] != self._key:
                self._key, self._question = head["key"], data
                self._limit = head["limit"] if type(head.get("limit")) is int else math.inf
            elif head["event"] == "tell" and len(self._told) < MOST_TOLD and len(data) <= SMALL:
                self._told.append(data)
            self._came.notify_all()
        return None

    def beat(self) -> str:
        """Give a sign of life. The code of the answer: ok, lease, removed, or what the engine says."""
        answer = self._call({"do": "hello", "key": self._key}, timeout=10.0)
        code = str(answer.get("code", ""))
        if code in ANSWERS:
            self._heard = self.clock()
        if code == "ok" and not self.connected:
            self.on_event("connected")
        elif code in ("lease", "removed"):
            self.on_event("refused", code=code, why=str(answer.get("why", "")))
        elif code not in ANSWERS and self.connected:
            self.on_event("lost", why="the coordinator does not answer")
        if code != "busy":
            self.connected = code == "ok"
        return code

    def leave(self) -> None:
        """Give up the identity, so that another process may have it at once."""
        self._call({"do": "hello", "key": self._key, "note": "leaving"}, timeout=2.0)

    @property
    def silence(self) -> float:
        """Seconds since the coordinator's last answer, or since the start of the engine's process."""
        return self.clock() - self._heard

    # Work

    def serve(self, stop: threading.Event) -> None:
        """Work on questions until `stop` is set."""
        while not stop.is_set():
            with self._came:
                self._came.wait_for(lambda: self._question is not None or self._told or stop.is_set(), BEAT)
                told, self._told = self._told, []
                key, question, self._question = self._key, self._question, None
            for message in told:
                self._pace(stop)
                self._work(message, "", stop)
            if question is not None:
                self._pace(stop)
                self._deliver(key, self._work(question, key, stop), stop)

    def _pace(self, stop: threading.Event) -> None:
        """Wait until the next message may be worked on."""
        now = self.clock()
        self._left = min(BURST, self._left + A_SECOND * (now - self._paced))
        if self._left < 1:
            stop.wait((1 - self._left) / A_SECOND)
        self._left, self._paced = self._left - 1, now

    def _work(self, data: bytes, key: str, stop: threading.Event) -> bytes | None:
        """The site's answer. A disk that refuses is tried again: the same question has the same answer."""
        while not stop.is_set() and key in ("", self._key):
            try:
                return self.site.handle(data, lambda progress: self._progress(key, progress))
            except OSError as error:
                why = f"cannot write {error.filename or 'to the disk'}: {error.strerror or type(error).__name__}"
                self.on_event("failed", why=f"{why}; nothing is lost, and it goes on once there is space")
                stop.wait(AGAIN)
            except Exception as error:  # its text stays here
                _log.debug("a question has failed", exc_info=True)
                self.on_event("failed", why=code_of(error))
                return None
        return None

    def send_outbox(self) -> None:
        """Send the messages that answer nothing; what does not arrive is lost."""
        while not self.outbox.empty():
            self._call({"do": "message"}, self.outbox.get(), timeout=DELIVERY)

    def _progress(self, key: str, data: bytes) -> None:
        now = self.clock()
        if self.connected and key == self._key and now - self._reported >= PROGRESS:
            self._reported = now
            self._post({"do": "progress", "key": key}, data)

    def _deliver(self, key: str, answer: bytes | None, stop: threading.Event) -> None:
        """Send an answer until it is taken, or another question has come."""
        note = ""
        if answer is not None and len(answer) > self._limit:  # neither the engine's process nor the wire gets it
            note = self._too_large()
        while answer is not None and key == self._key and not stop.is_set():
            taken = self._call({"do": "answer", "key": key, "note": note}, b"" if note else answer, timeout=DELIVERY)
            if taken.get("code") in ("ok", "late"):
                return
            if TOO_LARGE in str(taken.get("why", "")):
                note = self._too_large()
            stop.wait(BEAT)

    def _too_large(self) -> str:
        self.on_event("failed", why="the answer is larger than the coordinator takes")
        return "too-large"

    def _call(self, head: Head, data: bytes = b"", *, timeout: float) -> Head:
        if self._wire is None:
            return {}
        try:
            head = {**head, "session": self.site.session, "replaces": self.replaces}
            return self._wire.call(head, data, timeout=timeout)
        except (Gone, TimeoutError):
            return {}

    def _post(self, head: Head, data: bytes) -> None:
        if self._wire is not None:
            with suppress(Gone):
                self._wire.post({**head, "session": self.site.session}, data)
