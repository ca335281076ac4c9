"""A path -> numbered rows. JSON, JSON lines, CSV and Parquet; every error says file, line and column.

A row's number is its line in JSON lines and its position, from 1, elsewhere. Text is UTF-8, with or without a byte
order mark; line ends may be LF, CRLF or CR.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shepherd.errors import DataError, did_you_mean, missing_extra

CSV_FIELD_LIMIT = 16 * 2**20
"""Most characters in one field of a CSV file. A quote that is never closed would read on to the end otherwise."""
PARQUET_BYTES = 2**28
"""What a Parquet file may unpack to, or fifty times its own size where that is more."""
SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")

Numbered = tuple[int, dict[str, Any]]


def find(source: str) -> Path:
    """The file or folder at `source`. Raises DataError with the nearest name in that folder."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    if folder != path.parent:
        raise DataError(f"data not found: {path} (there is no folder {path.parent})", hint=f"nearest folder: {folder}")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() or p.suffix.lower() in SUFFIXES)
    held = ", ".join(names[:8]) or "no data files"
    raise DataError(f"data not found: {path}.{did_you_mean(path.name, names)}", hint=f"{folder} holds: {held}")


def read_rows(path: Path) -> list[Numbered]:
    """Every row of one file as (number, fields). Raises DataError where it cannot be read or has no rows."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: cannot read {suffix or 'a file without a suffix'}", hint=f"use {', '.join(SUFFIXES)}")
    if path.exists() and not path.is_file():  # a pipe or a device would never end
        raise DataError(f"{path} is not a file")
    if suffix == ".parquet":
        rows = list(_parquet(path))
    elif suffix in (".csv", ".tsv"):
        rows = _csv(path, _text(path))
    else:
        rows = _json(path, _text(path))
    if not rows:
        raise DataError(f"{path} has no rows", hint="it is empty, or a header alone; fill it, or take it away")
    return rows


def shorten(text: str, width: int = 80) -> str:
    """`text` on one line, at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path} is UTF-16, not UTF-8", hint="save it as UTF-8")
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise DataError(
            f"{path}:{line}: a NUL byte: this is UTF-16 without a byte order mark, or no text", hint="save it as UTF-8"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        bad = data[error.start : error.start + 1].hex()
        raise DataError(f"{path}:{line}: not UTF-8 (byte 0x{bad})", hint="save it as UTF-8") from None
    return text if "\n" in text else text.replace("\r", "\n")


def _json(path: Path, text: str) -> list[Numbered]:
    """A list, {"data": [...]} or JSON lines, told apart by the text, not by the file's suffix."""
    if text.lstrip()[:1] == "[":
        return _objects(path, _whole(path, text))
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    try:
        document = _loads(path, text) if lines else {}
    except json.JSONDecodeError:  # several objects, or a broken one
        if lines[0][1].rstrip().endswith(("{", "[", ",")):  # laid out over several lines
            _whole(path, text)
    else:
        if isinstance(document, dict) and isinstance(document.get("data"), list):
            return _objects(path, document["data"])
        if len(lines) > 1:
            found = ", ".join(map(repr, document)) if isinstance(document, dict) else type(document).__name__
            raise DataError(f"{path}: one JSON object and no list of rows under 'data' (found {found})")
    return [(number, _object(path, number, _line(path, number, line))) for number, line in lines]


def _whole(path: Path, text: str) -> Any:
    try:
        return _loads(path, text)
    except json.JSONDecodeError as error:
        line = text.split("\n")[error.lineno - 1]
        raise _malformed(path, error.lineno, error, line) from None


def _line(path: Path, number: int, line: str) -> Any:
    try:
        return _loads(f"{path}:{number}", line)
    except json.JSONDecodeError as error:
        raise _malformed(path, number, error, line) from None


def _loads(where: Path | str, text: str) -> Any:
    """JSON's value. Besides malformed JSON, which is the caller's, there is JSON that Python does not read."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):  # Python keeps the last one, and says nothing
            raise _twice(str(where), [name for name, _ in pairs])
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise DataError(f"{where}: JSON that is nested too deeply") from None
    except ValueError as error:  # a whole number of thousands of digits
        raise DataError(f"{where}: JSON that cannot be read: {error}") from None


def _twice(where: str, names: list[str]) -> DataError:
    name = next(name for name in names if names.count(name) > 1)
    return DataError(
        f"{where}: {names.count(name)} fields of one row are called {name!r}, and only one of them can be meant",
        hint="give each a name of its own, or take out those that are not to be learned; "
        "--columns response=<your column> says which one is read",
    )


def _malformed(path: Path, line_number: int, error: json.JSONDecodeError, line: str) -> DataError:
    return DataError(
        f"{path}:{line_number}:{error.colno}: malformed JSON: {error.msg}\n  {shorten(line)}",
        hint="JSON lines hold one whole object on each line; quotes and line breaks inside a text are escaped",
    )


def _objects(path: Path, items: list[Any]) -> list[Numbered]:
    return [(number, _object(path, number, item)) for number, item in enumerate(items, 1)]


def _object(path: Path, number: int, item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        text = shorten(json.dumps(item, ensure_ascii=False))
        raise DataError(f"{path}:{number}: a row is an object with fields, this is {type(item).__name__}: {text}")
    return item


def _csv(path: Path, text: str) -> list[Numbered]:
    header = text.split("\n", 1)[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t|", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, begin = [], 1
    former = csv.field_size_limit(CSV_FIELD_LIMIT)
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        names = [name for name in reader.fieldnames if name]  # no field is read from a column without a name
        if len(set(names)) < len(names):
            raise _twice(f"{path}:1", names)
        begin = reader.line_num + 1
        for number, row in enumerate(reader, 1):
            if None in row:
                extra = shorten(delimiter.join(row[None]))
                raise DataError(
                    f"{path}:{reader.line_num}: row {number} has more fields than the header; left over: {extra}",
                    hint="texts that contain the delimiter must stand in double quotes",
                )
            rows.append((number, {name: value or "" for name, value in row.items()}))
            begin = reader.line_num + 1
    except csv.Error as error:
        if "field limit" in str(error):
            raise DataError(
                f"{path}:{reader.line_num}: a field is longer than {CSV_FIELD_LIMIT:,} characters",
                hint="look for a double quote that is opened and never closed",
            ) from None
        raise DataError(
            f"{path}:{begin}: malformed CSV in the row that begins here: {error}",
            hint="a double quote inside a quoted text is written twice, and one that opens a text is closed behind it",
        ) from None
    finally:
        csv.field_size_limit(former)
    return rows


def _parquet(path: Path) -> Iterator[Numbered]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("pyarrow", "parquet") from None
    try:
        most, size, number = max(PARQUET_BYTES, 50 * path.stat().st_size), 0, 0
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    number, size = number + 1, size + _length(row)
                    if size > most:
                        raise DataError(
                            f"{path}: {path.stat().st_size:,} bytes unpack to more than {most:,}",
                            hint="if the file is sound, split it or save it as JSON lines",
                        )
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {shorten(str(error))}") from None


def _length(value: Any) -> int:
    """Characters of the texts in a row. Not Arrow's own count: a text that all rows share is stored once."""
    if isinstance(value, dict):
        return sum(map(_length, value.values()))
    if isinstance(value, list):
        return sum(map(_length, value))
    return len(value) if isinstance(value, str | bytes) else 8
