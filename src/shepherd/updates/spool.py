"""Storage of a round's updates until aggregation: in memory up to a limit, the rest in a temporary file.

    with plan.spool() as spool:
        update = spool.keep(update)             # its delta is read tensor by tensor, from memory or the file

Aggregation starts after the last reply, on which weights, deadlines and over-selection depend (docs/decisions/0010).
The file holds the admitted updates of this process and this round alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from shepherd.types import ClientUpdate, Tensors
from shepherd.updates.tensors import Laid, Place, to_raw


class Scratch(Protocol):
    """A temporary file of one process, deleted on close. Methods raise a ShepherdError when the disk fails."""

    def append(self, data: memoryview) -> None:
        """Write `data` at the end of the file."""

    def read(self, begin: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `begin` on."""

    def close(self) -> None:
        """Close and delete the file."""


class Spool:
    """The store of the updates of one round: `limit` bytes in memory (None: all of them), the rest in a file.

    open_file creates the file when the first update needs it. Results do not depend on the limit.
    """

    def __init__(self, limit: int | None = None, open_file: Callable[[], Scratch] | None = None) -> None:
        assert limit is None or open_file is not None
        self.limit, self.open_file = limit, open_file
        self.held = self.laid = 0  # bytes
        self._file: Scratch | None = None
        self._layouts: list[dict[str, Place]] = []

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def keep(self, update: ClientUpdate) -> ClientUpdate:
        """The same update, its delta in the file if the memory limit is reached. `private` stays in memory."""
        size = update.nbytes
        if self.limit is None or self.held + size <= self.limit:
            self.held += size
            return update
        return replace(update, delta=self._lay(update.delta))

    def _lay(self, delta: Tensors) -> Laid:
        if self._file is None:
            assert self.open_file is not None
            self._file = self.open_file()
        begin, layout = self.laid, {}
        for name, array in delta.items():
            layout[name] = Place(self.laid - begin, array.shape, array.dtype)
            self._file.append(to_raw(array))
            self.laid += array.nbytes
        # Names, shapes and offsets are almost always the same for all clients, and are stored once.
        same = next((known for known in self._layouts if known == layout), None)
        if same is None:
            self._layouts.append(layout)
        return Laid(self._file.read, begin, same or layout)
