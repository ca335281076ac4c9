"""Where a round's updates lie until it is over: in memory up to a bound, what is beyond in a file.

    with plan.spool() as spool:
        update = spool.keep(update)             # its delta is read tensor by tensor, wherever it lies

A mean cannot begin before the last answer is there: weights, deadlines and over-selection depend on it (docs/decisions/
0010). The file holds what the gate admitted, for this process and this round alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from shepherd.types import ClientUpdate, Tensors
from shepherd.updates.tensors import Laid, Place, to_raw


class Scratch(Protocol):
    """A file for one process, gone when it is closed. Raises a ShepherdError where the disk fails."""

    def append(self, data: memoryview) -> None: ...

    def read(self, begin: int, into: memoryview) -> None: ...

    def close(self) -> None: ...


class Spool:
    """Keeps the updates of one round: `limit` bytes in memory (None: all of them), the others in a file.

    open_file makes the file when the first update needs it. Numbers do not depend on the limit.
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
        """The same update, its delta laid down where memory is used up. What the client keeps stays where it is."""
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
        # Names, shapes and offsets are as good as the same for all clients: hundreds of copies would add up.
        same = next((known for known in self._layouts if known == layout), None)
        if same is None:
            self._layouts.append(layout)
        return Laid(self._file.read, begin, same or layout)
