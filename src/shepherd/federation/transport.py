"""What carries bytes between a coordinator and its sites: the coordinator's side, in five calls.

A transport knows names and sessions, and no message: identity, encryption, framing and reconnecting are its own. It may
lose, delay, repeat or reorder messages; the coordinator judges what arrives. transports/memory.py has both ends in one
process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from shepherd.types import ClientId


@dataclass(frozen=True, slots=True)
class Seen:
    """A connected site: the session of the process that holds its lease, since when, and its last sign, in seconds of
    the transport's monotonic clock."""

    session: str
    since: float
    last: float


class Reply(NamedTuple):
    """A message of a site, by its authenticated name, after seconds from the question; None: the site is gone."""

    client: ClientId
    data: bytes | None
    seconds: float


class Aborted(Exception):
    """The transport ends in mid-question: nothing of the attempt has happened, and no site is to blame."""


class Transport(Protocol):
    """The coordinator's side. `limit` is in bytes: a larger message is refused before it is held in memory."""

    def present(self) -> Mapping[ClientId, Seen]:
        """The sites that are connected, by the names of their certificates."""

    def ask(
        self,
        messages: Mapping[ClientId, bytes],
        deadline: float,
        enough: Callable[[], bool],
        limit: int,
        observe: Callable[[ClientId, bytes], None],
    ) -> Iterator[Reply]:
        """Send each site its question, and yield what comes, until `deadline` seconds (inf: never) or `enough()`.

        `enough` is called after each reply, and every second or so without one. Messages of progress go to `observe`.
        Raises Aborted, or an error of the transport, where it ends: then no reply of this question counts.
        """

    def tell(self, client: ClientId, message: bytes) -> None:
        """Send a message without an answer; it may be lost."""

    def expel(self, client: ClientId) -> None:
        """Refuse the site from now on."""

    def close(self) -> None:
        """End all connections."""


class Leases:
    """One process for each identity: a second one with the same certificate is refused while the first gives signs.

    A process that restarts names the session that it replaces, and need not wait until that one is gone.
    """

    def __init__(self, gone: float) -> None:
        self.gone = gone
        self._held: dict[ClientId, Seen] = {}

    def sign(self, client: ClientId, session: str, now: float, replaces: str = "") -> bool:
        """A sign of life of a process. False: another one holds the identity."""
        held = self._held.get(client)
        if held is not None and held.session not in (session, replaces) and now - held.last < self.gone:
            return False
        since = held.since if held is not None and held.session == session else now
        self._held[client] = Seen(session, since, now)
        return True

    def present(self, now: float) -> dict[ClientId, Seen]:
        """The holders that gave a sign within the last `gone` seconds."""
        return {client: seen for client, seen in sorted(self._held.items()) if now - seen.last < self.gone}

    def end(self, client: ClientId) -> None:
        """Take the lease of a site that has left."""
        self._held.pop(client, None)
