"""A transport with its bytes and signs counted by site, for the table of a run and for `presence.json`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from shepherd.experiment.events import SiteRow
from shepherd.federation.states import Ledger
from shepherd.federation.transport import Reply, Seen, Transport
from shepherd.types import ClientId


class Watched:
    """A transport. `look` is called after each look at who is present; `clock` is that of the transport."""

    def __init__(
        self, transport: Transport, look: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.transport, self.look, self.clock = transport, look, clock
        self.seen: Mapping[ClientId, Seen] = {}
        self.last: dict[ClientId, float] = {}
        """The last sign of each site, in seconds since 1970."""
        self.down: dict[ClientId, int] = {}
        self.up: dict[ClientId, int] = {}

    def present(self) -> Mapping[ClientId, Seen]:
        """The sites that are connected."""
        self.seen = self.transport.present()
        now = time.time() - self.clock()
        self.last |= {client: round(now + seen.last, 3) for client, seen in self.seen.items()}
        self.look()
        return self.seen

    def ask(
        self,
        messages: Mapping[ClientId, bytes],
        deadline: float,
        enough: Callable[[], bool],
        limit: int,
        observe: Callable[[ClientId, bytes], None],
    ) -> Iterator[Reply]:
        """Ask, and count questions and answers; progress is not counted."""
        for client, data in messages.items():
            self.down[client] = self.down.get(client, 0) + len(data)
        for reply in self.transport.ask(messages, deadline, enough, limit, observe):
            self.up[reply.client] = self.up.get(reply.client, 0) + len(reply.data or b"")
            yield reply

    def tell(self, client: ClientId, message: bytes) -> None:
        """Send a message without an answer."""
        self.down[client] = self.down.get(client, 0) + len(message)
        self.transport.tell(client, message)

    def expel(self, client: ClientId) -> None:
        """Refuse a site from now on."""
        self.transport.expel(client)

    def close(self) -> None:
        """End all connections."""
        self.transport.close()

    def rows(
        self, ledger: Ledger, waiting: Mapping[ClientId, str], members: tuple[ClientId, ...]
    ) -> dict[str, SiteRow]:
        """Each site that is a member, known to the run or connected. waiting: verdicts of sites that are no refusal."""
        found: dict[str, SiteRow] = {}
        for client in sorted({*members, *ledger.sites, *self.seen}):
            site = ledger.of(client)
            found[client] = {
                "state": site.state,
                "reason": waiting.get(client, "") if site.state == "offered" else site.reason,
                "present": client in self.seen,
                "last": self.last.get(client),
                "bytes_down": self.down.get(client, 0),
                "bytes_up": self.up.get(client, 0),
            }
        return found
