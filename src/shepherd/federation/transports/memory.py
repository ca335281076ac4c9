"""Both ends of a federation in one process, on a virtual clock, with faults on order. For tests and rehearsals.

    transport = MemoryTransport({"a": start_a, "b": start_b})     # start_a() makes the site's process: bytes -> bytes
    transport.hop = lambda hop: [] if unlucky() else [Arrival(0.5, hop.data)]

Each message makes a hop, down to a site or up from it. `hop` decides what arrives of it and when: nothing, later,
twice, something else. What is on its way when a question ends arrives in the next one, or never.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from shepherd.federation.transport import Leases, Reply, Seen
from shepherd.types import ClientId

BEAT = 1.0
"""Seconds between the signs of a site, and between two looks at whether it is enough."""


class Crash(BaseException):
    """The process of a site ends: raised by what a test lets the site do. No site catches it."""


class Process(Protocol):
    """A site's process, as `federation.site.Site` is one."""

    session: str

    def handle(self, data: bytes, report: Callable[[bytes], None]) -> bytes | None:
        """The answer to a message."""


class Hop(NamedTuple):
    """A message on its way. number: of all hops, from 0; earlier: what went the same way before."""

    client: ClientId
    way: Literal["down", "up"]
    data: bytes
    now: float
    number: int
    earlier: Sequence[bytes]


class Arrival(NamedTuple):
    """What arrives of a hop, some seconds later."""

    seconds: float
    data: bytes


@dataclass
class Clock:
    """Seconds that pass when the transport lets them."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class MemoryTransport:
    """The coordinator's side of a federation whose sites are objects. `starts[client]()` is the site's new process."""

    starts: Mapping[ClientId, Callable[[], Process]]
    hop: Callable[[Hop], Sequence[Arrival]] = lambda hop: [Arrival(0.0, hop.data)]
    gone: float = 5.0
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.leases = Leases(self.gone)
        self.running: dict[ClientId, Process] = {}
        self.expelled: set[ClientId] = set()
        self._queue: list[tuple[float, int, ClientId, str, bytes]] = []
        self._sent: dict[tuple[ClientId, str], list[bytes]] = {}
        self._hops = self._arrivals = 0
        for client in sorted(self.starts):
            self.start(client)

    def start(self, client: ClientId, replaces: str = "") -> None:
        """Start a site's process. One that names the session it replaces does not wait for the lease."""
        if client not in self.expelled:
            self.running[client] = process = self.starts[client]()
            self.leases.sign(client, process.session, self.clock(), replaces)

    def stop(self, client: ClientId) -> None:
        """End a site's process; what it was at work on is lost."""
        self.running.pop(client, None)

    def restart(self, client: ClientId) -> None:
        """End a site's process and start another on the same folder."""
        former = self.running.get(client)
        self.stop(client)
        self.start(client, former.session if former is not None else "")

    # The protocol

    def present(self) -> Mapping[ClientId, Seen]:
        """The sites with a sign of life within `gone` seconds."""
        self._beat()
        return self.leases.present(self.clock())

    def ask(
        self,
        messages: Mapping[ClientId, bytes],
        deadline: float,
        enough: Callable[[], bool],
        limit: int,
        observe: Callable[[ClientId, bytes], None],
    ) -> Iterator[Reply]:
        """Send, and yield what comes up in the order of arrival. An answer above the limit comes as its first bytes."""
        begin = self.clock()
        for client, data in sorted(messages.items()):
            self._send(client, "down", data)
        while not enough():
            next_look = min(self.clock() + BEAT, begin + deadline)
            if self._queue and self._queue[0][0] <= next_look:
                time, _, client, way, data = heapq.heappop(self._queue)
                self.clock.now = max(self.clock(), time)
                if way == "down":
                    self._deliver(client, data)
                elif way == "progress":
                    observe(client, data)
                else:
                    yield Reply(client, data[: limit + 1], self.clock() - begin)
                continue
            self.clock.now = next_look
            self._beat()
            if self.clock() >= begin + deadline:
                return

    def tell(self, client: ClientId, message: bytes) -> None:
        """Send a message whose answer nobody waits for."""
        self._send(client, "down", message)

    def expel(self, client: ClientId) -> None:
        """Refuse a site from now on."""
        self.expelled.add(client)
        self.stop(client)
        self.leases.end(client)

    def close(self) -> None:
        """End all processes."""
        self.running.clear()

    # The wire

    def send_up(self, client: ClientId, data: bytes) -> None:
        """Send a message of a site that answers no question."""
        self._send(client, "up", data)

    def _beat(self) -> None:
        for client, process in self.running.items():
            self.leases.sign(client, process.session, self.clock())

    def _send(self, client: ClientId, way: Literal["down", "up"], data: bytes) -> None:
        earlier = self._sent.setdefault((client, way), [])
        arrivals = self.hop(Hop(client, way, data, self.clock(), self._hops, tuple(earlier)))
        self._hops += 1
        earlier.append(data)
        for arrival in arrivals:
            self._push(arrival.seconds, client, way, arrival.data)

    def _push(self, seconds: float, client: ClientId, way: str, data: bytes) -> None:
        self._arrivals += 1  # equal times arrive in the order in which they were sent
        heapq.heappush(self._queue, (self.clock() + seconds, self._arrivals, client, way, data))

    def _deliver(self, client: ClientId, data: bytes) -> None:
        process = self.running.get(client)
        if process is None or client in self.expelled:
            return
        if not self.leases.sign(client, process.session, self.clock()):
            self._push(BEAT, client, "down", data)  # until the process has the lease
            return
        try:
            answer = process.handle(data, lambda progress: self._push(0.0, client, "progress", progress))
        except Crash:
            self.stop(client)
            return
        if answer is not None:
            self._send(client, "up", answer)
