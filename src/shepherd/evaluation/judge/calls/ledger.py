"""calls.jsonl: one line per call, appended and flushed before anything is computed from it.

    ledger = Ledger.opened(Path("runs/demo/judge/calls.jsonl"))
    ledger.found(key)                  # the call, or None
    ledger.append(call)

A command that was killed loses the calls in flight; the next one reads the lines and makes the calls that are missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shepherd.errors import DataError
from shepherd.evaluation.judge.calls.record import Call


def key_of(endpoint: str, model: str, messages: Any, decoding: Mapping[str, Any], repeat: int, order: str) -> str:
    """sha256 of everything that decides a call. messages: with the placeholder in place of the mark of quoting.

    order: distinguishes calls with equal prompts, those of two equal answers in both orders.
    """
    content = [endpoint, model, messages, dict(decoding), repeat, order]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


class Ledger:
    """The calls of a file, by key. torn: the file ended in an unfinished line, which is cut off by the next append."""

    def __init__(self, file: Path, calls: Mapping[str, Call], torn: str = "", whole: int = 0) -> None:
        self.file, self.torn = file, torn
        self._calls, self._whole, self._lock = dict(calls), whole, threading.Lock()

    @classmethod
    def opened(cls, file: Path) -> Ledger:
        """Read a file of calls, which need not exist. DataError: a malformed line that is not the last."""
        data = file.read_bytes() if file.exists() else b""
        *lines, rest = data.split(b"\n")
        calls: dict[str, Call] = {}
        for number, line in enumerate(lines, 1):
            try:
                call = Call.from_row(json.loads(line))
            except (ValueError, TypeError, AttributeError) as reason:
                raise DataError(
                    f"{file}, line {number}: not a recorded call: {reason}",
                    hint="restore the file from a copy, or delete the line: its call is then made again",
                ) from None
            if call.outcome != "failed":
                calls.pop(call.key, None)
                calls[call.key] = call
        return cls(file, calls, rest.decode(errors="replace"), len(data) - len(rest))

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[Call]:
        """The calls with a reply, in the order of their last lines."""
        return iter([*self._calls.values()])

    def found(self, key: str) -> Call | None:
        """The call with this key, None where there is none or where it failed."""
        return self._calls.get(key)

    def append(self, call: Call) -> None:
        """Write a call to the medium. Threads may call this at once."""
        line = (json.dumps(call.to_row(), ensure_ascii=False, allow_nan=False) + "\n").encode()
        with self._lock:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with open(self.file, "r+b" if self.file.exists() else "x+b") as stream:
                if self.torn:
                    stream.truncate(self._whole)
                    self.torn = ""
                stream.seek(0, os.SEEK_END)
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
            if call.outcome != "failed":
                self._calls.pop(call.key, None)
                self._calls[call.key] = call
