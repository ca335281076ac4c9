"""Ten thousand malformed tasks, none of which may pass or crash. Every class makes its own kind of wrong, by seed."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_task_wire import assert_same

from forged import SHAPES, TASK, sealed_header
from shepherd.lowrank import LowRank
from shepherd.types import REASONS, Adapter, ClientModel, Core, Factors, Objective, SlotChoice, TrainTask, TransformSpec
from shepherd.updates.layout import WireError
from shepherd.updates.task_wire import pack_task, read_task

CLASSES: dict[str, tuple[Callable[[random.Random, Message], bytes], set[str]]] = {}
LEAST = 2e-310
"""Stands in a field for a number of JSON that no float holds: written as 1e999."""
WRONG = (None, True, "x5", 5.5, -1, 2**41, -(2**70), 10**400, LEAST, [], {}, [5], {"x5": 5}, ["x5", "x5"])


class Message:
    """The pieces of a task's message, to be changed and put together again with a checksum that fits."""

    def __init__(self, task: TrainTask) -> None:
        self.task, self.data = task, pack_task(task)
        length = int.from_bytes(self.data[:8], "little")
        self.header, self.body = self.data[8 : 8 + length].decode(), self.data[8 + length :]
        document = json.loads(self.header)
        self.metadata = document.pop("__metadata__")
        self.entries: dict[str, Any] = document
        self.text = self.metadata["envelope"]

    def fields(self) -> dict[str, Any]:
        """The envelope, to be changed."""
        return json.loads(self.text)

    def sealed(
        self,
        fields: Any = None,
        *,
        text: str | None = None,
        entries: Any = None,
        body: bytes | None = None,
        metadata: dict[str, Any] | None = None,
        drop: str = "",
    ) -> bytes:
        """The message with these changes; `metadata` and the absence of one are not made to fit."""
        if text is None:
            text = self.text if fields is None else json.dumps(fields).replace(str(LEAST), "1e999")
        body = self.body if body is None else body
        total = hashlib.sha256(text.encode("utf-8", "surrogatepass") + body).hexdigest()
        head = {**self.metadata, "envelope": text, "sha256": total, **(metadata or {})}
        head.pop(drop, None)
        return sealed_header(json.dumps({"__metadata__": head, **(self.entries if entries is None else entries)}), body)


def spoils(*codes: str):
    """Register a class of malformed tasks with the codes that they may be refused with."""

    def register(make: Callable[[random.Random, Message], bytes]):
        CLASSES[make.__name__] = (make, set(codes))
        return make

    return register


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values within a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*path, key)
        yield from places(inner, (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def drawn(*shape: int, dtype: str = "f4") -> np.ndarray:
    """Values that no other array has: a tensor of each array."""
    return RNG.normal(size=shape).astype(dtype)


def a_model(**changes: Any) -> ClientModel:
    pairs = {name: Factors(drawn(*SHAPES[f"{name}.A"]), drawn(*SHAPES[f"{name}.B"])) for name in "qv"}
    return ClientModel(Adapter(pairs, 2, 4.0, base_digest="b" * 64), **changes)


RNG = np.random.default_rng(0)
SLOTS = {"q": np.array([True, False]), "v": np.array([True, True])}
CORE = Core({"q": drawn(7, 2), "v": drawn(3, 2)}, {name: drawn(2, 1, 1) for name in "qv"})
MESSAGES = [
    Message(replace(TASK, views=dict.fromkeys("ab", a_model()), clusters={"b": (a_model(), a_model(slots=SLOTS))})),
    Message(
        replace(
            TASK, views={"a": a_model(slots=SLOTS, local_modules=frozenset("v")), "b": a_model(choice=SlotChoice(3))},
            remainder={"q": LowRank(np.asfortranarray(drawn(7, 3, dtype="f8")), drawn(3, 5), apart=1)},
            objective=Objective(0.1, "product", 4.0, scaffold=True), control={"q.A": drawn(2, 5), "q.B": drawn(7, 2)},
            transforms=(TransformSpec("clip", {"norm": 1.0, "by": ["q", 3]}), TransformSpec("noise")),
        )
    ),
    Message(replace(TASK, views=dict.fromkeys("ab", a_model(trains=("B",), sends="core", core=CORE, slots=SLOTS)))),
]  # fmt: skip


def makes_sense(path: tuple[Any, ...], value: Any) -> bool:
    """Whether this value may well stand at this place of an envelope."""
    name = next(key for key in reversed(path) if isinstance(key, str))
    number = type(value) in (int, float) and value not in (LEAST, 10**400)
    match name:
        case "alpha" | "proximal" | "rate_ratio":
            return number
        case "learning_rates":
            return value == [5] if path[-1] == name else number and value >= 0
        case "seed":
            return type(value) is int and value in (-1, 2**41)
        case "rslora" | "scaffold":
            return type(value) is bool
        case "base_digest":
            return type(value) is str
        case "choice":
            return value is None
        case "local_modules":
            return value == []
    if path == ("transforms",):
        return value == []
    # An option of a transform may be anything finite, and its name any text: the registry knows which there are.
    if "options" in path:
        return type(value) is dict if path[-1] == "options" else LEAST != value != 10**400
    return name == "name" and type(value) is str


@spoils("format", "too-large")
def noise(rng, message):
    return rng.randbytes(rng.randrange(400))


@spoils("format", "damaged")
def truncated(rng, message):
    return message.data[: rng.randrange(len(message.data))]


@spoils("format")
def extended(rng, message):
    return message.data + rng.randbytes(rng.randrange(1, 40))


@spoils("format", "too-large")
def wrong_header_length(rng, message):
    shift = rng.choice((-9, -1, 1, 2, 100, 2**31, 2**62))
    return (len(message.header) + shift).to_bytes(8, "little") + message.data[8:]


@spoils(*REASONS)
def overwritten_bytes(rng, message):
    data = bytearray(message.data)
    start = rng.randrange(len(data))
    for i in range(start, min(start + rng.choice((1, 1, 8, 64)), len(data))):
        data[i] ^= rng.randrange(1, 256)
    return bytes(data)


@spoils("damaged")
def values_changed_after_sealing(rng, message):
    data = bytearray(message.data)
    data[rng.randrange(8 + len(message.header), len(data))] ^= rng.randrange(1, 256)
    return bytes(data)


@spoils("damaged", "format")
def wrong_checksum(rng, message):
    return message.sealed(metadata={"sha256": rng.choice(("", "0" * 64, "\ud800" * 3, None, 5))})


@spoils("format")
def header_of_other_json(rng, message):
    return sealed_header(rng.choice(("[]", "null", "5", "{}", '{"a":1}', "{" * 3000, "[" * 9000, "NaN", '{"a":')))


@spoils("format", "fields")
def envelope_of_other_json(rng, message):
    deep = message.text.replace('"seed":', '"seed":' + "[" * 9000)
    return message.sealed(text=rng.choice(("[]", "null", "", "{}", message.text[:-1], "[" * 9000, deep, "NaN")))


@spoils("format")
def metadata_of_another_kind(rng, message):
    if rng.random() < 0.3:
        return message.sealed(drop=rng.choice(("format", "envelope", "sha256")))
    odd = ({"extra": "x"}, {"format": 1}, {"format": "shepherd-update-1"}, {"envelope": {}}, {"envelope": None})
    return message.sealed(metadata=rng.choice(odd))


@spoils("format")
def repeated_key(rng, message):
    name = rng.choice(list(message.entries))
    header = message.header.rstrip()[:-1] + f', "{name}": {json.dumps(message.entries[name])}}}'
    return sealed_header(header, message.body)


@spoils("format")
def repeated_field(rng, message):
    name = rng.choice(list(message.fields()))
    value = json.dumps(message.fields()[name])
    return message.sealed(text=message.text[:-1] + f',"{name}":{value}}}')


@spoils("fields", "tensors")
def field_missing(rng, message):
    fields = message.fields()
    keyed = [p for p in places(fields) if isinstance(at(fields, p[:-1]), dict) and "options" not in p[:-1]]
    path = rng.choice(keyed)
    del at(fields, path[:-1])[path[-1]]
    return message.sealed(fields)


@spoils("fields", "tensors")
def field_not_known(rng, message):
    fields = message.fields()
    place = rng.choice([(), *(p for p in places(fields) if type(at(fields, p)) is dict and "options" not in p)])
    at(fields, place)[rng.choice(("x", "", "transform", "\ud800"))] = rng.choice(WRONG)
    return message.sealed(fields)


@spoils("fields", "tensors", "format", "shape")
def field_of_another_kind(rng, message):
    fields = message.fields()
    while True:
        path, value = rng.choice(list(places(fields))), rng.choice(WRONG)
        if not makes_sense(path, value) and (type(value), value) != (type(at(fields, path)), at(fields, path)):
            break
    at(fields, path[:-1])[path[-1]] = value
    return message.sealed(fields)


@spoils("fields")
def entry_of_a_list_twice(rng, message):
    fields = message.fields()
    local = [model["local_modules"] for model in fields["models"] if model["local_modules"]]
    some = rng.choice([fields["models"], *local])
    some.append(rng.choice(some))
    return message.sealed(fields)


@spoils("format")
def number_that_is_no_json(rng, message):
    name = rng.choice(("alpha", "proximal", "rate_ratio", "round", "rows", "r", "learning_rates"))
    number = rng.choice(("NaN", "Infinity", "-Infinity"))
    return message.sealed(text=re.sub(rf'("{name}":\[?)[^],}}]+', rf"\g<1>{number}", message.text, count=1))


@spoils("tensors", "shape", "fields")
def names_of_other_tensors(rng, message):
    """One name takes another's place."""
    fields = message.fields()
    texts = [path for path in places(fields) if isinstance(at(fields, path), str)]
    names = [path for path in texts if at(fields, path) in message.entries]
    one = rng.choice(names)
    shape = message.entries[at(fields, one)]["shape"]
    others = [name for name, entry in message.entries.items() if sorted(entry["shape"]) != sorted(shape)]
    at(fields, one[:-1])[one[-1]] = rng.choice(("99", "", "0.T.T", "-1", "__metadata__", *others))
    return message.sealed(fields)


@spoils("tensors", "shape")
def tensors_of_no_field(rng, message):
    more = np.ones(rng.randrange(1, 9), np.float32)
    entry = {"dtype": "F32", "shape": [len(more)], "data_offsets": [len(message.body), len(message.body) + more.nbytes]}
    return message.sealed(entries={**message.entries, "99": entry}, body=message.body + more.tobytes())


@spoils("format", "shape", "tensors")
def entry_of_another_kind(rng, message):
    name = rng.choice(list(message.entries))
    entry = message.entries[name]
    begin, end = entry["data_offsets"]
    size = end - begin
    changes = (
        {"shape": None}, {"shape": [float(n) for n in entry["shape"]]}, {"shape": [-n for n in entry["shape"]]},
        {"shape": [True, *entry["shape"]]}, {"shape": [2**63, 2]}, {"shape": [2**39, 2**39, 0]}, {"shape": "25"},
        {"shape": [[2], [5]]}, {"shape": [1] * 64}, {"shape": [*entry["shape"], 2]}, {"dtype": "F16"}, {"dtype": "I32"},
        {"dtype": "BF16"}, {"dtype": 4}, {"dtype": "f32"}, {"dtype": None}, {"data_offsets": [begin]},
        {"data_offsets": [end, begin]}, {"data_offsets": [float(begin), float(end)]}, {"data_offsets": None},
        {"data_offsets": [begin + 2**39, end + 2**39]}, {"data_offsets": [begin - 4, end - 4]}, {"more": 1},
        {"data_offsets": [begin, end + 1]}, {"data_offsets": [begin, 2**62]}, {"data_offsets": [begin + 1, end + 1]},
        {"shape": [2**20, 2**14], "data_offsets": [begin, begin + 2**34 * size]},
    )  # fmt: skip
    return message.sealed(entries={**message.entries, name: {**entry, **rng.choice(changes)}})


@spoils("format", "tensors")
def entry_gone_or_renamed(rng, message):
    entries = dict(message.entries)
    entry = entries.pop(rng.choice(list(entries)))
    if rng.random() < 0.5:
        entries[rng.choice(("99", "", "x", "\ud800", "0.T.T"))] = entry
    return message.sealed(entries=entries)


@spoils("shape")
def other_shape(rng, message):
    """A factor or a choice of slots of as many values, in another shape."""
    fields = message.fields()
    factors = [name for model in fields["models"] for pair in model["factors"].values() for name in pair]
    name = rng.choice(factors)
    (rows, columns), size = message.entries[name]["shape"], int(np.prod(message.entries[name]["shape"]))
    shapes = ([size], [1, rows, columns], [rows, 1, columns], [columns, rows], [1, size], [size, 1], [1, 1, 1, size])
    shape = rng.choice([s for s in shapes if s != [rows, columns]])
    return message.sealed(entries={**message.entries, name: {**message.entries[name], "shape": shape}})


@spoils("non-finite")
def value_that_is_not_finite(rng, message):
    entry = rng.choice([entry for entry in message.entries.values() if entry["dtype"] != "BOOL"])
    kind, width = ("<f4", 4) if entry["dtype"] == "F32" else ("<f8", 8)
    odd = np.array([rng.choice((np.nan, np.inf, -np.inf))], kind).tobytes()
    if rng.random() < 0.2:  # a signalling NaN
        odd = b"\1" + bytes(width - 3) + (b"\x80\x7f" if width == 4 else b"\xf0\x7f")
    start = rng.randrange(*entry["data_offsets"], width)
    return message.sealed(body=message.body[:start] + odd + message.body[start + width :])


@spoils("slots")
def slot_that_is_neither_in_nor_out(rng, message):
    chosen = [entry for entry in message.entries.values() if entry["dtype"] == "BOOL"]
    start = rng.randrange(*rng.choice(chosen)["data_offsets"])
    return message.sealed(body=message.body[:start] + bytes([rng.randrange(2, 256)]) + message.body[start + 1 :])


def read_or_refusal(data: bytes) -> TrainTask | WireError:
    try:
        return read_task(data, header_limit=2**16)
    except WireError as error:
        return error


@pytest.mark.parametrize("number_of_tasks", [10_000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_malformed_tasks_are_refused_with_a_code_and_a_plain_reason_and_none_crashes(number_of_tasks):
    rng, seen, codes = random.Random(0), Counter(), Counter()
    kinds = sorted(CLASSES)
    assert len(kinds) >= 24
    for index in range(number_of_tasks):
        message, kind = MESSAGES[index % len(MESSAGES)], kinds[index // len(MESSAGES) % len(kinds)]
        make, expected = CLASSES[kind]
        data = make(rng, message)
        seen[kind] += 1
        result = read_or_refusal(data)
        if isinstance(result, TrainTask):  # bytes between the fields of a header may change and mean the same
            assert kind == "overwritten_bytes", f"{kind} {index} was accepted: {data!r}"
            assert_same(message.task, result)
        else:
            assert result.code in expected & REASONS.keys(), f"{kind} {index}: {result}"
            assert result.detail.isprintable() and 0 < len(result.detail) < 120
            codes[result.code] += 1
    assert min(seen.values()) >= number_of_tasks // len(kinds) - len(MESSAGES)
    assert codes.keys() == {"format", "too-large", "damaged", "fields", "tensors", "shape", "slots", "non-finite"}
    assert codes.total() >= 0.995 * number_of_tasks
    for message in MESSAGES:  # a reader that refuses everything is none
        assert_same(message.task, read_task(message.data))
        assert_same(message.task, read_task(message.sealed(message.fields())))
