"""Availability traces: the rounds in which each client is available, read from a file.

    {"phone-1": [[1, 4], [9, null]], "*": [[1, null]]}       client,from,to
                                                             phone-1,1,4
                                                             phone-1,9,
                                                             *,1,

Rounds count from 1, intervals include both ends, and an interval without an end is open. "*" stands for all clients
without an entry. A client with an empty list is never available.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shepherd.errors import UsageError, did_you_mean
from shepherd.types import ClientId

OTHERS = "*"
HEADER = ["client", "from", "to"]
LARGEST = 50_000_000  # bytes of a trace


@dataclass(frozen=True)
class Trace:
    """Availability by client, {client: ((first round, last round), …)}; trace(client, round) is True or False."""

    clients: Mapping[ClientId, tuple[tuple[int, float], ...]]

    def __call__(self, client: ClientId, round_number: int) -> bool:
        """Whether the client is available in round `round_number` (from 1)."""
        intervals = self.clients.get(client, self.clients.get(OTHERS, ()))
        return any(first <= round_number <= last for first, last in intervals)


def read_trace(path: str) -> Trace:
    """Read a trace: CSV if the name ends in .csv, else JSON. Raises UsageError with the file and the position."""
    file = Path(path)
    try:
        if file.stat().st_size > LARGEST:
            raise UsageError(f"{file} is larger than {LARGEST // 1_000_000} MB", hint="join neighbouring intervals")
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = did_you_mean(file.name, [p.name for p in file.parent.glob("*")] if file.parent.is_dir() else [])
        raise UsageError(f"availability trace not found: {file}.{near}", hint="selection.trace is a path") from None
    except UnicodeDecodeError:
        raise UsageError(f"{file} is not UTF-8 text", hint="save it as UTF-8") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}", hint="selection.trace is a file") from None
    rows = _csv_rows(text, file) if file.suffix.lower() == ".csv" else _json_rows(text, file)
    clients: dict[ClientId, list[tuple[int, float]]] = {}
    for where, client, interval in rows:
        intervals = clients.setdefault(client, [])
        if interval is None:
            continue
        first, last = interval
        if type(first) is not int or not (last is None or type(last) is int):
            raise _wrong(where, f"rounds are whole numbers, got {first!r} to {last!r}")
        if first < 1 or (last is not None and last < first):
            raise _wrong(
                where, f"an interval goes from a round ≥ 1 to one that is not before it, got {first} to {last}"
            )
        intervals.append((first, math.inf if last is None else last))
    if not clients:
        raise UsageError(f"{file} names no client", hint=_HOW)
    return Trace({client: tuple(intervals) for client, intervals in clients.items()})


_HOW = 'write {"client": [[1, 4], [9, null]]} as JSON, or the columns client,from,to as CSV'


def _json_rows(text: str, file: Path) -> Iterator[tuple[str, ClientId, Any]]:
    """(place, client, [first, last] or None for an empty list) of a JSON trace."""
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, file))
    except (json.JSONDecodeError, RecursionError) as error:
        where = f", line {error.lineno} column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UsageError(f"{file}{where} is not valid JSON: {getattr(error, 'msg', error)}", hint=_HOW) from None
    if not isinstance(value, dict):
        raise UsageError(f"{file} holds {_kind(value)}, not a table of clients", hint=_HOW)
    for client, intervals in value.items():
        where = f"{file}, client {client!r}"
        if not isinstance(intervals, list):
            raise _wrong(where, f"expected a list of [from, to], got {_kind(intervals)}")
        if not intervals:
            yield where, client, None
        for number, interval in enumerate(intervals, 1):
            if not isinstance(interval, list) or len(interval) != 2:
                raise _wrong(f"{where}, interval {number}", f"expected [from, to], got {json.dumps(interval)[:60]}")
            yield f"{where}, interval {number}", client, interval


def _csv_rows(text: str, file: Path) -> Iterator[tuple[str, ClientId, Any]]:
    """(place, client, [first, last]) of a CSV trace."""
    reader = csv.reader(io.StringIO(text, newline=""))
    header = [name.strip() for name in next(reader, [])]
    if header != HEADER:
        raise UsageError(
            f"{file}, line 1: the columns are {', '.join(HEADER)}, got {', '.join(header) or 'nothing'}", hint=_HOW
        )
    for row in reader:
        if not row:
            continue
        where = f"{file}, line {reader.line_num}"
        if len(row) != 3:
            raise _wrong(where, f"expected 3 columns, got {len(row)}")
        first, last = (_whole(cell) for cell in row[1:])
        yield where, row[0], [first, last]


def _whole(cell: str) -> int | str | None:
    """The integer in a cell, None for an empty cell, otherwise its text."""
    cell = cell.strip()
    return (int(cell) if cell.isascii() and cell.isdigit() and len(cell) < 10 else cell) if cell else None


def _unique(pairs: list[tuple[str, Any]], file: Path) -> dict[str, Any]:
    twice = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
    if twice:
        raise UsageError(f"{file} names the client {twice[0]!r} twice", hint="join its lists")
    return dict(pairs)


def _kind(value: Any) -> str:
    kinds = {dict: "a table", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")


def _wrong(where: str, what: str) -> UsageError:
    return UsageError(f"{where}: {what}", hint=_HOW)
