"""Memory of an engine's process after a large message: what is no longer needed goes back to the system.

    tidier.begin()                # once all is loaded
    tidier.note(len(data))        # at the end of a message, on its way in or out
    tidier.tidy()                 # each second

The engine's task of a sent message refers to itself by way of its future, so the message stays until Python looks for
such circles, which it seldom does; and the C library keeps freed memory in an arena for each thread. Without this, an
engine that has to do with 10 MB messages holds some hundreds of MiB when nothing is on its way.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress

LARGE = 2**16
"""Bytes of a message after which it is worth a look."""


def trim() -> None:
    """Give freed memory back to the system, where the C library can."""
    with suppress(OSError, AttributeError):  # musl has no such function
        ctypes.CDLL(None).malloc_trim(0)


class Tidier:
    """Tidies at most once for all messages since the last time."""

    def __init__(self, collect: Callable[[], object] = gc.collect, trim: Callable[[], None] = trim) -> None:
        self._collect, self._trim = collect, trim
        self._due = False

    def begin(self) -> None:
        """Leave out what is there by now: a look then takes a few milliseconds."""
        self._collect()
        gc.freeze()

    def note(self, size: int) -> None:
        """Count a message of `size` bytes that has ended."""
        self._due = self._due or size >= LARGE

    def tidy(self) -> None:
        """Free what large messages have left."""
        if self._due:
            self._due = False  # before the look: a message that ends meanwhile has another one
            self._collect()
            self._trim()
