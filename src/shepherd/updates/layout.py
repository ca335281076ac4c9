"""The layout of every message: one safetensors file with an envelope of JSON, checked before any value is used.

A reader takes the header entry by entry: sizes, names, dtypes, shapes, offsets. What is not exactly as it should be is
a WireError with a code of REASONS and detail in our own words. No memory is taken for more than the message holds.

    8 bytes    length of the header, little endian
    header     {"__metadata__": {"format", "envelope", "sha256"}, "<tensor>": {"dtype", "shape", "data_offsets"}, …}
    values     end to end, in the order of their offsets

sha256 is over the envelope's text and the values: it finds damage, it proves no identity (that is the transport's).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "BOOL": 1}
"""Bytes of a value by dtype."""
_LARGEST = 2**40
"""Above all sizes: a shape whose sizes multiply to more has no array, whether or not one of them is 0."""

Kinds = Mapping[str, tuple[type, ...]]
"""Every key of a JSON object with the types that it may have, exactly: neither true nor "5" is an int."""


class WireError(ValueError):
    """An invalid message of the expected kind: a code of REASONS, and detail without text of the sender."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail


class Values(NamedTuple):
    """One tensor to write: its values as bytes (`narrow`), in C order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


class Entry(NamedTuple):
    """One tensor of a message: where its values begin and end, in bytes from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A header in order: the envelope's fields and text, its checksum, the tensors by name, where the values begin."""

    fields: Mapping[str, Any]
    envelope: str
    sha256: str
    entries: Mapping[str, Entry]
    start: int


def write_message(form: str, fields: Mapping[str, Any], tensors: Iterable[Values]) -> bytes:
    """A message of the format `form`; the tensors lie in the order given.

    Raises ValueError for a number in `fields` that is not finite: JSON has no such number.
    """
    text = json.dumps(fields, separators=(",", ":"), allow_nan=False)
    entries: dict[str, Any] = {}
    values, offset = [], 0
    for name, dtype, shape, data in tensors:
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        values.append(data)
        offset += len(data)
    metadata = {"format": form, "envelope": text, "sha256": checksum(text, *values)}
    header = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # values begin at a multiple of 8
    return b"".join([len(header).to_bytes(8, "little"), header, *values])


def read_header(data: bytes, limit: int, form: str, kinds: Kinds, dtypes: Collection[str]) -> Header:
    """The header of a message of the format `form`, checked in itself and against the length of `data`.

    No value is read. Raises WireError: "too-large" for a header of more than `limit` bytes, "fields" for an envelope
    that is not of these `kinds`, else "format" or "shape".
    """
    if type(data) is not bytes:
        raise WireError("format", "the message is not bytes")
    if len(data) < 8:
        raise WireError("format", f"{len(data)} bytes are no message")
    length = int.from_bytes(data[:8], "little")
    if length > limit:
        raise WireError("too-large", f"the header claims {length} bytes, the limit is {limit}")
    start = 8 + length
    if start > len(data):
        raise WireError("format", f"the header claims {length} bytes, the whole message has {len(data)}")
    document = json_object(data[8:start], "header")
    metadata = _metadata(document.pop("__metadata__", None), form)
    fields = check_fields(json_object(metadata["envelope"], "envelope"), kinds, "the envelope")
    entries = {name: read_entry(index, value, dtypes) for index, (name, value) in enumerate(document.items())}
    check_layout(entries, len(data) - start)
    return Header(fields, metadata["envelope"], metadata["sha256"], entries, start)


def check_damage(data: bytes, header: Header) -> None:
    """Raises WireError "damaged" when the checksum does not fit the envelope and the values."""
    with memoryview(data) as view:
        if checksum(header.envelope, view[header.start :]) != header.sha256:
            raise WireError("damaged", "the checksum does not fit the content")


def check_fields(value: Any, kinds: Kinds, what: str) -> dict[str, Any]:
    """A JSON object that has exactly these keys, of these types. Raises WireError "fields"."""
    if type(value) is not dict:
        raise WireError("fields", f"{what} is not a JSON object")
    if value.keys() != kinds.keys():
        missing = [name for name in kinds if name not in value]
        found = f"{missing[0]} is missing" if missing else f"{len(value) - len(kinds)} fields are not known"
        raise WireError("fields", f"{what}: {found}")
    for name, allowed in kinds.items():
        if type(value[name]) not in allowed:
            raise WireError("fields", f"{name} is of another type than {allowed[-1].__name__}")
    return value


def json_object(text: bytes | str, what: str) -> dict[str, Any]:
    """A JSON object whose keys are unique. The text of the error is dropped: it quotes the sender."""
    try:
        value = json.loads(
            text.decode("utf-8") if isinstance(text, bytes) else text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError):  # with UnicodeDecodeError, JSONDecodeError and numbers of too many digits
        raise WireError("format", f"the {what} is not JSON with unique keys and finite numbers") from None
    if type(value) is not dict:
        raise WireError("format", f"the {what} is not a JSON object")
    return value


def read_entry(index: int, value: Any, dtypes: Collection[str]) -> Entry:
    """A tensor's entry in the header. Raises WireError "format", or "shape" for a dtype that is not allowed here."""
    if type(value) is not dict or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise WireError("format", f"tensor {index}: its entry is not dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if type(dtype) is not str or dtype not in dtypes:
        raise WireError("shape", f"tensor {index}: its dtype is not one of {', '.join(dtypes)}")
    if type(shape) is not list or len(shape) > 4 or not all(map(is_size, shape)):
        raise WireError("format", f"tensor {index}: its shape is not a list of at most 4 sizes")
    if math.prod(size or 1 for size in shape) >= _LARGEST:
        raise WireError("format", f"tensor {index}: its shape is larger than any array")
    if type(offsets) is not list or len(offsets) != 2 or not all(map(is_size, offsets)):
        raise WireError("format", f"tensor {index}: its data_offsets are not two numbers of bytes")
    begin, end = offsets
    if end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise WireError("format", f"tensor {index}: its data_offsets do not fit its shape")
    return Entry(dtype, tuple(shape), begin, end)


def check_layout(entries: Mapping[str, Entry], available: int) -> None:
    """Values lie end to end: no gap, no overlap, nothing before, nothing after. Raises WireError "format"."""
    position = 0
    for entry in sorted(entries.values(), key=lambda e: (e.begin, e.end)):
        if entry.begin != position:
            raise WireError("format", f"a tensor begins at byte {entry.begin}, expected {position}")
        position = entry.end
    if position != available:
        raise WireError("format", f"the tensors take {position} bytes, the message holds {available}")


def is_size(value: Any) -> bool:
    """Whether it is a whole number from 0 to 2⁴⁰ − 1."""
    return type(value) is int and 0 <= value < _LARGEST


def is_number(value: Any) -> bool:
    """Whether it is a finite number that fits a float64. JSON can write others: 1e999 is infinite."""
    if type(value) is int:
        return abs(value) < 2**1000
    return type(value) is float and math.isfinite(value)


def expect(holds: bool, code: str, detail: str) -> None:
    """Raise WireError with this code and detail unless the condition holds."""
    if not holds:
        raise WireError(code, detail)


def checksum(envelope: str, *values: bytes | memoryview) -> str:
    """sha256 over the envelope's text and the values, in hex."""
    total = hashlib.sha256(envelope.encode("utf-8", "surrogatepass"))
    for value in values:
        total.update(value)
    return total.hexdigest()


def widen(data: bytes, start: int, entry: Entry) -> np.ndarray:
    """A copy of the values of a tensor: float32 (float64 for F64), bool for BOOL.

    Raises WireError "slots" for a truth value that is neither 0 nor 1.
    """
    count = math.prod(entry.shape)
    kind = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "u1"}[entry.dtype]
    raw = np.frombuffer(data, kind, count, start + entry.begin) if count else np.zeros(0, kind)
    if entry.dtype == "BOOL":
        if (raw > 1).any():
            raise WireError("slots", "a choice holds a byte that is neither 0 nor 1")
        return (raw == 1).reshape(entry.shape)
    if entry.dtype == "BF16":
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):  # a signalling NaN would warn; the check of the values finds it
        return raw.astype(np.float64 if entry.dtype == "F64" else np.float32).reshape(entry.shape)


def narrow(array: np.ndarray, dtype: str) -> bytes:
    """The values of an array as bytes of this dtype; "F16" and "BF16" round to the nearest."""
    if dtype == "BOOL":
        return np.asarray(array, bool).tobytes()
    if dtype == "F64":
        return np.asarray(array, "<f8").tobytes()
    flat = np.ascontiguousarray(array, "<f4")
    if dtype == "F32":
        return flat.tobytes()
    if dtype == "F16":
        with np.errstate(over="ignore", invalid="ignore"):  # beyond 65504 it is infinite, which the gate refuses
            return flat.astype("<f2").tobytes()
    bits = flat.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16  # to nearest, ties to even
    quiet = (bits >> 16) | 0x40  # NaN stays NaN: rounding could carry it over to zero
    return np.where(np.isnan(flat), quiet, rounded).astype("<u2").tobytes()


def _metadata(metadata: Any, form: str) -> dict[str, str]:
    if type(metadata) is not dict or metadata.keys() != {"format", "envelope", "sha256"}:
        raise WireError("format", "the metadata are not format, envelope and sha256")
    if any(type(value) is not str for value in metadata.values()):
        raise WireError("format", "the metadata are not all text")
    if metadata["format"] != form:
        raise WireError("format", f"the message is not a {form}")
    return metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(name)  # NaN and Infinity are not JSON
