"""What arrives at the coordinator, read, and whether it belongs to the question that is open.

(run, round, attempt, client) names an answer; its session must be that of the process that holds the site's lease.
Everything else is ignored, with a line in the journal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from shepherd.clients.progress import Observe, State, StepReport, ignore
from shepherd.clients.progress import Progress as Steps
from shepherd.federation.cards import NAME
from shepherd.federation.messages import Bye, Message, Progress, read
from shepherd.federation.states import Ledger
from shepherd.federation.transport import Transport
from shepherd.types import ClientId
from shepherd.updates.layout import WireError

SMALL = 2**20
"""Bytes of an answer without tensors."""


@dataclass(frozen=True)
class Wait:
    """How long answers are waited for: `deadline` seconds, or until `over()` (None: until each site has given one).

    limit: bytes of an answer. sign: called at each step of a site.
    """

    deadline: float
    limit: int = SMALL
    over: Callable[[], bool] | None = None
    sign: Callable[[ClientId], None] = lambda client: None


class Traffic:
    """The bytes of an attempt by site, down and up, and the seconds until the first answer of each."""

    def __init__(self, messages: Mapping[ClientId, bytes]) -> None:
        self.down = {client: len(data) for client, data in sorted(messages.items())}
        self.up: dict[ClientId, int] = {}
        self.seconds: dict[ClientId, float] = {}

    def arrived(self, client: ClientId, data: bytes | None, seconds: float | None = None) -> None:
        """Something came from a site of the attempt: an answer after some seconds, or progress."""
        if data is None or client not in self.down:
            return
        self.up[client] = self.up.get(client, 0) + len(data)
        if seconds is not None:
            self.seconds.setdefault(client, seconds)


class Inbox:
    """The replies of a transport in a run."""

    def __init__(self, run: str, transport: Transport, ledger: Ledger) -> None:
        self.run, self.transport, self.ledger = run, transport, ledger
        self.holders: dict[ClientId, str] = {}
        """The session that holds, or held last, the lease of each site."""

    def present(self) -> set[ClientId]:
        """The sites that are connected and have the name of a site; those that came and went since the last call have
        a line in the journal."""
        seen = {c: sign for c, sign in self.transport.present().items() if re.fullmatch(NAME, c)}
        self.holders |= {client: sign.session for client, sign in seen.items()}
        for client in sorted(seen.keys() ^ self.ledger.present):
            self.ledger.connection(client, client in seen)
        return set(seen)

    def answers(
        self,
        messages: Mapping[ClientId, bytes],
        attempt: int,
        wait: Wait,
        observe: Observe = ignore,
    ) -> Iterator[tuple[ClientId, Message | WireError | None, float]]:
        """The answers to an attempt, read: a WireError for one that cannot be, None for a site that is gone.

        When the wait is over, the bytes of the attempt and its seconds are a line of the journal.
        """
        answered: set[ClientId] = set()
        traffic = Traffic(messages)

        def enough() -> bool:
            self.present()  # so that no process that held a lease for a moment is missed
            return wait.over() if wait.over is not None else answered >= messages.keys()

        def progress(client: ClientId, data: bytes) -> None:
            traffic.arrived(client, data)
            try:
                message = read(data, SMALL)
            except WireError as error:
                self.ledger.ignored(client, error.code)
                return
            if isinstance(message, Progress) and self._belongs(client, message, messages, attempt):
                wait.sign(client)
                observe(_steps(client, message))

        for client, data, seconds in self.transport.ask(messages, wait.deadline, enough, wait.limit, progress):
            if client not in messages:
                self.ledger.ignored(client, "uninvited")
                continue
            traffic.arrived(client, data, seconds)
            message: Message | WireError | None = None
            if data is not None:
                try:
                    message = read(data, wait.limit)
                except WireError as error:
                    message = error
                if isinstance(message, Message) and not self._belongs(client, message, messages, attempt):
                    continue
            answered.add(client)
            yield client, message, seconds
        self.ledger.exchanged(attempt, traffic.down, traffic.up, traffic.seconds)

    def _belongs(self, client: ClientId, message: Message, messages: Mapping[ClientId, bytes], attempt: int) -> bool:
        """Whether a message belongs to this attempt and comes from the process that holds the site's lease."""
        self.present()
        if isinstance(message, Bye):
            held = message.run == self.run and message.session == self.holders.get(client)
            if held and self.ledger.of(client).state not in ("", "left", "removed"):
                self.ledger.site(client, "left")
            return False
        reasons = {
            "uninvited": client not in messages,
            "other-run": message.run != self.run,
            "stale": message.attempt != attempt,
            "lease": getattr(message, "session", "") != self.holders.get(client),
        }
        reason = next((reason for reason, holds in reasons.items() if holds), "")
        if reason:
            self.ledger.ignored(client, reason, round=message.round, attempt=message.attempt)
        return not reason


def _steps(client: ClientId, message: Progress) -> StepReport:
    loss = math.nan if message.loss is None else float(message.loss)
    return {
        client: Steps(
            cast("State", message.state), message.step, message.steps, loss, message.targets, message.tokens,
            float(message.seconds),
        )
    }  # fmt: skip
