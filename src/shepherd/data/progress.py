"""Progress lines of long readings, so that silence is not mistaken for a hang."""

from __future__ import annotations

import time
from collections.abc import Callable

Emit = Callable[[str], None]
"""Receives each line."""
LARGE = 5_000_000
"""Bytes or characters from which reading and tokenising are announced in advance."""


class LoopProgress:
    """Progress of a loop over rows: a line after two seconds, each further one after half as much time again.

    Short loops emit nothing, long ones a few lines. Without `emit` all are silent.
    """

    def __init__(self, emit: Emit | None, task: str, rows: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.emit, self.task, self.rows, self.clock = emit, task, rows, clock
        self.started, self.next = clock(), 2.0

    def at(self, row: int) -> None:
        if self.emit is None:
            return
        elapsed = self.clock() - self.started
        if elapsed >= self.next:
            self.next = 1.5 * elapsed
            self.emit(f"{self.task}: {row:,} of {self.rows:,} rows")
