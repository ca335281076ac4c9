"""Rows that are in Python already: dicts, a data frame, a list for each client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from shepherd.data.builtins import RawRows
from shepherd.data.trees import kind_of
from shepherd.errors import DataError

NAME = "python:rows"
"""What stands in data.source for such rows."""


def python_rows(rows: Any, held_out: Any = None) -> RawRows:
    """Rows of a run from Python: an iterable of dicts (a list, a datasets.Dataset), a data frame, or {client: rows}.

    held_out: rows of the same kinds for the evaluation, or None. Rows of a client have its name as their source, and
    those in another field `source` are ignored, with a note. Raises DataError for anything else, with its place.
    """
    if isinstance(rows, Mapping):
        return _by_client(rows, held_out)
    read = _read(rows, "rows")
    return RawRows(NAME, read, held_out=None if held_out is None else _held_out(held_out))


def _by_client(clients: Mapping[Any, Any], held_out: Any) -> RawRows:
    names = [str(client).strip() for client in clients]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(
            f"two clients are called {twice[0]!r}, but for spaces or the type of the name",
            hint="give every client another name",
        )
    if names and all(map(kind_of, names)):
        raise DataError(
            f"the mapping names parts of a dataset and not clients: {', '.join(names)}",
            hint='give the rows of one part, rows["train"], and held_out=rows["test"]',
        )
    made, places, replaced = [], [], 0
    for client, rows in clients.items():
        read = _read(rows, str(client))
        replaced += sum("source" in row for _, row in read)
        made += [(row_id, {**row, "source": str(client)}) for row_id, row in read]
        places.append((str(client), len(read)))
    note = f"the field 'source' of {replaced} rows is ignored: the mapping names each row's client"
    return RawRows(
        NAME,
        made,
        notes=(note,) if replaced else (),
        held_out=None if held_out is None else _held_out(held_out),
        places=tuple(places),
    )


def _held_out(rows: Any) -> RawRows:
    """Held-out rows, with ids that no training row has."""
    if not isinstance(rows, Mapping):
        return RawRows(f"held-out {NAME}", _read(rows, "held-out"))
    read = python_rows(rows)
    return replace(read, rows=[(f"held-out/{row_id}", row) for row_id, row in read.rows])


def _read(rows: Any, name: str) -> Sequence[tuple[str, dict[str, Any]]]:
    """(id, fields) of each row. Raises DataError with the row's number for one that is not a dict."""
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):  # a data frame, without an import of its library
        rows = rows.to_dict("records")
    if isinstance(rows, str | bytes) or not isinstance(rows, Iterable):
        raise DataError(
            f"{name}: rows are an iterable of dicts, got {type(rows).__name__}",
            hint='[{"instruction": …, "response": …}, …], a data frame, or {client: rows}',
        )
    read = []
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(
                f"{name}: row {number} is {type(row).__name__}, expected a dict of fields",
                hint='a row is {"instruction": …, "response": …} or another of the formats in docs/data.md',
            )
        read.append((f"{name}:{number}", {str(key): _plain(value) for key, value in row.items()}))
    if not read:
        raise DataError(f"{name}: there are no rows", hint="give each client at least one")
    return read


def _plain(value: Any) -> Any:
    """An array, as a data frame has it in a column of lists, as a list; a scalar of numpy as one of Python."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
