"""ClientUpdate <-> bytes: one safetensors file, with an envelope that says whose update it is and of what.

The header is read by us, entry by entry, before any value is touched: sizes, names, dtypes, shapes, offsets. What is
not exactly as it should be is a WireError with a code of REASONS and detail in our own words. Tensors travel as
float32; float16 and bfloat16 are accepted and widened. Slots that the client chose travel as `<module>.slots`, a byte
each. `private` is never sent.

    8 bytes    length of the header, little endian
    header     {"__metadata__": {"format", "envelope", "sha256"}, "<tensor>": {"dtype", "shape", "data_offsets"}, …}
    values     end to end, in the order of their offsets

sha256 is over the envelope's text and the values: it finds damage, it proves no identity (that is the transport's).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from shepherd.types import ClientId, ClientUpdate, Tensors

FORMAT = "shepherd-update-1"
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "BOOL": 1}
_SLOTS = ".slots"
"""How the name of a choice of slots ends. They alone are of dtype BOOL."""
_ENVELOPE: Mapping[str, tuple[type, ...]] = {
    "run": (str,),
    "round": (int,),
    "client": (str,),
    "nonce": (str,),
    "base": (str,),
    "tokenizer": (str,),
    "rank": (int,),
    "scale": (int, float),
    "num_examples": (int,),
    "num_tokens": (int,),
    "steps": (int,),
    "metrics": (dict,),
    "cluster": (int,),
}
"""Every key of the envelope with the types of JSON that it may have, exactly: neither true nor "5" is an int."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a message says beside the update: of which run, base, tokenizer, rank and scale; `nonce` names the message.

    base and tokenizer are digests, empty where they are not known. A message that is sent again keeps its nonce.
    """

    run: str
    nonce: str
    base: str
    tokenizer: str
    rank: int
    scale: float


@dataclass(frozen=True, slots=True)
class Sealed:
    """An update as a message, and the client that sent it according to the transport.

    `private` is not part of the message: it is the state that a simulated client keeps.
    """

    client: ClientId
    data: bytes
    private: Tensors = field(default_factory=dict)


class WireError(ValueError):
    """An invalid message: a code of REASONS, and detail without text of the sender."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail


class Entry(NamedTuple):
    """One tensor of a message: where its values begin and end, in bytes from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A header in order: the envelope's fields by name, the tensors by name, and where the values begin."""

    fields: Mapping[str, Any]
    entries: Mapping[str, Entry]
    start: int


def pack(update: ClientUpdate, envelope: Envelope, dtype: str = "F32") -> bytes:
    """The bytes of an update, the same for equal updates. dtype "F16" and "BF16" round to the nearest.

    Raises ValueError for a metric or scale that is not finite: JSON has no such number.
    """
    fields = {
        "run": envelope.run, "round": update.round, "client": update.client, "nonce": envelope.nonce,
        "base": envelope.base, "tokenizer": envelope.tokenizer, "rank": envelope.rank, "scale": envelope.scale,
        "num_examples": update.num_examples, "num_tokens": update.num_tokens, "steps": update.steps,
        "metrics": dict(update.metrics), "cluster": update.cluster,
    }  # fmt: skip
    text = json.dumps(fields, separators=(",", ":"), allow_nan=False)
    entries: dict[str, Any] = {}
    values, offset = [], 0
    slots = {f"{module}{_SLOTS}": array for module, array in update.slots.items()}
    for name in (*sorted(update.delta), *sorted(slots)):  # slots last: what is before them is aligned
        array, kind = (slots[name], "BOOL") if name in slots else (update.delta[name], dtype)
        data = _narrow(array, kind)
        entries[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [offset, offset + len(data)]}
        values.append(data)
        offset += len(data)
    metadata = {"format": FORMAT, "envelope": text, "sha256": _checksum(text, *values)}
    header = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # values begin at a multiple of 8
    return b"".join([len(header).to_bytes(8, "little"), header, *values])


def unpack(data: bytes, header_limit: int = 2**24) -> tuple[ClientUpdate, Envelope]:
    """The update and the envelope in `data`. Raises WireError; whether the values make sense is the gate's question."""
    header = read_header(data, header_limit)
    return read_update(data, header), envelope_of(header)


def read_header(data: bytes, limit: int) -> Header:
    """The header of a message, checked in itself and against the length of `data`; no value is read.

    Raises WireError: "too-large" for a header of more than `limit` bytes, else "format" or "fields".
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
    document = _json_object(data[8:start], "header")
    metadata = document.pop("__metadata__", None)
    fields = _metadata(metadata)
    entries = {name: _entry(index, name, value) for index, (name, value) in enumerate(document.items())}
    _check_layout(entries, len(data) - start)
    return Header(fields, entries, start)


def read_update(data: bytes, header: Header) -> ClientUpdate:
    """The update that `header` describes, values copied and widened to float32.

    Raises WireError "damaged" when the checksum does not fit, "slots" for a truth value that is neither 0 nor 1.
    """
    with memoryview(data) as view:
        if _checksum(header.fields["envelope"], view[header.start :]) != header.fields["sha256"]:
            raise WireError("damaged", "the checksum does not fit the content")
        read = {name: _widen(data, header.start, entry) for name, entry in header.entries.items()}
    fields = header.fields
    return ClientUpdate(
        client=fields["client"],
        round=fields["round"],
        delta={name: array for name, array in read.items() if array.dtype != bool},
        num_examples=fields["num_examples"],
        num_tokens=fields["num_tokens"],
        steps=fields["steps"],
        metrics=dict(fields["metrics"]),
        slots={name.removesuffix(_SLOTS): array for name, array in read.items() if array.dtype == bool},
        cluster=fields["cluster"],
    )


def envelope_of(header: Header) -> Envelope:
    names = ("run", "nonce", "base", "tokenizer", "rank", "scale")
    return Envelope(*(header.fields[name] for name in names))


def _metadata(metadata: Any) -> dict[str, Any]:
    """The envelope's fields, with the text of the envelope and the checksum."""
    if type(metadata) is not dict or metadata.keys() != {"format", "envelope", "sha256"}:
        raise WireError("format", "the metadata are not format, envelope and sha256")
    if any(type(value) is not str for value in metadata.values()):
        raise WireError("format", "the metadata are not all text")
    if metadata["format"] != FORMAT:
        raise WireError("format", f"the message is not a {FORMAT}")
    fields = _json_object(metadata["envelope"], "envelope")
    if fields.keys() != _ENVELOPE.keys():
        missing = [name for name in _ENVELOPE if name not in fields]
        found = f"{missing[0]} is missing" if missing else f"{len(fields) - len(_ENVELOPE)} fields are not known"
        raise WireError("fields", f"the envelope: {found}")
    for name, kinds in _ENVELOPE.items():
        if type(fields[name]) not in kinds:
            raise WireError("fields", f"{name} is of another type than {kinds[-1].__name__}")
    return {**fields, "envelope": metadata["envelope"], "sha256": metadata["sha256"]}


def _entry(index: int, name: str, value: Any) -> Entry:
    if type(value) is not dict or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise WireError("format", f"tensor {index}: its entry is not dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if type(dtype) is not str or dtype not in _ITEM_BYTES:
        raise WireError("shape", f"tensor {index}: its dtype is not one of {', '.join(_ITEM_BYTES)}")
    if dtype == "BOOL" and not name.endswith(_SLOTS):
        raise WireError("shape", f"tensor {index}: its dtype is BOOL, and it is no choice of slots")
    if type(shape) is not list or len(shape) > 4 or not all(map(_is_size, shape)):
        raise WireError("format", f"tensor {index}: its shape is not a list of at most 4 sizes")
    if type(offsets) is not list or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise WireError("format", f"tensor {index}: its data_offsets are not two numbers of bytes")
    begin, end = offsets
    if end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise WireError("format", f"tensor {index}: its data_offsets do not fit its shape")
    return Entry(dtype, tuple(shape), begin, end)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**40


def _check_layout(entries: Mapping[str, Entry], available: int) -> None:
    """Values lie end to end: no gap, no overlap, nothing before, nothing after."""
    position = 0
    for entry in sorted(entries.values(), key=lambda e: (e.begin, e.end)):
        if entry.begin != position:
            raise WireError("format", f"a tensor begins at byte {entry.begin}, expected {position}")
        position = entry.end
    if position != available:
        raise WireError("format", f"the tensors take {position} bytes, the message holds {available}")


def _json_object(text: bytes | str, what: str) -> dict[str, Any]:
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


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(name)  # NaN and Infinity are not JSON


def _checksum(envelope: str, *values: bytes | memoryview) -> str:
    total = hashlib.sha256(envelope.encode("utf-8", "surrogatepass"))
    for value in values:
        total.update(value)
    return total.hexdigest()


def _widen(data: bytes, start: int, entry: Entry) -> np.ndarray:
    count = math.prod(entry.shape)
    kind = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "u1"}[entry.dtype]
    raw = np.frombuffer(data, kind, count, start + entry.begin) if count else np.zeros(0, kind)
    if entry.dtype == "BOOL":
        if (raw > 1).any():
            raise WireError("slots", "a choice holds a byte that is neither 0 nor 1")
        return (raw == 1).reshape(entry.shape)
    if entry.dtype == "BF16":
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):  # a signalling NaN would warn; the gate finds it
        return raw.astype(np.float32).reshape(entry.shape)


def _narrow(array: np.ndarray, dtype: str) -> bytes:
    if dtype == "BOOL":
        return np.asarray(array, bool).tobytes()
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
