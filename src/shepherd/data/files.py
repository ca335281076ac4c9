"""Files as numbered rows: JSON, JSON lines, CSV, TSV and Parquet. Errors name file, line and column.

A row's number is its line in JSON lines and its position, from 1, elsewhere. Text is UTF-8, with or without a byte
order mark, plain or as .gz, with LF, CRLF or CR as line ends. A JSON object may hold several named lists of rows
(`json_rows`); any other file holds one.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shepherd.data.json_rows import read_json
from shepherd.data.progress import LARGE, Emit
from shepherd.data.trees import Numbered, Tree, named_twice, shorten
from shepherd.errors import DataError, did_you_mean, missing_extra

CSV_FIELD_LIMIT = 16 * 2**20
"""Maximum characters in a field of a CSV file. Without it, an unclosed quote would extend to the end of the file."""
UNPACKED_BYTES = 2**28
"""Maximum unpacked size of a Parquet or .gz file, unless fifty times its size is more."""
TEXTS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
SUFFIXES = (*TEXTS, *(f"{suffix}.gz" for suffix in TEXTS), ".parquet")
ACCEPTED = f"{', '.join(TEXTS)}, each also as .gz, or .parquet"

_PANDAS = "python -c \"import pandas; pandas.{}('{}').to_json('{}.jsonl', orient='records', lines=True)\""
CONVERSIONS = {
    ".zst": "zstd -d '{}'",
    ".bz2": "bunzip2 -k '{}'",
    ".xz": "xz -dk '{}'",
    ".zip": "unzip '{}'",
    ".tgz": "tar xzf '{}'",
    ".tar": "tar xf '{}'",
    ".tar.gz": "tar xzf '{}'",
    ".gz": "gunzip -k '{}'",
    ".7z": "7z x '{}'",
    ".xlsx": _PANDAS.format("read_excel", "{}", "{stem}") + " (needs pandas and openpyxl)",
    ".xls": _PANDAS.format("read_excel", "{}", "{stem}") + " (needs pandas and xlrd)",
    ".ods": _PANDAS.format("read_excel", "{}", "{stem}") + " (needs pandas and odfpy)",
    ".feather": _PANDAS.format("read_feather", "{}", "{stem}") + " (needs pandas and pyarrow)",
    ".orc": _PANDAS.format("read_orc", "{}", "{stem}") + " (needs pandas and pyarrow)",
    ".arrow": "python -c \"from datasets import Dataset; Dataset.from_file('{}').to_json('{stem}.jsonl')\"",
    ".sqlite": "sqlite3 -json '{}' 'SELECT * FROM <table>' > '{stem}.json'",
    ".db": "sqlite3 -json '{}' 'SELECT * FROM <table>' > '{stem}.json'",
}
"""Suffix of a data file that is not supported -> the command that converts it."""
PICKLES = (".pkl", ".pickle")
_TEXT_LINES = (
    "python -c \"import json; [print(json.dumps({{'text': line.strip()}})) for line in open('{}')]\" > '{stem}.jsonl' "
    "makes a text of each line"
)


_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HUB = re.compile(r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)/datasets/|hf://datasets/)([\w.-]+/[\w.-]+)")


def find(source: str) -> Path:
    """The file or folder at `source`. Raises DataError with the nearest name in its folder."""
    if _ADDRESS.match(source):
        raise _address(source)
    path = Path(source).expanduser()
    if path.exists():
        return path
    if path.is_symlink():
        raise DataError(f"{path} is a link to {path.readlink()}, which does not exist")
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    if folder != path.parent:
        hint = (
            f"only {folder} exists of this path" if folder != Path() else "the path is relative to the current folder"
        )
        raise DataError(f"data not found: {path} (there is no folder {path.parent})", hint=hint)
    entries = (p for p in folder.iterdir() if not p.name.startswith("."))
    names = sorted(p.name for p in entries if p.is_dir() or suffix_of(p) in SUFFIXES)
    held = ", ".join(names[:8]) or "no data files"
    raise DataError(f"data not found: {path}.{did_you_mean(path.name, names)}", hint=f"{folder} holds: {held}")


def _address(source: str) -> DataError:
    """The error for a URL. Rows are read from files; only `hub:` sources are downloaded."""
    if found := _HUB.match(source):
        return DataError(f"{source} is an address, not a file", hint=f"a dataset of the hub: --data hub:{found[1]}")
    scheme, _, rest = source.partition("://")
    if scheme.lower() == "file":
        return DataError(f"{source} is an address, not a path", hint=f"give the path: --data {rest}")
    name = rest.partition("?")[0].rstrip("/").rpartition("/")[2] or "FILE"
    fetch = f"curl -L -o '{name}' '{source}'" if scheme.lower() in ("http", "https", "ftp") else "download it"
    return DataError(
        f"{source} is an address; rows are read from files, and nothing is downloaded automatically",
        hint=f"{fetch}, then --data {name}",
    )


def suffix_of(path: Path) -> str:
    """The suffix in lower case, with the one before .gz: ".jsonl.gz"."""
    parts = [part.lower() for part in path.suffixes[-2:]]
    return "".join(parts) if len(parts) == 2 and parts[1] == ".gz" else "".join(parts[-1:])


def stem_of(path: Path) -> str:
    """The name without `suffix_of`."""
    return path.name[: len(path.name) - len(suffix_of(path))] or path.name


def read(path: Path, emit: Emit | None = None) -> Tree:
    """The rows of one file, or its named lists of rows. Raises DataError if it cannot be read or has no rows.

    `emit` announces large files.
    """
    suffix = suffix_of(path)
    if suffix not in SUFFIXES:
        raise unreadable(path)
    if path.exists() and not path.is_file():  # a pipe or a device would never end
        raise DataError(f"{path} is not a file")
    if emit is not None and (size := path.stat().st_size) >= LARGE:
        emit(f"reading {path.name} ({size / 1e6:,.0f} MB)")
    if suffix == ".parquet":
        tree = Tree(rows=list(_parquet(path)))
    elif suffix.startswith((".csv", ".tsv")):
        tree = Tree(rows=_csv(path, _text(path)))
    else:
        tree = read_json(path, _text(path))
    if not any(tree.leaves()):
        raise DataError(f"{path} has no rows", hint="it is empty or has only a header; fill it, or remove it")
    return tree


def unreadable(path: Path) -> DataError:
    """The error for an unsupported file, with the command that converts it or the supported suffixes."""
    suffix = suffix_of(path)
    suffix = suffix if suffix in CONVERSIONS or not suffix.endswith(".gz") else ".gz"
    form = _TEXT_LINES if suffix == ".txt" else CONVERSIONS.get(suffix, "")
    hint = f"convert it: {form.format(path, stem=path.stem)}" if form else f"use {ACCEPTED}"
    if suffix in PICKLES:
        hint = "save it as JSON lines with the program that wrote it: reading a pickle executes its content"
    return DataError(f"{path}: cannot read {suffix or 'a file without a suffix'}", hint=hint)


def _text(path: Path) -> str:
    try:
        data = _unpacked(path) if path.suffix.lower() == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} cannot be unpacked: {error}",
            hint="it is damaged or truncated; download it again, or gunzip it first",
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path} is UTF-16, not UTF-8", hint="save it as UTF-8")
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise DataError(
            f"{path}:{line}: a NUL byte: this is UTF-16 without a byte order mark, or not text", hint="save it as UTF-8"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        bad = data[error.start : error.start + 1].hex()
        raise DataError(f"{path}:{line}: not UTF-8 (byte 0x{bad})", hint="save it as UTF-8") from None
    return text if "\n" in text else text.replace("\r", "\n")


def _unpacked(path: Path) -> bytes:
    limit = _limit(path)
    with gzip.open(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise _bomb(path, limit)
    return data


def _limit(path: Path) -> int:
    return max(UNPACKED_BYTES, 50 * path.stat().st_size)


def _bomb(path: Path, limit: int) -> DataError:
    return DataError(
        f"{path}: {path.stat().st_size:,} bytes unpack to more than {limit:,}",
        hint="if the file is valid, split it or save it as JSON lines",
    )


def _csv(path: Path, text: str) -> list[Numbered]:
    header = re.sub('"[^"]*"', "", text.split("\n", 1)[0])
    delimiter = "\t" if suffix_of(path).startswith(".tsv") else max(",;\t|", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, begin = [], 1
    former = csv.field_size_limit(CSV_FIELD_LIMIT)
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        names = [name for name in reader.fieldnames if name]  # no field is read from a column without a name
        if len(set(names)) < len(names):
            raise named_twice(f"{path}:1", names)
        begin = reader.line_num + 1
        for number, row in enumerate(reader, 1):
            if None in row:
                extra = shorten(delimiter.join(row[None]))
                raise DataError(
                    f"{path}:{reader.line_num}: row {number} has more fields than the header; left over: {extra}",
                    hint="texts that contain the delimiter must be in double quotes",
                )
            rows.append((number, {name: value or "" for name, value in row.items()}))
            begin = reader.line_num + 1
    except csv.Error as error:
        if "field limit" in str(error):
            raise DataError(
                f"{path}:{reader.line_num}: a field is longer than {CSV_FIELD_LIMIT:,} characters",
                hint="look for an unclosed double quote",
            ) from None
        raise DataError(
            f"{path}:{begin}: malformed CSV in the row that begins here: {error}",
            hint="write a double quote inside a quoted text twice, and close every quoted text",
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
        limit, size, number = _limit(path), 0, 0
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise named_twice(str(path), names)
            for batch in file.iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    number, size = number + 1, size + _length(row)
                    if size > limit:
                        raise _bomb(path, limit)
                    yield number, row
    except (
        pyarrow.ArrowException,
        OSError,
        ValueError,
        OverflowError,
    ) as error:  # ValueError: invalid text; OverflowError: invalid dates
        raise DataError(f"{path}: cannot be read as Parquet: {shorten(str(error))}") from None


def _length(value: Any) -> int:
    """Characters of the texts in a row. Arrow's size would count a text that all rows share once."""
    if isinstance(value, dict):
        return sum(map(_length, value.values()))
    if isinstance(value, list):
        return sum(map(_length, value))
    return len(value) if isinstance(value, str | bytes) else 8
