"""Who is waited for in an attempt, and whether a site that says nothing hangs."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from shepherd.types import ClientId


class Waiting:
    """The sites of an attempt: who has answered, and when each gave its last sign."""

    def __init__(self, clients: Iterable[ClientId], clock: Callable[[], float], patience: float) -> None:
        self.clock, self.patience = clock, patience
        self._last = dict.fromkeys(sorted(clients), clock())
        self._settled: dict[ClientId, bool] = {}

    @property
    def settled(self) -> bool:
        """Whether nothing is waited for any more."""
        return all(client in self._settled or self.hangs(client) for client in self._last)

    @property
    def outstanding(self) -> list[ClientId]:
        """The clients without any answer, sorted."""
        return [client for client in self._last if client not in self._settled]

    def awaits(self, client: ClientId) -> bool:
        """Whether an answer of the client can still count."""
        return not self._settled.get(client, False)

    def is_settled(self, client: ClientId) -> bool:
        """Whether the client has given an answer, usable or not."""
        return client in self._settled

    def settle(self, client: ClientId, *, final: bool) -> None:
        """An answer came. One that was rejected is not final: a usable one may follow."""
        self._settled[client] = final

    def sign(self, client: ClientId) -> None:
        """A step of the client."""
        self._last[client] = self.clock()

    def hangs(self, client: ClientId) -> bool:
        """Whether the client has been silent for the patience."""
        return self.clock() - self._last[client] >= self.patience
