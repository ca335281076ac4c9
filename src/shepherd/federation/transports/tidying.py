"""Memory of an engine's process after a large message: what nobody needs goes back to the system.

    tidier.begin()                # once all is loaded
    tidier.note(len(data))        # at the end of a message, on its way in or out
    tidier.tidy()                 # each second

NVFlare's task of a sent message is part of a reference cycle, so the message stays until a full garbage collection,
which is rare; and the C library keeps freed memory in an arena for each thread. Without this, an engine that handles
10 MB messages holds some hundreds of MiB when nothing is on its way.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress

LARGE = 2**16
"""Size in bytes from which the end of a message leads to a garbage collection."""


def trim() -> None:
    """Give freed memory back to the system, where the C library can."""
    with suppress(OSError, AttributeError):  # musl has no such function
        ctypes.CDLL(None).malloc_trim(0)


class Tidier:
    """Frees messages each second in which one has ended, and gives memory back in the first second without one."""

    def __init__(self, collect: Callable[[], object] = gc.collect, trim: Callable[[], None] = trim) -> None:
        self._collect, self._trim = collect, trim
        self._ended = self._freed = False

    def begin(self) -> None:
        """Exempt the objects that exist by now from later collections, which then take a few milliseconds."""
        self._collect()
        gc.freeze()

    def note(self, size: int) -> None:
        """Count a message of `size` bytes that has ended."""
        self._ended = self._ended or size >= LARGE

    def tidy(self) -> None:
        """Collect what large messages have left, or give it back to the system. Called each second."""
        if self._ended:
            self._ended, self._freed = False, True  # first: a message that ends meanwhile leads to another one
            self._collect()
        elif self._freed:  # not before: the next message would have to ask for the same pages again
            self._freed = False
            self._trim()
