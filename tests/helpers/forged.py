"""Updates made by hand, well and ill: a task of two clients, an update in order, messages written without our writer.

forged(round=2)                                  # a message whose checksum fits, of another round
forged(tensors={"q.A": ones(2, 5)}, dtypes=…)    # and whatever else a liar can write
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from shepherd.types import Adapter, ClientModel, ClientUpdate, Factors, SlotChoice, TrainTask, Work

BASE, TOKENIZER, RUN = "b" * 64, "t" * 64, "demo"
SHAPES = {"q.A": (2, 5), "q.B": (7, 2), "v.A": (2, 4), "v.B": (3, 2)}
NUMPY = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I32": "<i4", "BF16": "<u2", "U8": "u1", "BOOL": "u1"}


def adapter() -> Adapter:
    pairs = {name: Factors(np.zeros(SHAPES[f"{name}.A"], np.float32), np.zeros(SHAPES[f"{name}.B"], np.float32))
             for name in ("q", "v")}  # fmt: skip
    return Adapter(pairs, 2, 4.0, base_digest=BASE)


TASK = TrainTask(
    3, dict.fromkeys("ab", ClientModel(adapter())), 0, {"a": Work("a", 0, 8, (0.1, 0.1)), "b": Work("b", 0, 4, (0.1,))}
)
CHOOSING = replace(TASK, views=dict.fromkeys("ab", ClientModel(adapter(), ("B",), "B", choice=SlotChoice(3))))
"""The same where each client sends B, of three of the four slots that it picks itself."""


def values() -> dict[str, np.ndarray]:
    """A is ones and B twos: 10 + 4·14 + 8 + 4·6 = 98 is the square of the norm."""
    return {name: np.full(shape, 1 + name.endswith("B"), np.float32) for name, shape in SHAPES.items()}


def update(**changes: Any) -> ClientUpdate:
    return replace(ClientUpdate("a", 3, values(), 8, 20, 2, {"loss": 2.0}), **changes)


FIELDS: dict[str, Any] = {
    "run": RUN, "round": 3, "client": "a", "nonce": "n-1", "base": BASE, "tokenizer": TOKENIZER,
    "rank": 2, "scale": 2.0, "num_examples": 8, "num_tokens": 20, "steps": 2, "metrics": {"loss": 2.0}, "cluster": 0,
}  # fmt: skip
ABSENT = object()


def forged(
    tensors: Mapping[str, np.ndarray] | None = None,
    *,
    dtypes: Mapping[str, str] = {},
    entries: Mapping[str, Any] = {},
    metadata: Any = None,
    envelope: str | None = None,
    tail: bytes = b"",
    checksum: str | None = None,
    **fields: Any,
) -> bytes:
    """A message as bytes. fields change or (ABSENT) remove those of the envelope; entries change a tensor's header."""
    merged = {name: value for name, value in {**FIELDS, **fields}.items() if value is not ABSENT}
    text = json.dumps(merged) if envelope is None else envelope
    document: dict[str, Any] = {}
    body, offset = b"", 0
    for name, array in (values() if tensors is None else tensors).items():
        dtype = dtypes.get(name, "F32")
        data = np.ascontiguousarray(array).astype(NUMPY[dtype]).tobytes()
        document[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + len(data)]}
        document[name] |= entries.get(name, {})
        body += data
        offset += len(data)
    body += tail
    total = hashlib.sha256(text.encode("utf-8", "surrogatepass") + body).hexdigest() if checksum is None else checksum
    usual = {"format": "shepherd-update-1", "envelope": text, "sha256": total}
    document["__metadata__"] = usual if metadata is None else metadata(usual)
    return sealed_header(json.dumps(document), body)


def sealed_header(header: str | bytes, body: bytes = b"", length: int | None = None) -> bytes:
    raw = header.encode("utf-8", "surrogatepass") if isinstance(header, str) else header
    return struct.pack("<Q", len(raw) if length is None else length) + raw + body
