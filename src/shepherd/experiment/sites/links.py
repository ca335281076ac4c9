"""What carries the messages of a federation on this machine: NVFlare's processes and the desk that enrols sites.

The names here are the seam between the commands and the network: a test replaces them by ones that need none.
"""

from __future__ import annotations

import importlib.util
import queue
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from shepherd.errors import UsageError, missing_extra
from shepherd.federation.transport import Transport

PROTECTIONS = ("tls1.3",)
"""What the transport gives, for `policy.require`."""
Say = Callable[[str], None]
OnEvent = Callable[..., None]


class Process(Protocol):
    """A site's process, as `federation.site.Site` is one."""

    session: str

    def handle(self, data: bytes, report: Callable[[bytes], None]) -> bytes | None:
        """The answer to a message."""


def check_machine() -> None:
    """Raise UsageError where no federation of sites can run: elsewhere than on Linux, or without the extra."""
    if sys.platform != "linux":
        raise UsageError(
            "federations of sites need Linux: the engine under them runs nowhere else",
            hint="use Linux, a container or WSL; all other commands run here, and shepherd run simulates sites",
        )
    if importlib.util.find_spec("nvflare") is None:
        raise missing_extra("nvflare", "federation")


def open_transport(
    kit: Path, limit: int, members: Callable[[], frozenset[str]], on_event: OnEvent
) -> AbstractContextManager[Transport]:
    """The coordinator's transport over the kit of a server.

    limit: bytes of the largest message of a run. members: who may connect, read again and again.
    """
    from shepherd.federation.transports.serving import serve_federation

    return serve_federation(kit, limit=limit, members=members, on_event=on_event)


def open_desk(folder: Any, say: Say) -> AbstractContextManager[object]:
    """What enrols sites while an invitation is open."""
    from shepherd.federation.enrolment import listener

    return listener(folder, say)


def serve_site(
    kit: Path,
    site: Process,
    stop: threading.Event,
    outbox: queue.SimpleQueue[bytes],
    on_event: OnEvent,
    limit: int = 2**30,
) -> None:
    """Answer the coordinator until `stop` is set. outbox: messages that answer nothing. limit: bytes of a question."""
    from shepherd.federation.transports.serving import serve_site

    serve_site(kit, site, stop=stop, limit=limit, outbox=outbox, on_event=on_event)
