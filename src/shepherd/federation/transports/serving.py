"""A federation over NVFlare: the coordinator's transport, and a site that serves.

    with serve_federation(kit, limit=20 * 2**20) as transport:      # federation/transport.py's Transport
        coordinate(config, transport)
    serve_site(kit, site, stop=stop)                                # until `stop` is set

The engine's processes are children of ours, and are started again when they end. Rows, models and what a run has
computed are not in them, so nothing is lost with one. Linux only.
"""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shepherd.errors import NetworkError, ResourceError, UsageError
from shepherd.federation.transport import Transport
from shepherd.federation.transports.audit import Audit
from shepherd.federation.transports.bridge import Gone, Head
from shepherd.federation.transports.diagnosis import SWAPPED, Fault, diagnose, fault_of_certificate
from shepherd.federation.transports.engine_process import EngineProcess, check_engine
from shepherd.federation.transports.holding import hold
from shepherd.federation.transports.hub import Hub
from shepherd.federation.transports.kits import SERVER, is_loopback, read_address
from shepherd.federation.transports.link import BEAT, SILENCE, Link, Process
from shepherd.federation.transports.refusals import NO_MEMBER, refusal_in
from shepherd.store.disk import PRIVATE, write_whole
from shepherd.types import ClientId

OnEvent = Callable[..., None]
START = 60.0
"""Seconds that the engine may take to start."""
HANGS = 30.0
"""Seconds without a tick after which the engine's process hangs."""
TRIES = 5
"""Starts in a row that fail before the coordinator gives up."""
DISABLED = "disabled_clients.json"


def silent(kind: str, **facts: object) -> None:
    """No action at an event."""


@contextmanager
def serve_federation(
    kit: Path,
    *,
    limit: Callable[[], int] | int,
    members: Callable[[], Collection[ClientId]] | None = None,
    on_event: OnEvent = silent,
) -> Iterator[Transport]:
    """The coordinator's transport over the kit of a server.

    limit: bytes of the largest message of a run, asked for at each start of the engine. members: the names that may
    connect, read again each second; a site whose name goes is removed at once. Events: up, connected, lost, restarting,
    expelled with `site`, refused with `why`. Raises UsageError for a kit that is in use or incomplete, a port that is
    taken, and a missing engine; NetworkError where the engine does not start. A question raises Aborted when it ends.
    """
    check_engine()
    audit = Audit(kit, on_event)
    with hold(kit):
        host, port = _address(kit)
        _check_port(host, port)
        _check_certificate(kit / "startup")
        _enable(kit, members() if members is not None else ())
        server = _Server(kit, Hub(audit, members=members), limit, audit)
        keeper = threading.Thread(target=server.keep, name="engine", daemon=True)
        keeper.start()
        try:
            server.wait(port)
            yield server.hub
        finally:
            server.stop.set()
            server.hub.close()
            keeper.join()
            server.engine.stop()


class _Server:
    """The coordinator's engine, started again when it ends or hangs."""

    def __init__(self, kit: Path, hub: Hub, limit: Callable[[], int] | int, audit: Audit) -> None:
        self.hub, self.limit, self.audit = hub, limit, audit
        self.stop, self.up = threading.Event(), threading.Event()
        self.failures = 0
        self.posted: frozenset[ClientId] | None = None
        self.engine = EngineProcess("server", kit, self.handle, lambda line: _note(line, audit))

    def handle(self, head: Head, data: bytes) -> Head | None:
        if head["event"] == "up" and "client" not in head:
            self.failures = 0
            self.up.set()
        elif head["event"] == "refused":
            self.audit("refused", **{key: value for key, value in head.items() if key != "event"})
        else:
            return self.hub.handle(head, data)
        return None

    def keep(self) -> None:
        """Start the engine whenever it does not run."""
        while not self.stop.is_set():
            hangs = self.up.is_set() and time.monotonic() - self.hub.heard > HANGS
            if not self.engine.is_alive() or hangs:
                self.hub.attach(None)
                if self.up.is_set():
                    self.audit("restarting", why="the engine hangs" if hangs else "the engine has ended")
                self.failures += 1
                if self.failures > TRIES:
                    self.hub.abort(f"the engine ends at each start; see {self.engine.kit / 'engine.log'}")
                    return
                self.stop.wait(0.5 * (self.failures - 1))
                self.hub.heard = time.monotonic()
                self.hub.attach(self.engine.start(self.limit() if callable(self.limit) else self.limit))
                self.posted = None
            self.post_members()
            self.stop.wait(0.25)

    def post_members(self) -> None:
        """Send the names that may connect to the engine's process if they have changed: it drops what others send."""
        bridge, names = self.engine.bridge, self.hub.names
        if bridge is not None and names is not None and names - self.hub.expelled != self.posted:
            self.posted = names - self.hub.expelled
            with suppress(Gone):  # another process is started then
                bridge.post({"do": "members"}, json.dumps(sorted(self.posted)).encode())

    def wait(self, port: int) -> None:
        """Wait for the first start, until sites can connect. Raises NetworkError."""
        end = time.monotonic() + START
        while time.monotonic() < end and self.failures <= TRIES:
            if self.up.wait(0.1):
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                    self.audit("up")
                    return
                time.sleep(0.05)
        raise NetworkError(
            f"the engine of the federation does not start; see {self.engine.kit / 'engine.log'}",
            hint="the end of that file has the reason",
        )


def serve_site(
    kit: Path,
    site: Process,
    *,
    stop: threading.Event,
    limit: int = 2**30,
    outbox: queue.SimpleQueue[bytes] | None = None,
    on_event: OnEvent = silent,
) -> None:
    """Serve a coordinator until `stop` is set; a coordinator that is away is waited for.

    limit: bytes of a question. outbox: messages to send that answer none, as a goodbye. `site.handle` runs in a thread;
    work that is in progress when `stop` is set goes on there until the caller ends the trainer. Events: connected,
    lost, waiting with `code` and `why`, restarting, refused, failed. Raises UsageError for a kit that is in use or
    damaged and a missing engine, NetworkError where the coordinator has removed the site.
    """
    check_engine()
    audit = Audit(kit, on_event)
    with hold(kit, site.session) as former:
        _address(kit)
        client = _Client(kit, Link(site, replaces=former, on_event=audit, outbox=outbox), limit, audit)
        worker = threading.Thread(target=client.link.serve, args=[stop], name="site", daemon=True)
        worker.start()
        try:
            client.keep(stop)
        finally:
            if client.link.connected:
                client.link.send_outbox()
                client.link.leave()
            client.link.attach(None)
            client.engine.stop()


class _Client:
    """The engine of a site: started when the coordinator can be reached, and again when it ends or nobody answers."""

    def __init__(self, kit: Path, link: Link, limit: int, audit: Audit) -> None:
        self.link, self.limit, self.audit = link, limit, audit
        self.up = threading.Event()
        self.fault: Fault | None = None
        self.removed = ""
        session = {"SHEPHERD_SESSION": f"{link.site.session} {link.replaces}"}
        self.engine = EngineProcess("site", kit, self.handle, lambda line: _note(line, self.refused), session)

    def handle(self, head: Head, data: bytes) -> Head | None:
        if head["event"] == "up":
            self.up.set()
        elif head["event"] == "refused":
            self.refused("refused", **{key: value for key, value in head.items() if key != "event"})
        else:
            return self.link.handle(head, data)
        return None

    def refused(self, kind: str, **facts: str) -> None:
        if facts["code"] == "removed":
            self.removed = facts["why"]
        self.audit(kind, **facts)

    def keep(self, stop: threading.Event) -> None:
        """One beat after the other, until `stop` is set. Raises NetworkError where the site is removed."""
        wait = 0.0
        while not stop.wait(wait):
            begin = time.monotonic()
            if self.removed:
                raise NetworkError(self.removed, hint="ask the coordinator: to come back takes another name")
            if not self.engine.is_alive():
                self.start()
            elif self.up.is_set():
                self.beat()
            elif self.link.silence > START:
                self.restart("it does not start")
            wait = max(0.0, BEAT - (time.monotonic() - begin))

    def start(self) -> None:
        """Start the engine if nothing is in the way."""
        self.up.clear()
        if self.is_reachable():
            self.link.attach(self.engine.start(self.limit))

    def beat(self) -> None:
        """Give a sign of life, and judge the answer."""
        code = self.link.beat()
        if code == "removed":
            self.removed = NO_MEMBER
        elif code == "ok":
            self.link.send_outbox()
        if self.link.silence > SILENCE and self.is_reachable():
            self.restart("nobody answers")

    def restart(self, why: str) -> None:
        self.audit("restarting", why=why)
        self.link.attach(None)
        self.engine.stop()

    def is_reachable(self) -> bool:
        """Whether the coordinator can be reached; a change of what is in the way is an event."""
        try:
            fault = diagnose(self.engine.kit)
        except (OSError, ValueError, LookupError) as error:
            mend = "start the site again, which completes an interrupted renewal"
            raise UsageError(f"the kit {self.engine.kit} is damaged: {error}", hint=mend) from None
        if fault is not None and fault != self.fault:
            self.audit("waiting", code=fault.code, why=fault.why)
        self.fault = fault
        return fault is None or fault.code == SWAPPED  # the coordinator names it too, as it refuses the name


def _note(line: str, event: Callable[..., None]) -> None:
    """Make an event of a line of the engine's log that is about a refusal."""
    if refusal := refusal_in(line):
        event("refused", code=refusal.code, why=refusal.why)


def _address(kit: Path) -> tuple[str, int]:
    try:
        return read_address(kit)
    except (OSError, ValueError, LookupError) as error:
        raise UsageError(f"the kit {kit} is damaged: {error}", hint="make or join the federation again") from None


def _check_certificate(startup: Path) -> None:
    """The engine would end at each start, without a reason that a person finds."""
    try:
        fault = fault_of_certificate(
            startup / "server.crt", startup / "rootCA.pem", SERVER, whose="the coordinator's own"
        )
    except (OSError, ValueError) as error:
        raise UsageError(f"the kit {startup.parent} is damaged: {error}", hint="restore it from a copy") from None
    if fault is not None:
        raise UsageError(fault.why, hint="compare this machine's clock; `shepherd run` renews the certificate in time")


def _check_port(host: str, port: int) -> None:
    """The engine would share the port with its present holder, without an error: so it is tried here."""
    try:
        with socket.socket() as end:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            end.bind(("127.0.0.1" if is_loopback(host) else "0.0.0.0", port))
            end.listen()
    except OSError as error:
        raise ResourceError(
            f"cannot listen at port {port}: {error.strerror or error}",
            hint="another program has it; end that, or give the federation another port",
        ) from None


def _enable(kit: Path, members: Collection[ClientId]) -> None:
    """Take members from the engine's list of disabled clients: a name that was removed may have been invited again."""
    path = kit / DISABLED
    with suppress(OSError, ValueError, LookupError, TypeError):
        disabled = json.loads(path.read_text(encoding="utf-8"))["disabled_clients"]
        kept = sorted(set(disabled) - set(members))
        if kept != disabled:
            write_whole(PRIVATE, path, json.dumps({"disabled_clients": kept}).encode())
