"""Lines about a long reading, so that silence does not look like a hang."""

from __future__ import annotations

import time
from collections.abc import Callable

Tell = Callable[[str], None]
LARGE = 5_000_000
"""Bytes or characters of which reading or tokenising is announced before it begins."""


class Waiting:
    """How far a loop over rows has come: a line after two seconds, the next after half as much time again, and so on.

    Few rows give no line and many rows a few; `tell` is called with each, None never.
    """

    def __init__(self, tell: Tell | None, doing: str, rows: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.tell, self.doing, self.rows, self.clock = tell, doing, rows, clock
        self.begun, self.next = clock(), 2.0

    def at(self, row: int) -> None:
        if self.tell is None:
            return
        waited = self.clock() - self.begun
        if waited >= self.next:
            self.next = 1.5 * waited
            self.tell(f"{self.doing}: {row:,} of {self.rows:,} rows")
