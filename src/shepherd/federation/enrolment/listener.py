"""The door of an enrolment to the network, open only while an invitation is, or a renewal is due.

    with listener(folder, say=print) as door: ...

It is the only thing that strangers reach before they are members. `https.py` bounds what they can do to it, and
`desk.grant` judges what a request says. Lines name sites of the list, addresses and reasons of ours, never what was
sent.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from shepherd.errors import NetworkError, ShepherdError
from shepherd.federation.enrolment import desk
from shepherd.federation.enrolment.folder import FederationFolder
from shepherd.federation.enrolment.https import Server
from shepherd.federation.enrolment.members import now
from shepherd.federation.enrolment.reach import CONFIRM
from shepherd.federation.enrolment.refusals import Refused
from shepherd.federation.enrolment.requests import Request, read

LINES_A_MINUTE = 30
"""Refusals that have a line; the rest is counted."""
Say = Callable[[str], None]


class Door:
    """The listener of a federation, which opens and closes by the list of members."""

    def __init__(self, folder: FederationFolder, say: Say) -> None:
        self.folder = folder
        self._lines = _Lines(folder, say)
        self._say = say
        self._server: Server | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="enrolment", daemon=True)

    @property
    def open(self) -> bool:
        """Whether the port is bound at present."""
        return self._server is not None

    def start(self) -> None:
        """Open the door if somebody is awaited, and watch the list from now on. Raises NetworkError."""
        if self._awaits():
            self._open()
        self._thread.start()

    def stop(self) -> None:
        """Close it, and end all connections."""
        self._stop.set()
        self._thread.join()
        self._close()

    def _watch(self) -> None:
        failed = ""
        while not self._stop.wait(0.5):
            try:
                awaits = self._awaits()
                if awaits and not self.open:
                    self._open()
                elif not awaits and self.open:
                    self._close()
                failed = ""
            except (ShepherdError, OSError) as error:
                if str(error) != failed:
                    self._say(f"Enrolment: {error}")
                failed = str(error)

    def _awaits(self) -> bool:
        at = now()
        return any(member.awaited(at) for member in self.folder.members.values())

    def _open(self) -> None:
        settings = self.folder.settings
        try:
            self._server = Server(settings.host, settings.enrolment_port, self.folder.kit / "startup", self._answer)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            raise NetworkError(
                f"the enrolment's port {settings.enrolment_port} "
                + ("is in use by another process" if taken else f"cannot be opened: {error.strerror or error}"),
                hint=f"end that process, or change the port in {self.folder.path}/federation.toml and invite again",
            ) from None
        self._say(f"Enrolment is open at {settings.host}:{settings.enrolment_port}.")

    def _close(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None
            self._say("Enrolment is closed: nobody is awaited." if not self._stop.is_set() else "Enrolment is closed.")

    def _answer(self, path: str, body: bytes, who: str) -> tuple[int, bytes]:
        """Status and body of the answer to a request."""
        try:
            if path == CONFIRM:
                desk.confirm(self.folder, body)
                return 200, b"{}"
            answer = desk.grant(self.folder, body)
        except Refused as why:
            refused = why
        except (ShepherdError, OSError) as error:
            refused = Refused("busy", str(error))
        except Exception as error:  # a fault of ours, which a stranger found: it must end neither the door nor the run
            refused = Refused("busy", f"a fault: {type(error).__name__}")
        else:
            self._lines.issued(who, read(Request, body).site)
            return 200, answer
        self._lines.refused(who, refused, _site_of(self.folder, body))
        return 503 if refused.why.later else 403, b'{"refused": "%s"}' % refused.code.encode()


@contextmanager
def listener(folder: FederationFolder, say: Say) -> Iterator[Door]:
    """Serve enrolments within the block, while an invitation or a renewal is open. say: lines for the coordinator, from
    other threads. Raises NetworkError where the port is taken."""
    door = Door(folder, say)
    door.start()
    try:
        yield door
    finally:
        door.stop()


class _Lines:
    """Lines about requests, for the screen and the log, of which a stranger can cause a limited number."""

    def __init__(self, folder: FederationFolder, say: Say) -> None:
        self._folder, self._say = folder, say
        self._lock = threading.Lock()
        self._begin, self._count = time.monotonic(), 0

    def refused(self, who: str, why: Refused, site: str) -> None:
        """A line for a refusal. site: a name of the list, or empty."""
        detail = f" ({why.detail})" if why.detail else ""
        if self._may():
            self._say(f"Enrolment: {why.why.coordinator}{f' for {site}' if site else ''}, from {who}{detail}.")
            with suppress(OSError):
                self._folder.record("refused", code=why.code, site=site, address=who)

    def issued(self, who: str, site: str) -> None:
        self._say(f"Enrolment: {site} has its certificate, from {who}.")

    def _may(self) -> bool:
        with self._lock:
            if time.monotonic() - self._begin > 60:
                more = self._count - LINES_A_MINUTE
                if more > 0:
                    self._say(f"Enrolment: {more:,} more refusals in the last minute.")
                self._begin, self._count = time.monotonic(), 0
            self._count += 1
            return self._count <= LINES_A_MINUTE


def _site_of(folder: FederationFolder, body: bytes) -> str:
    """The site that a request names, if the list has it."""
    with suppress(Refused, ShepherdError):
        site = read(Request, body).site
        return site if site in folder.members else ""
    return ""
