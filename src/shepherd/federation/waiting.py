"""Who is waited for in an attempt, and whether a site that says nothing hangs."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from shepherd.types import ClientFailure, ClientId


class Waiting:
    """The sites of an attempt: who has answered, and when each gave its last sign. left: whether one takes no part any
    more."""

    def __init__(
        self,
        clients: Iterable[ClientId],
        clock: Callable[[], float],
        patience: float,
        left: Callable[[ClientId], bool] = lambda client: False,
    ) -> None:
        self.clock, self.patience, self.left = clock, patience, left
        self._last = dict.fromkeys(sorted(clients), clock())
        self._final: set[ClientId] = set()
        self._rejected: dict[ClientId, ClientFailure] = {}

    @property
    def settled(self) -> bool:
        """Whether nothing is waited for any more."""
        return all(c in self._final or c in self._rejected or self.hangs(c) or self.left(c) for c in self._last)

    @property
    def outstanding(self) -> list[ClientId]:
        """The clients without any answer, sorted."""
        return [client for client in self._last if client not in self._final | self._rejected.keys()]

    @property
    def rejected(self) -> list[ClientFailure]:
        """The first rejected answer of each client that has given no other, sorted."""
        return [failure for client, failure in sorted(self._rejected.items()) if client not in self._final]

    def awaits(self, client: ClientId) -> bool:
        """Whether an answer of the client can still count."""
        return client not in self._final

    def settle(self, client: ClientId) -> None:
        """An answer came after which no other counts."""
        self._final.add(client)

    def reject(self, client: ClientId, failure: ClientFailure) -> None:
        """An answer came that cannot be used. It is waited for no longer, and another one still counts."""
        self._rejected.setdefault(client, failure)

    def sign(self, client: ClientId) -> None:
        """A step of the client."""
        self._last[client] = self.clock()

    def hangs(self, client: ClientId) -> bool:
        """Whether the client has been silent for the patience."""
        return self.clock() - self._last[client] >= self.patience
