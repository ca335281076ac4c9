"""How much one member of a federation may send: messages per second, and bytes that are on their way.

An answer is at most as large as the largest message of a run, so a member has no more than two of them on their way.
What is above either limit is dropped before it is read or collected, and costs no other member anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field

PER_SECOND, BURST = 50.0, 200.0
"""Messages of a member; a site at work sends about ten a second."""
STALE = 60.0
"""Seconds without a part after which a message does not count as one that is on its way."""


@dataclass
class _Member:
    left: float
    time: float
    streams: dict[str, tuple[int, int, float]] = field(default_factory=dict)
    """Of each message on its way its bytes, those that are still to come, and the time of its last part."""


class Guard:
    """The allowances of all members. largest: bytes of a message."""

    def __init__(self, largest: int) -> None:
        self.most = 2 * largest
        self._members: dict[str, _Member] = {}

    def admits(self, member: str, now: float) -> bool:
        """Whether another message may come."""
        known = self._member(member, now)
        known.left = min(BURST, known.left + PER_SECOND * (now - known.time))
        known.time = now
        if known.left < 1:
            return False
        known.left -= 1
        return True

    def collects(self, member: str, stream: str, size: int, part: int, now: float) -> bool:
        """Whether a part of `part` bytes of a message of `size` bytes in all may be collected.

        Parts arrive in any order, the last one too, so a message is no longer on its way when all bytes have come.
        """
        streams = self._member(member, now).streams
        for name in [name for name, (*_, last) in streams.items() if now - last > STALE]:
            del streams[name]
        others = sum(whole for name, (whole, *_) in streams.items() if name != stream)
        if others + size > self.most:
            return False
        left = streams.get(stream, (size, size, now))[1] - part
        if left > 0:
            streams[stream] = size, left, now
        else:
            streams.pop(stream, None)
        return True

    def _member(self, member: str, now: float) -> _Member:
        return self._members.setdefault(member, _Member(BURST, now))
