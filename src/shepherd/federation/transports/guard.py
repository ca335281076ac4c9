"""How much one member of a federation may send: messages per second, and messages and bytes that are on their way.

An answer is at most as large as the largest message of a run, so a member has no more than two of them on their way.
What is above a limit is dropped before it is read or collected, and costs no other member anything. A message counts
until our process has it, or the engine no longer holds it: what a member says of its end is not believed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

PER_SECOND, BURST = 50.0, 200.0
"""Messages of a member; a site at work sends about ten a second."""
OPEN = 16
"""Messages of a member on their way at a time: each holds a thread of the engine, which has 64 for all members."""
SETTLED = 1.0
"""Seconds after the last part until which a message that our process has not counts, though the engine does not hold
it: it may be about to."""
STALE = 30.0
"""Seconds without a part after which a message is dropped."""
Stream = int | str
Held = Callable[[Stream], bool]
"""Whether the engine holds a part of a message."""


@dataclass
class _Member:
    left: float
    time: float
    streams: dict[Stream, tuple[int, float]] = field(default_factory=dict)


class Guard:
    """The allowances of all members. largest: bytes of a message."""

    def __init__(self, largest: int) -> None:
        self.most = 2 * largest
        self._members: dict[str, _Member] = {}
        self._lock = threading.Lock()

    def admits(self, member: str, now: float, cost: float = 1.0) -> bool:
        """Whether another message may come. cost: for how many it counts."""
        with self._lock:
            return self._admits(member, now, cost)

    def collects(self, member: str, stream: Stream, size: int, now: float, held: Held, cost: float = 1.0) -> str:
        """What is against collecting a part of a message of `size` bytes in all."""
        with self._lock:
            streams = self._member(member, now).streams
            if stream not in streams:
                if not self._admits(member, now, cost):
                    return "there are too many"
                for name in [name for name, (_, last) in streams.items() if now - last > SETTLED and not held(name)]:
                    del streams[name]
                if len(streams) >= OPEN:
                    return "too many are on their way"
            if sum(size for name, (size, _) in streams.items() if name != stream) + size > self.most:
                return "too much is on its way"
            streams[stream] = size, now
            return ""

    def done(self, member: str, stream: Stream) -> None:
        """Count a message no more: our process has it."""
        with self._lock:
            if member in self._members:
                self._members[member].streams.pop(stream, None)

    def stale(self, now: float) -> list[tuple[str, Stream]]:
        """The messages, by member, whose parts no longer come; they count no more, and are to be dropped."""
        found = []
        with self._lock:
            for name, member in self._members.items():
                for stream in [stream for stream, (_, last) in member.streams.items() if now - last > STALE]:
                    del member.streams[stream]
                    found.append((name, stream))
        return found

    def _admits(self, name: str, now: float, cost: float) -> bool:
        member = self._member(name, now)
        member.left = min(BURST, member.left + PER_SECOND * max(0.0, now - member.time))
        member.time = max(member.time, now)
        if member.left < cost:
            return False
        member.left -= cost
        return True

    def _member(self, member: str, now: float) -> _Member:
        return self._members.setdefault(member, _Member(BURST, now))
