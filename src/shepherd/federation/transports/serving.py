"""A federation over NVFlare: the coordinator's transport, and a site that serves.

    with serve_federation(kit, limit=20 * 2**20) as transport:      # federation/transport.py's Transport
        coordinate(config, transport)
    serve_site(kit, site, stop=stop)                                # until `stop` is set

The engine's processes are children of ours, and are started again when they end. Rows, models and what a run has
computed are not in them, so nothing is lost with one. Linux only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shepherd.federation.transport import Transport
from shepherd.federation.transports.bridge import Head
from shepherd.federation.transports.engine_process import EngineProcess
from shepherd.federation.transports.hub import Hub
from shepherd.federation.transports.kits import write_limits
from shepherd.federation.transports.link import BEAT, Link, Process

OnEvent = Callable[..., None]
Limit = Callable[[], int] | int


def silent(kind: str, **facts: object) -> None:
    """No action at an event."""


@contextmanager
def serve_federation(kit: Path, *, limit: Limit, on_event: OnEvent = silent) -> Iterator[Transport]:
    """The coordinator's transport over the kit of a server. limit: bytes of the largest message of a run."""
    hub, stop = Hub(on_event), threading.Event()
    up = threading.Event()

    def handle(head: Head, data: bytes) -> Head | None:
        if head["event"] == "up":
            up.set()
            on_event("up")
            return None
        if head["event"] == "refused":
            on_event("refused", why=head["why"])
            return None
        return hub.handle(head, data)

    process = EngineProcess("server", kit, handle)

    def keep() -> None:
        while not stop.is_set():
            if not process.is_alive():
                if up.is_set():
                    on_event("restarting")
                hub.attach(None)
                write_limits(kit, limit() if callable(limit) else limit)
                hub.attach(process.start())
            stop.wait(0.5)

    keeper = threading.Thread(target=keep, name="engine", daemon=True)
    keeper.start()
    try:
        up.wait(60)
        yield hub
    finally:
        stop.set()
        hub.close()
        keeper.join()
        process.stop()


def serve_site(kit: Path, site: Process, *, stop: threading.Event, on_event: OnEvent = silent) -> None:
    """Serve a coordinator until `stop` is set."""
    link = Link(site, on_event=on_event)
    up = threading.Event()

    def handle(head: Head, data: bytes) -> Head | None:
        if head["event"] == "up":
            up.set()
            return None
        if head["event"] == "refused":
            on_event("refused", why=head["why"])
            return None
        return link.handle(head, data)

    write_limits(kit, 2**31)
    process = EngineProcess("site", kit, handle, {"SHEPHERD_SESSION": f"{site.session} "})
    worker = threading.Thread(target=link.serve, args=[stop], name="site", daemon=True)
    worker.start()
    try:
        while not stop.is_set():
            if not process.is_alive():
                up.clear()
                link.attach(process.start())
            begin = time.monotonic()
            if up.is_set():
                link.beat()
                if link.is_silent():
                    on_event("restarting", why="nobody answers")
                    process.stop()
            stop.wait(max(0.0, BEAT - (time.monotonic() - begin)))
    finally:
        link.attach(None)
        process.stop()
