"""JSON lines that survive a power cut: rounds.jsonl and, with a checksum in each line, journal.jsonl.

A journal line ends in `"crc": "…"`, the CRC-32 of the line without that key: any JSON reader can read it, and a
flipped bit is detected. A line is on the medium when `append` returns; a failed append leaves no trace.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from shepherd.store.disk import Disk, write_whole

START = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
"""The `mark` of a file without lines."""

_SUFFIX = len('"crc": "00000000"}')


@dataclass(frozen=True)
class Journal:
    """A journal: its rows without checksums, its damaged lines as (number from 1, reason), and the bytes of an
    unfinished last line."""

    rows: tuple[Mapping[str, Any], ...] = ()
    damaged: tuple[tuple[int, str], ...] = ()
    torn: int = 0


def line_of(row: Any) -> bytes:
    """One line of JSON. Raises ValueError for numbers that are not finite."""
    return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def journal_line(row: Mapping[str, Any]) -> bytes:
    text = line_of(row).removesuffix(b"}\n")
    return text + (b", " if row else b"") + b'"crc": "%08x"}\n' % zlib.crc32(text + b"}")


def append(disk: Disk, file: Path, line: bytes) -> None:
    """Append a line durably. After a failure the file is truncated to its former lines."""
    new = not file.exists()
    end = 0 if new else _end(file)
    if not new and end != file.stat().st_size:
        disk.cut(file, end)  # an earlier append failed, and so did its truncation
    try:
        disk.append(file, line)
        disk.sync(file)
        if new:
            disk.sync_folder(file.parent)
    except BaseException:
        with suppress(OSError):
            disk.cut(file, end)
        raise


def read_journal(file: Path) -> Journal:
    """Read a journal without changing it; a missing one is empty."""
    return _read(file)[0]


def mend_journal(disk: Disk, file: Path) -> Journal:
    """Read a journal and truncate an unfinished last line, so that the next append begins a line."""
    journal, size = _read(file)
    if journal.torn:
        disk.cut(file, size)
        disk.sync(file)
    return journal


def mark(file: Path) -> dict[str, Any]:
    """The extent of a file of lines: {"bytes", "sha256"} of its contents."""
    return Growing(file).mark()


class Growing:
    """A file that only grows at its end; repeated calls of `mark` read every byte once.

    A truncated file needs a new `Growing`.
    """

    def __init__(self, file: Path) -> None:
        self.file, self._bytes, self._sha256 = file, 0, hashlib.sha256()

    def mark(self) -> dict[str, Any]:
        if self.file.exists():
            with open(self.file, "rb") as stream:
                stream.seek(self._bytes)
                added = stream.read()
            self._bytes += len(added)
            self._sha256.update(added)
        return {"bytes": self._bytes, "sha256": self._sha256.hexdigest()}


def cut_to(disk: Disk, file: Path, there: Mapping[str, Any]) -> str:
    """Truncate the file to `there`, one of its marks. Returns what is wrong with the rest, or ""."""
    data = file.read_bytes() if file.exists() else b""
    size = there["bytes"]
    if len(data) > size:
        write_whole(disk, file, data[:size])
    if len(data) < size:
        return f"{file.name} has lost its last {size - len(data)} bytes"
    if hashlib.sha256(data[:size]).hexdigest() != there["sha256"]:
        return f"{file.name} was changed after it was written"
    return ""


def _read(file: Path) -> tuple[Journal, int]:
    """The journal, and the size of the file without its torn end."""
    data = file.read_bytes() if file.exists() else b""
    # Not splitlines(): JSON texts may hold U+2028 and its kin unescaped.
    *lines, rest = data.split(b"\n")
    rows, damaged = [], []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_checked(line))
        except ValueError as error:
            damaged.append((number, str(error)))
    if not rest and damaged and damaged[-1][0] == len(lines):
        # Only the last append can be torn, and a sector of zeros may precede its newline.
        damaged.pop()
        rest = lines[-1] + b"\n"
    return Journal(tuple(rows), tuple(damaged), len(rest)), len(data) - len(rest)


def _checked(line: bytes) -> Mapping[str, Any]:
    text, suffix = line[:-_SUFFIX], line[-_SUFFIX:]
    text = (text.removesuffix(b", ") if text != b"{" else text) + b"}"
    if not suffix.startswith(b'"crc": "'):
        raise ValueError("has no checksum")
    if suffix != b'"crc": "%08x"}' % zlib.crc32(text):
        raise ValueError("does not match its checksum")
    return json.loads(text)


def _end(file: Path) -> int:
    """The end of the last finished line. One with a zero byte, which no JSON holds, was torn by a power cut."""
    with open(file, "rb") as stream:
        end = _after_newline(stream, stream.seek(0, 2))
        start = _after_newline(stream, end - 1)
        stream.seek(start)
        return start if b"\0" in stream.read(end - start) else end


def _after_newline(stream: BinaryIO, end: int) -> int:
    """The position after the last newline in the first `end` bytes; 0 without one."""
    while end > 0:
        start = max(0, end - 65536)
        stream.seek(start)
        found = stream.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
