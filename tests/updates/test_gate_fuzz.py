"""Ten thousand malformed updates, none of which may pass or raise. Every class makes its own kind of wrong, by seed."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forged import ABSENT, FIELDS, RUN, SHAPES, TASK, TOKENIZER, forged, sealed_header, update, values
from shepherd.rng import stream
from shepherd.types import REASONS, ClientFailure, ClientUpdate
from shepherd.updates.gate import Gate, Limits
from shepherd.updates.wire import Sealed

Rng = np.random.Generator
LIMITS = Limits(norm=1000.0, examples=10**6, tokens=10**9)
CLASSES: dict[str, tuple[Callable[[Rng], Any], set[str]]] = {}
NAMES = sorted(SHAPES)
WRONG_NUMBERS = (True, False, None, "5", 5.0, [5], {"5": 5}, 1e999)
ODD_TEXT = ("", "../../etc/passwd", "q.A/../q.B", "q.a", "Q.A", " q.A", "q.A ", "q․A", "a" * 4000, "\ud800", "\0", "∞")


def spoils(*codes: str):
    """Register a class of malformed updates with the codes that it may be refused with."""

    def register(make: Callable[[Rng], Any]):
        CLASSES[make.__name__] = (make, set(codes))
        return make

    return register


def pick(rng: Rng, options):
    return options[int(rng.integers(len(options)))]


def number(rng: Rng, low: int, high: int) -> int:
    return int(rng.integers(low, high))


def random_bytes(rng: Rng, most: int) -> bytes:
    return rng.bytes(number(rng, 0, most))


@spoils("format", "too-large", "fields", "shape")
def noise(rng):
    return random_bytes(rng, 2000)


@spoils("format", "damaged")
def truncated(rng):
    data = forged()
    return data[: number(rng, 0, len(data))]


@spoils("format")
def extended(rng):
    return forged() + b"\0" + random_bytes(rng, 40)


@spoils("too-large")
def oversized(rng):
    return forged(tail=bytes(number(rng, 20_000, 200_000)))


@spoils("format", "too-large")
def wrong_header_length(rng):
    data = forged()
    shift = pick(rng, (-9, -1, 1, 2, 100, 2**31, 2**62))
    return (int.from_bytes(data[:8], "little") + shift).to_bytes(8, "little") + data[8:]


@spoils(*REASONS)
def flipped_bit(rng):
    data = bytearray(forged())
    position = number(rng, 0, 8 * len(data))
    data[position // 8] ^= 1 << position % 8
    return bytes(data)


@spoils(*REASONS)
def overwritten_bytes(rng):
    data = bytearray(forged())
    start = number(rng, 0, len(data) - 8)
    before = bytes(data[start : start + 8])
    data[start : start + 8] = bytes((b + 1 + number(rng, 0, 250)) % 256 for b in before)
    return bytes(data)


@spoils("format")
def header_of_other_json(rng):
    return sealed_header(pick(rng, ("[]", "null", "5", '""', "{}", '{"a":1}', "{" * 3000, "[" * 9000, "NaN", '{"a":')))


@spoils("format")
def repeated_key(rng):
    data = forged()
    length = int.from_bytes(data[:8], "little")
    entry = json.dumps({"dtype": "F32", "shape": [2, 5], "data_offsets": [0, 40]})
    header = data[8 : 8 + length].decode().rstrip()[:-1] + f', "{pick(rng, NAMES)}": {entry}}}'
    return sealed_header(header, data[8 + length :])


@spoils("format")
def metadata_of_another_kind(rng):
    changed = pick(
        rng,
        (
            lambda m: [m], lambda m: {}, lambda m: {**m, "extra": "x"}, lambda m: {**m, "format": 1},
            lambda m: {**m, "format": "pt"}, lambda m: {**m, "envelope": {}}, lambda m: {**m, "sha256": None},
            lambda m: {**m, "envelope": m["envelope"][:-1]}, lambda m: {"envelope": m["envelope"]},
        ),
    )  # fmt: skip
    return forged(metadata=changed)


@spoils("fields")
def field_missing_or_new(rng):
    return forged(**{pick(rng, sorted(FIELDS)): ABSENT}) if rng.random() < 0.5 else forged(**{f"x{rng.random()}": 1})


@spoils("fields", "format", "impostor", "scale")
def field_of_another_type(rng):
    name = pick(rng, sorted(set(FIELDS) - {"metrics"}))
    wrong = [w for w in WRONG_NUMBERS if not (isinstance(FIELDS[name], str) and isinstance(w, str))]
    if name == "scale":  # 5.0 is a number, but another one
        wrong = [w for w in wrong if not isinstance(w, float)] + [5.0]
    return forged(**{name: pick(rng, wrong)})


@spoils("cluster")
def cluster_that_was_not_sent(rng):
    given = pick(rng, (-1, 1, 2, 2**31, 10**30))
    return forged(cluster=given) if rng.random() < 0.5 else update(cluster=given)


@spoils("damaged")
def wrong_checksum(rng):
    return forged(checksum=pick(rng, ("", "0" * 64, rng.bytes(32).hex(), "\ud800" * 3)))


@spoils("damaged")
def values_changed_after_sealing(rng):
    data = bytearray(forged())
    start = 8 + int.from_bytes(data[:8], "little")
    data[number(rng, start, len(data))] ^= number(rng, 1, 256)
    return bytes(data)


@spoils("tensors", "shape")
def other_tensors(rng):
    tensors, name = values(), pick(rng, NAMES)
    match number(rng, 0, 4):
        case 0:
            del tensors[name]
        case 1:
            tensors[pick(rng, ODD_TEXT)] = np.ones((2, 5), np.float32)
        case 2:
            tensors[pick(rng, ODD_TEXT)] = tensors.pop(name)
        case 3:
            tensors = {}
    return either(rng, tensors)


def either(rng: Rng, tensors: dict[str, np.ndarray]) -> Any:
    """The same tensors from memory or as a message."""
    return update(delta=tensors) if rng.random() < 0.5 else forged(tensors)


@spoils("slots", "tensors", "fields", "shape")
def a_choice_that_nobody_asked_for(rng):
    name = pick(rng, ("q", "v", *ODD_TEXT))
    mask = np.ones(number(rng, 1, 4), pick(rng, ("?", "u1", "f4")))
    if rng.random() < 0.5:
        return update(slots={name: mask})
    return forged(values() | {f"{name}.slots": mask}, dtypes={f"{name}.slots": pick(rng, ("BOOL", "U8", "F32"))})


@spoils("shape")
def other_shape(rng):
    name = pick(rng, NAMES)
    rows, columns = SHAPES[name]
    shapes = ((columns, rows), (rows, columns + 1), (rows + 1, columns), (rows * columns,), (1, rows, columns), (),
              (0, columns), (rows, 0), (1, columns), (rows, 1))  # fmt: skip
    return either(rng, values() | {name: np.ones(pick(rng, shapes), np.float32)})


@spoils("shape", "format")
def other_dtype(rng):
    name = pick(rng, NAMES)
    if rng.random() < 0.5:
        dtype = pick(rng, ("F64", "I32", "U8"))
        return forged(dtypes={name: dtype})
    kind = pick(rng, ("f8", ">f4", "f2", "i4", "u1", "?", "O", "U3", "S4", "c8", "M8[s]", "f4,f4"))
    return update(delta=values() | {name: np.zeros(SHAPES[name], kind)})


@spoils("format")
def offsets_that_lie(rng):
    name = pick(rng, NAMES)
    size = 4 * SHAPES[name][0] * SHAPES[name][1]
    begin = pick(rng, (-4, -size, 4, 1, 10**6, 2**39))
    good = {"q.A": 0, "q.B": 40, "v.A": 96, "v.B": 128}[name]
    return forged(entries={name: {"data_offsets": [good + begin, good + begin + size]}})


@spoils("format", "shape")
def entry_of_another_kind(rng):
    changes = (
        {"shape": None}, {"shape": [2.0, 5.0]}, {"shape": [True, 10]}, {"shape": [-2, -5]}, {"shape": [2**63, 2]},
        {"shape": "25"}, {"shape": [[2], [5]]}, {"shape": [1] * 64 + [10]}, {"dtype": "F8_E4M3"}, {"dtype": 4},
        {"dtype": "f32"}, {"data_offsets": [0]}, {"data_offsets": [40, 0]}, {"data_offsets": [0.0, 40.0]},
        {"data_offsets": None}, {"data_offsets": ["0", "40"]}, {"more": 1},
    )  # fmt: skip
    return forged(entries={"q.A": pick(rng, changes)})


@spoils("non-finite")
def values_that_are_not_finite(rng):
    tensors, name = values(), pick(rng, NAMES)
    tensors[name].flat[number(rng, 0, tensors[name].size)] = pick(rng, (np.nan, np.inf, -np.inf))
    return either(rng, tensors)


@spoils("non-finite")
def a_signalling_nan(rng):
    tensors, name = values(), pick(rng, NAMES)
    tensors[name].view(np.uint32).flat[number(rng, 0, tensors[name].size)] = 0x7F800001 + number(rng, 0, 2**22)
    return either(rng, tensors)


@spoils("norm")
def too_long(rng):
    return times(rng, 10.0 ** rng.uniform(2.1, 13))  # the norm of `values` is under 10


@spoils("non-finite")
def without_room_in_float32(rng):
    return times(rng, 10.0 ** rng.uniform(16, 37))


def times(rng, factor):
    return either(rng, {name: (array * factor).astype(np.float32) for name, array in values().items()})


@spoils("stale-round")
def of_another_round(rng):
    wrong = pick(rng, (-1, 0, 1, 2, 4, 10**9, -(2**63), 10**100))
    return forged(round=wrong) if rng.random() < 0.5 else update(round=wrong)


@spoils("other-run", "base", "tokenizer", "rank", "scale", "fields", "format")
def of_another_setup(rng):
    name = pick(rng, ("run", "base", "tokenizer", "rank", "scale", "nonce"))
    if name == "rank":
        return forged(rank=pick(rng, (0, -2, 1, 3, 4, 2**63, 10**50)))
    if name == "scale":
        return forged(scale=pick(rng, (0.0, -2.0, 1.0, 2.001, 1e308, 1e999, 10**400)))
    if name == "nonce":
        return forged(nonce=pick(rng, ("", "a/b", "..\\x", "a b", "é", "x" * 65, "\n", "n\n")))
    return forged(**{name: pick(rng, ("", "demo ", "Demo", "b" * 63, "B" * 64, "../demo", "\ud800", "x" * 4000))})


@spoils("count")
def counts_out_of_range(rng):
    name = pick(rng, ("num_examples", "num_tokens", "steps"))
    wrong = pick(rng, (0, -1, -(2**63), 2**63, 10**30, 10**10))
    return forged(**{name: wrong}) if rng.random() < 0.5 else update(**{name: wrong})


@spoils("fields")
def counts_of_another_type(rng):
    name = pick(rng, ("num_examples", "num_tokens", "steps", "round"))
    wrong = (True, None, "8", 8.0, 8 + 0j, [8], np.True_, np.float32(8), np.array(8), b"8", np.str_("8"))
    return update(**{name: pick(rng, wrong)})


@spoils("fields", "non-finite", "format")
def bad_metrics(rng):
    wrong = ({}, {"loss": float("nan")}, {"loss": float("inf")}, {"loss": "2"}, {"loss": None}, {"loss": True}, [],
             None, {"loss": 1.0, "x y": 1.0}, {"loss": 1.0, "": 1.0}, {"loss": 1.0, "L": 1.0}, {"loss": 10**400},
             {"loss": 1.0, "x" * 99: 1.0}, {"loss": 1.0} | {f"m{i}": 0.0 for i in range(99)},
             {"loss": [1.0]})  # fmt: skip
    metrics = pick(rng, wrong)
    return forged(metrics=metrics) if rng.random() < 0.5 else update(metrics=metrics)


@spoils("impostor", "uninvited")
def of_another_client(rng):
    wrong = pick(rng, ("b", "z", "", "A", "a ", "../a", "a\0", "а"))  # the last is Cyrillic
    return forged(client=wrong) if rng.random() < 0.5 else update(client=wrong if wrong != "b" else "c")


@spoils("not-an-update")
def not_an_update(rng):
    things = (
        None,
        0,
        1.5,
        "update",
        bytearray(b"x"),
        [],
        {},
        (),
        object(),
        ClientUpdate,
        Exception("x"),
        np.zeros(3),
        ...,
    )
    return pick(rng, things)


@spoils("fields")
def a_field_gone(rng):
    hollow = object.__new__(ClientUpdate)
    # One with a plain default cannot go: the class has it.
    gone = pick(rng, [field.name for field in fields(ClientUpdate) if not hasattr(ClientUpdate, field.name)])
    for field in fields(ClientUpdate):
        if field.name != gone:
            object.__setattr__(hollow, field.name, getattr(update(), field.name))
    return hollow


class Raises:
    """Raises whatever is asked of it."""

    def __getattribute__(self, name):
        raise RuntimeError("no")

    __iter__ = __len__ = __eq__ = __int__ = __float__ = __array__ = __bool__ = __getattribute__
    __hash__ = None


class HostileDict(dict):
    def __iter__(self):
        raise RuntimeError("no")

    keys = values = items = __len__ = __getitem__ = __iter__


class HostileArray(np.ndarray):
    def __array_finalize__(self, parent):
        pass

    def __getattribute__(self, name):
        raise RuntimeError("no")


@spoils("fields", "uninvited")
def hostile_objects(rng):
    name = pick(rng, [*(field.name for field in fields(ClientUpdate)), "array"])
    if name == "array":
        wrong = pick(
            rng, (Raises(), np.zeros((2, 5), np.float32).view(HostileArray), np.ma.ones((2, 5)), [[1.0] * 5] * 2)
        )
        return update(delta=values() | {"q.A": wrong})
    mappings = (HostileDict(), (), [("loss", 1.0)])
    return update(
        **{name: pick(rng, (Raises(), *mappings) if name in ("delta", "metrics", "private", "slots") else (Raises(),))}
    )


def refused(gate: Gate, answer: Any) -> ClientFailure:
    """Admit it, from bytes where it is bytes; it must become a failure that names a client and a reason."""
    result = gate.admit(Sealed("a", answer) if type(answer) is bytes else answer, TASK)
    assert type(result) is ClientFailure, f"accepted: {answer!r}"
    assert result.client in ("a", "(unknown)") and result.code in REASONS and result.round == 3
    assert result.detail.isprintable() and result.detail
    return result


@pytest.mark.parametrize("number_of_updates", [10_000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_malformed_updates_are_refused_with_client_and_code_and_none_raises(number_of_updates):
    gate, seen, codes = Gate(LIMITS, RUN, TOKENIZER), Counter(), Counter()
    assert len(CLASSES) >= 28
    in_order = [Sealed("a", forged()), update()]
    spent = 0.0
    for index in range(number_of_updates):
        kind = sorted(CLASSES)[index % len(CLASSES)]
        make, expected = CLASSES[kind]
        answer = make(stream(0, "fuzz", kind, index))
        begin = time.perf_counter()
        failure = refused(gate, answer)
        spent += time.perf_counter() - begin
        assert failure.code in expected, f"{kind} {index}: {failure}"
        seen[kind] += 1
        codes[failure.code] += 1
        if index % 100 == 0:  # a gate that refuses everything is no gate
            for good in in_order:
                assert isinstance(Gate(LIMITS, RUN, TOKENIZER).admit(good, TASK), ClientUpdate)
    assert min(seen.values()) >= number_of_updates // len(CLASSES)
    assert REASONS.keys() - codes.keys() == {"duplicate", "diverged", "error", "out-of-memory", "lost", "hang"}
    assert number_of_updates / spent >= 1000, f"{number_of_updates / spent:.0f} updates a second"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(sorted(FIELDS)), json_values, min_size=1))
def test_envelopes_with_any_json_for_their_fields_are_refused_unless_they_say_what_was_asked(changes):
    result = Gate(LIMITS, RUN, TOKENIZER).admit(Sealed("a", forged(**changes)), TASK)
    if isinstance(result, ClientUpdate):
        merged = {**FIELDS, **changes}
        for name in ("run", "round", "client", "base", "tokenizer", "rank", "scale"):
            assert merged[name] == FIELDS[name] and type(merged[name]) is not bool
        for name, most in (("num_examples", 10**6), ("num_tokens", 10**9), ("steps", 2)):
            assert type(merged[name]) is int and 1 <= merged[name] <= most
        assert np.isfinite(merged["metrics"]["loss"])


any_object = json_values | st.binary(max_size=5) | st.complex_numbers() | st.builds(object) | st.just(np.ones((2, 5)))


@settings(max_examples=300)
@given(st.sampled_from([field.name for field in fields(ClientUpdate)]), any_object)
def test_updates_with_anything_in_a_field_pass_only_when_it_is_in_order(name, value):
    result = Gate(LIMITS, RUN, TOKENIZER).admit(replace(update(), **{name: value}), TASK)
    if isinstance(result, ClientUpdate):
        match name:
            case "num_examples" | "num_tokens":
                assert type(value) is int and 1 <= value <= 10**9
            case "steps":
                assert type(value) is int and value in (1, 2)
            case "private" | "slots":
                assert value == {}
            case "round":
                assert type(value) is int and value == 3
            case "client":
                assert value in ("a", "b")
            case _:
                assert isinstance(value, dict)
