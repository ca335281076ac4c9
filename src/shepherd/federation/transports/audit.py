"""The log of connections, refusals and removals: a line of JSON each, in `audit.jsonl` of a kit.

The engine's own audit file stays empty, for it has only jobs.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

FILE = "audit.jsonl"
MOST_BYTES = 16 * 2**20
AGAIN = 60.0
"""Seconds in which one and the same refusal has one line."""


class Audit:
    """Writes events, and passes them on. Refusals that repeat are counted, not repeated."""

    def __init__(self, kit: Path, on_event: Callable[..., None]) -> None:
        self.path, self.on_event = kit / FILE, on_event
        self._repeated: dict[str, tuple[float, int]] = {}
        self._lock = threading.Lock()

    def __call__(self, kind: str, **facts: object) -> None:
        """Note an event."""
        with self._lock:
            if kind == "refused" and (again := self._again(json.dumps(facts, sort_keys=True, default=str))) is None:
                return
            if kind == "refused" and again:
                facts["times"] = again
            line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": kind, **facts}
            with suppress(OSError):  # a full disk ends no run
                if self.path.exists() and self.path.stat().st_size > MOST_BYTES:
                    self.path.replace(self.path.with_suffix(".jsonl.1"))
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line, default=str) + "\n")
        self.on_event(kind, **facts)

    def _again(self, what: str) -> int | None:
        """How often a refusal came since its last line; None: too soon for another one."""
        now = time.monotonic()
        last, times = self._repeated.get(what, (-AGAIN, 0))
        if now - last < AGAIN:
            self._repeated[what] = last, times + 1
            return None
        if len(self._repeated) > 1000:
            self._repeated.clear()
        self._repeated[what] = now, 0
        return times
