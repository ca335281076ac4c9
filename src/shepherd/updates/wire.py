"""ClientUpdate <-> bytes: a message (layout.py) with an envelope that states whose update it is and of what.

Tensors travel as float32; float16 and bfloat16 are accepted and widened. Slots that the client chose travel as
`<module>.slots`, a byte each. `private` is never sent.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shepherd.types import ClientId, ClientUpdate, Tensors
from shepherd.updates import layout
from shepherd.updates.layout import Header, Kinds, Values, WireError, check_damage, narrow, widen, write_message

FORMAT = "shepherd-update-1"
_DTYPES = ("F32", "F16", "BF16", "BOOL")
_SLOTS = ".slots"
"""How the name of a choice of slots ends. They alone are of dtype BOOL."""
_ENVELOPE: Kinds = {
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
    slots = {f"{module}{_SLOTS}": array for module, array in update.slots.items()}
    tensors = [Values(n, dtype, a.shape, narrow(a, dtype)) for n, a in sorted(update.delta.items())]
    chosen = [Values(n, "BOOL", a.shape, narrow(a, "BOOL")) for n, a in sorted(slots.items())]
    return write_message(FORMAT, fields, [*tensors, *chosen])  # slots last: what is before them is aligned


def unpack(data: bytes, header_limit: int = 2**24) -> tuple[ClientUpdate, Envelope]:
    """The update and the envelope in `data`. Raises WireError; whether the values make sense is the gate's question."""
    header = read_header(data, header_limit)
    return read_update(data, header), envelope_of(header)


def read_header(data: bytes, limit: int) -> Header:
    """The header of an update's message, of at most `limit` bytes; no value is read. Raises WireError."""
    header = layout.read_header(data, limit, FORMAT, _ENVELOPE, _DTYPES)
    for index, (name, entry) in enumerate(header.entries.items()):
        if entry.dtype == "BOOL" and not name.endswith(_SLOTS):
            raise WireError("shape", f"tensor {index}: its dtype is BOOL, and it is no choice of slots")
    return header


def read_update(data: bytes, header: Header) -> ClientUpdate:
    """The update that `header` describes, values copied and widened to float32.

    Raises WireError "damaged" when the checksum does not fit, "slots" for a truth value that is neither 0 nor 1.
    """
    check_damage(data, header)
    read = {name: widen(data, header.start, entry) for name, entry in header.entries.items()}
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
