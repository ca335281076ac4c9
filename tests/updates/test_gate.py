"""The gate: only valid updates for the task reach the aggregation, and no text of a client is repeated."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from forged import ABSENT, BASE, CHOOSING, FIELDS, RUN, SHAPES, TASK, TOKENIZER, forged, update, values
from shepherd.types import REASONS, ClientFailure, ClientUpdate, ExamplePrivacy, Objective
from shepherd.updates import wire
from shepherd.updates.gate import UNKNOWN, Gate, Limits
from shepherd.updates.rules import expected_shapes, update_norm
from shepherd.updates.wire import Sealed


def admit(answer, limits: Limits = Limits(), task=TASK) -> ClientUpdate | ClientFailure:  # noqa: B008
    return Gate(limits, RUN, TOKENIZER).admit(answer, task)


def sealed(**changes) -> Sealed:
    return Sealed("a", forged(**changes))


def with_tensor(name: str, matrix: np.ndarray) -> dict[str, np.ndarray]:
    return {**values(), name: matrix}


def without(name: str) -> dict[str, np.ndarray]:
    return {key: value for key, value in values().items() if key != name}


def spoilt(value: float) -> np.ndarray:
    matrix = np.ones((3, 2), np.float32)
    matrix[1, 1] = value
    return matrix


def test_a_valid_update_passes_unchanged():
    given = update()
    assert admit(given) is given
    assert isinstance(admit(update(num_examples=1, num_tokens=1)), ClientUpdate)


def test_a_valid_message_becomes_its_update():
    answer = admit(sealed())
    assert isinstance(answer, ClientUpdate)
    assert replace(answer, delta={}) == update(delta={})
    for name, array in values().items():
        np.testing.assert_array_equal(answer.delta[name], array)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_is_widened(dtype):
    bits = {"F16": np.float16(1.5).view(np.uint16), "BF16": np.uint16(0x3FC0)}[dtype]  # both are 1.5
    half = np.full((3, 2), bits).view(np.float16) if dtype == "F16" else np.full((3, 2), bits)
    answer = admit(sealed(tensors=with_tensor("v.B", half), dtypes={"v.B": dtype}))
    assert isinstance(answer, ClientUpdate) and answer.delta["v.B"].dtype == np.float32
    np.testing.assert_array_equal(answer.delta["v.B"], 1.5)


def test_a_failure_passes_unchanged():
    for code in ("diverged", "non-finite", "out-of-memory", "error:ValueError"):
        failure = ClientFailure("b", 3, code, "in local step 1")
        assert admit(failure) is failure


ONES = np.ones((7, 2), np.float32)
FAULTS = {
    "an earlier round": ({"round": 2}, "stale-round", "of round 2, this is round 3"),
    "a later round": ({"round": 4}, "stale-round", "of round 4, this is round 3"),
    "no examples": ({"num_examples": 0}, "count", "num_examples = 0"),
    "negative examples": ({"num_examples": -1}, "count", "num_examples = -1"),
    "all examples of the world": ({"num_examples": 10**30}, "count", "more than 18 digits"),
    "no tokens": ({"num_tokens": 0}, "count", "num_tokens = 0"),
    "no step": ({"steps": 0}, "count", "steps = 0"),
    "a step more than was asked for": ({"steps": 3}, "count", "steps = 3, expected 1 to 2"),
    "a bool for a count": ({"num_examples": True}, "fields", "num_examples"),
    "text for a count": ({"steps": "2"}, "fields", "steps"),
    "a float for a count": ({"num_tokens": 20.0}, "fields", "num_tokens"),
    "a bool for the round": ({"round": True}, "fields", "round"),
    "no metrics": ({"metrics": {}}, "non-finite", "no loss"),
    "a metric that is text": ({"metrics": {"loss": "2.0"}}, "fields", "metric"),
    "a metric that is a bool": ({"metrics": {"loss": True}}, "fields", "metric"),
    "a metric with a sentence for a name": ({"metrics": {"loss": 1.0, "my secret": 1.0}}, "fields", "metric"),
    "too many metrics": ({"metrics": {"loss": 1.0} | {f"m{i}": 1.0 for i in range(40)}}, "fields", "41 metrics"),
}  # fmt: skip
TENSORS = {
    "a tensor too few": (without("q.B"), "tensors", "3 tensors, expected 4; q.B is missing"),
    "another tensor": (without("q.B") | {"k.B": ONES}, "tensors", "4 tensors, expected 4; q.B is missing"),
    "a tensor too many": (values() | {"k.A": ONES}, "tensors", "5 tensors, expected 4"),
    "another shape": (with_tensor("v.A", np.ones((2, 5), np.float32)), "shape", "v.A: [2, 5], expected [2, 4]"),
    "another rank": (with_tensor("q.B", np.ones((7, 3), np.float32)), "shape", "q.B: [7, 3]"),
    "a shape that would broadcast": (with_tensor("q.A", np.ones((1, 5), np.float32)), "shape", "q.A"),
    "a flat tensor": (with_tensor("q.A", np.ones(10, np.float32)), "shape", "q.A: [10]"),
    "NaN": (with_tensor("v.B", spoilt(np.nan)), "non-finite", "v.B: 1 values are not finite"),
    "infinity": (with_tensor("v.B", spoilt(np.inf)), "non-finite", "v.B: 1"),
    "a norm beyond float32's squares": (with_tensor("v.B", spoilt(1.1e15)), "non-finite", "v.B: L2 norm 1.1e+15"),
    "minus infinity": (with_tensor("v.B", spoilt(-np.inf)), "non-finite", "v.B: 1"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS | TENSORS)
@pytest.mark.parametrize("from_", ["memory", "bytes"])
def test_an_invalid_update_becomes_a_failure_with_the_reason(fault, from_):
    given, code, detail = {**FAULTS, **TENSORS}[fault]
    if fault in TENSORS:
        answer = admit(update(delta=given) if from_ == "memory" else sealed(tensors=given))
    else:
        answer = admit(update(**given) if from_ == "memory" else sealed(**given))
    assert isinstance(answer, ClientFailure)
    assert (answer.client, answer.round, answer.code) == ("a", 3, code)
    assert detail in answer.detail


MEMORY_FAULTS = {
    "float64": (with_tensor("q.A", np.ones((2, 5))), "shape", "q.A: float64[2, 5]"),
    "integers": (with_tensor("q.A", np.ones((2, 5), np.int32)), "shape", "int32"),
    "the other byte order": (with_tensor("q.A", np.ones((2, 5), ">f4")), "shape", "byte order"),
    "objects": (with_tensor("q.A", np.full((2, 5), None)), "shape", "no real numbers"),
    "text": (with_tensor("q.A", np.full((2, 5), "1")), "shape", "no real numbers"),
    "a list": (with_tensor("q.A", [[1.0] * 5] * 2), "fields", "delta holds list"),
    "a masked array": (with_tensor("q.A", np.ma.ones((2, 5), np.float32)), "fields", "of another type"),
    "a list of pairs": (list(values().items()), "fields", "delta is list"),
    "a number for a name": (values() | {5: ONES}, "fields", "not text"),
}


@pytest.mark.parametrize("fault", MEMORY_FAULTS)
def test_tensors_in_memory_are_plain_float32_arrays(fault):
    delta, code, detail = MEMORY_FAULTS[fault]
    answer = admit(update(delta=delta))
    assert isinstance(answer, ClientFailure) and answer.code == code and detail in answer.detail


BYTES_FAULTS = {
    "another run": ({"run": "other"}, "other-run"),
    "another base": ({"base": "c" * 64}, "base"),
    "no base": ({"base": ""}, "base"),
    "another tokenizer": ({"tokenizer": "u" * 64}, "tokenizer"),
    "no tokenizer": ({"tokenizer": ""}, "tokenizer"),
    "another rank": ({"rank": 3}, "rank"),
    "another scale": ({"scale": 2.0000001}, "scale"),
    "an infinite scale": ({"scale": 10**400}, "scale"),
    "another client": ({"client": "b"}, "impostor"),
    "a nonce with a path": ({"nonce": "../x"}, "fields"),
    "an empty nonce": ({"nonce": ""}, "fields"),
    "a field too few": ({"steps": ABSENT}, "fields"),
    "a field too many": ({"note": "hello"}, "fields"),
    "NaN for a metric": ({"metrics": {"loss": float("nan")}}, "format"),
    "float64": ({"dtypes": {"q.A": "F64"}}, "shape"),
    "bytes after the end": ({"tail": b"\0\0\0\0"}, "format"),
    "a wrong checksum": ({"checksum": "0" * 64}, "damaged"),
    "no checksum": ({"metadata": lambda m: {k: v for k, v in m.items() if k != "sha256"}}, "format"),
    "another format": ({"metadata": lambda m: {**m, "format": "shepherd-update-2"}}, "format"),
    "metadata that are no text": ({"metadata": lambda m: {**m, "sha256": 5}}, "format"),
    "overlapping tensors": ({"entries": {"q.B": {"data_offsets": [0, 56]}}}, "format"),
    "a tensor outside": ({"entries": {"v.B": {"data_offsets": [10**6, 10**6 + 24]}}}, "format"),
    "negative offsets": ({"entries": {"q.A": {"data_offsets": [-40, 0]}}}, "format"),
    "a shape of bools": ({"entries": {"q.A": {"shape": [True, True]}}}, "format"),
    "a shape of 2⁶⁰": ({"entries": {"q.A": {"shape": [2**60, 2**60]}}}, "format"),
    "an envelope twice nested": ({"envelope": "[" * 5000 + "]" * 5000}, "format"),
    "an envelope that is a list": ({"envelope": "[]"}, "format"),
    "an envelope with a key twice": ({"envelope": json.dumps(FIELDS)[:-1] + ', "run": "demo"}'}, "format"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BYTES_FAULTS)
def test_an_invalid_message_becomes_a_failure_with_the_reason(fault):
    changes, code = BYTES_FAULTS[fault]
    answer = admit(sealed(**changes))
    assert isinstance(answer, ClientFailure)
    assert (answer.client, answer.round, answer.code) == ("a", 3, code)


def test_a_message_larger_than_its_client_model_allows_is_not_read():
    most = 16_384 + sum(len(name) + 128 for name in SHAPES) + 8 + 4 * (10 + 14 + 8 + 6)
    larger, as_large = (admit(Sealed("a", b" " * length)) for length in (most + 1, most))
    assert (larger.code, larger.detail) == ("too-large", f"{most + 1} bytes, the limit is {most}")
    assert as_large.detail.startswith("the header claims 2314885530818453536 bytes")  # eight spaces


def test_numpy_numbers_are_accepted_as_numbers():
    answer = admit(update(num_examples=np.int64(8), steps=np.uint8(2), metrics={"loss": np.float32(0.5)}))
    assert isinstance(answer, ClientUpdate)
    assert type(answer.num_examples) is int and type(answer.steps) is int and type(answer.metrics["loss"]) is float
    for wrong in (np.True_, np.float64(8), np.str_("8"), np.array(8), np.array([8])):
        assert admit(update(num_examples=wrong)).code == "fields"


def test_the_norm_is_over_all_factors_in_float64_and_has_a_limit():
    assert update_norm(update()) == pytest.approx(98**0.5, rel=1e-12)
    huge = update(delta=with_tensor("v.B", np.full((3, 2), 1e14, np.float32)))
    assert update_norm(huge) == pytest.approx(6**0.5 * 1e14, rel=1e-6)
    assert isinstance(admit(huge), ClientUpdate), "0 sets no limit"
    wide = update(delta=with_tensor("v.B", np.array([[3e7, 1], [1, 1], [1, 1]], np.float32)))
    assert update_norm(wide) ** 2 - 9e14 == pytest.approx(74 + 5, abs=1), "float32 has steps of 6.7e7 there"
    assert isinstance(admit(update(), Limits(norm=98**0.5 + 1e-9)), ClientUpdate)
    assert admit(update(), Limits(norm=98**0.5 - 1e-9)).code == "norm"
    assert admit(huge, Limits(norm=10.0)).detail.startswith("L2 norm 2.449")


def controlled(**tensors: np.ndarray) -> ClientUpdate:
    """A valid update with zero control variates except these; q_A stands for q.A.control."""
    zeros = {f"{name}.control": np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    return update(delta=values() | zeros | {f"{n.replace('_', '.')}.control": a for n, a in tensors.items()})


@pytest.mark.parametrize("value, words", [(np.nan, "10 values are not finite"), (1e30, "float32 has no room")])
def test_a_non_finite_control_variate_is_rejected_like_any_tensor(value, words):
    task = replace(TASK, objective=Objective(scaffold=True))
    answer = admit(controlled(q_A=np.full((2, 5), value, np.float32)), task=task)
    assert isinstance(answer, ClientFailure) and answer.code == "non-finite"
    assert answer.detail.startswith("q.A.control: ") and words in answer.detail


def test_the_change_of_a_control_variate_is_bounded_by_the_delta_over_its_rates_and_that_of_the_server():
    # Δ of q.A is ten ones, of q.B fourteen twos; η is 0.1 + 0.1 of A and three times that of B: 1/0.2 and 2/0.6.
    c = {"q.A": np.full((2, 5), -3.0, np.float32)}
    task = replace(TASK, objective=Objective(scaffold=True, rate_ratio=3.0))
    for control, most_A in (({}, 5.0), (c, 8.0)):
        of = replace(task, control=control)
        for name, shape, most in (("q_A", (2, 5), most_A), ("q_B", (7, 2), 2 / 0.6)):
            assert isinstance(admit(controlled(**{name: np.full(shape, most, np.float32)}), task=of), ClientUpdate)
            answer = admit(controlled(**{name: np.full(shape, 1.03 * most, np.float32)}), task=of)
            assert isinstance(answer, ClientFailure) and answer.code == "norm"
            assert answer.detail.startswith(f"{name.replace('_', '.')}.control: L2 norm ")


def test_the_control_variate_of_an_untrained_part_must_not_change():
    c = {f"q.{part}": np.ones(SHAPES[f"q.{part}"], np.float32) for part in "AB"}
    view = replace(TASK.views["a"], trains=("B", "A"))
    task = replace(TASK, objective=Objective(scaffold=True), views={**TASK.views, "a": view}, control=c)
    for steps, code in ((1, "norm"), (2, "")):
        answer = admit(replace(controlled(q_A=np.full((2, 5), 0.1, np.float32)), steps=steps), task=task)
        assert getattr(answer, "code", "") == code
    assert isinstance(admit(replace(controlled(), steps=1), task=task), ClientUpdate)


@pytest.mark.parametrize("metrics", [{}, {"loss": 1.0}, {"last_loss": 1.0}])
def test_an_update_of_a_private_task_has_no_metrics(metrics):
    private = replace(TASK, privacy=ExamplePrivacy(1.0, 1.0))
    answer = admit(update(metrics=metrics), task=private)
    assert isinstance(answer, ClientFailure) == bool(metrics)
    assert metrics or admit(sealed(metrics={}), task=private).metrics == {}


@pytest.mark.parametrize("metrics", [{}, {"loss": float("nan")}, {"loss": float("inf")}, {"loss": 1.0, "x": np.nan}])
def test_an_update_without_finite_metrics_is_refused(metrics):
    answer = admit(update(metrics=metrics))
    assert isinstance(answer, ClientFailure) and answer.code == "non-finite"


def test_the_first_usable_update_of_a_client_counts_and_a_rejected_one_does_not_block_it():
    gate = Gate(Limits(), RUN, TOKENIZER)
    assert gate.admit(sealed(checksum="0" * 64), TASK).code == "damaged"
    assert isinstance(gate.admit(sealed(), TASK), ClientUpdate), "sent again after damage on the way"
    for again in (sealed(), sealed(nonce="n-2"), update(), update(num_examples=5)):
        assert gate.admit(again, TASK).code == "duplicate"
    assert isinstance(gate.admit(update(client="b", steps=1), TASK), ClientUpdate)
    assert isinstance(gate.admit(update(round=4), replace(TASK, round=4)), ClientUpdate), "another round"


def test_an_update_after_a_reported_failure_is_rejected():
    gate = Gate(Limits(), RUN)
    assert gate.admit(ClientFailure("a", 3, "hang", ""), TASK).code == "hang"
    assert gate.admit(update(), TASK).code == "duplicate"


def test_replayed_messages_of_other_rounds_and_runs_are_rejected():
    for number in range(100):
        data = Sealed("a", forged(nonce=f"n-{number}"))
        assert isinstance(admit(data), ClientUpdate)
        assert admit(data, task=replace(TASK, round=4)).code == "stale-round"
        assert Gate(Limits(), "demo-2", TOKENIZER).admit(data, TASK).code == "other-run"


def test_scaffold_sends_a_control_variate_with_each_tensor():
    task = replace(TASK, objective=Objective(scaffold=True))
    assert expected_shapes(task.views["a"], task, "a").keys() == {*SHAPES, *(f"{name}.control" for name in SHAPES)}
    assert admit(update(), task=task).code == "tensors"
    both = values() | {f"{name}.control": 5 * array for name, array in values().items()}
    answer = admit(update(delta=dict(reversed(both.items()))), Limits(norm=10.0), task)
    assert isinstance(answer, ClientUpdate) and update_norm(answer) == update_norm(update())
    assert list(answer.delta) == list(both), "in the order in which they were asked for"


# A choice of slots


def mask(*slots: int) -> np.ndarray:
    return np.array(slots, bool)


def picked(q=(1, 0), v=(1, 1)) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(delta, slots) of a client that trained these slots of B."""
    slots = {"q": mask(*q), "v": mask(*v)}
    delta = {f"{name}.B": np.full((SHAPES[f"{name}.B"][0], slots[name].sum()), 2, np.float32) for name in slots}
    return delta, slots


def picked_of(**changes) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The same with other masks; None omits one."""
    delta, slots = picked()
    return delta, {name: array for name, array in {**slots, **changes}.items() if array is not None}


def sealed_choice(delta, slots, dtypes={}) -> Sealed:  # noqa: B006
    tensors = delta | {f"{name}.slots": array for name, array in slots.items()}
    return Sealed("a", forged(tensors, dtypes={f"{name}.slots": "BOOL" for name in slots} | dtypes))


@pytest.mark.parametrize("q, v", [((1, 0), (1, 1)), ((0, 1), (0, 1)), ((0, 0), (1, 0)), ((0, 0), (0, 0))])
def test_a_choice_within_the_budget_passes_from_memory_and_as_a_message(q, v):
    delta, slots = picked(q, v)
    for answer in (update(delta=delta, slots=slots), sealed_choice(delta, slots)):
        got = admit(answer, task=CHOOSING)
        assert isinstance(got, ClientUpdate)
        assert got.nbytes == 4 * (7 * sum(q) + 3 * sum(v)) + 4
        assert list(got.slots) == ["q", "v"] and all(np.array_equal(got.slots[n], slots[n]) for n in slots)
        assert all(np.array_equal(got.delta[n], delta[n]) for n in delta)
    packed = wire.pack(update(delta=delta, slots=slots), wire.Envelope(RUN, "n-1", BASE, TOKENIZER, 2, 2.0))
    assert isinstance(admit(Sealed("a", packed), task=CHOOSING), ClientUpdate)
    read = safetensors.numpy.load(packed)
    assert read["q.slots"].dtype == bool and np.array_equal(read["q.slots"], slots["q"])


CHOICES = {
    "a slot more than the budget": (picked((1, 1), (1, 1)), "slots", "4 slots, the limit is 3"),
    "a longer one": (picked_of(q=mask(1, 0, 0)), "slots", "the slots of q are bool[3], expected bool[2]"),
    "a flat one turned": (picked_of(q=mask(1, 0)[None]), "slots", "the slots of q are bool[1, 2], expected bool[2]"),
    "none": ((picked()[0], {}), "slots", "slots of 0 modules, expected 2; q is missing"),
    "none for a module": (picked_of(v=None), "slots", "slots of 1 modules, expected 2; v is missing"),
    "another module's": (picked_of(v=None, k=mask(1, 1)), "slots", "slots of 2 modules, expected 2; v is missing"),
    "one more module's": (picked_of(k=mask(1, 1)), "slots", "slots of 3 modules, expected 2"),
    "fewer values than it names": ((picked((1, 0))[0], picked((1, 1), (1, 0))[1]), "shape",
                                   "q.B: [7, 1], expected [7, 2]"),
    "more values than it names": ((picked((1, 1))[0], picked((1, 0))[1]), "shape", "q.B: [7, 2], expected [7, 1]"),
    "values that are not finite": (({**picked()[0], "v.B": spoilt(np.nan)}, picked()[1]), "non-finite", "v.B: 1"),
    "both factors": ((picked()[0] | {"q.A": np.ones((1, 5), np.float32)}, picked()[1]), "tensors", "3 tensors"),
}  # fmt: skip


@pytest.mark.parametrize("from_", ["memory", "bytes"])
@pytest.mark.parametrize("fault", CHOICES)
def test_an_invalid_choice_is_rejected_with_the_reason(fault, from_):
    (delta, slots), code, detail = CHOICES[fault]
    answer = admit(
        update(delta=delta, slots=slots) if from_ == "memory" else sealed_choice(delta, slots), task=CHOOSING
    )
    assert isinstance(answer, ClientFailure) and (answer.client, answer.code) == ("a", code)
    assert detail in answer.detail


@pytest.mark.parametrize(
    "slots, code",
    [
        ({"q": np.array([1, 0], np.uint8), "v": mask(1, 1)}, "slots"),
        ({"q": np.array([1.0, 0.0]), "v": mask(1, 1)}, "slots"),
        ({"q": np.array([255, 0], np.uint8).view(bool), "v": mask(0, 1)}, "shape"),  # one slot, not 255
        ({"q": [True, False], "v": mask(1, 1)}, "fields"),
        ({"q": np.ma.ones(2, bool), "v": mask(1, 1)}, "fields"),
        ({"q": np.array([None, None]), "v": mask(1, 1)}, "shape"),
        ({"q": np.array(True), "v": mask(1, 1)}, "slots"),
        ({5: mask(1, 0), "v": mask(1, 1)}, "fields"),
        ([mask(1, 0), mask(1, 1)], "fields"),
        (None, "fields"),
    ],
)
def test_a_choice_in_memory_must_be_a_plain_dict_of_bools(slots, code):
    answer = admit(update(delta=picked()[0], slots=slots), task=CHOOSING)
    assert isinstance(answer, ClientFailure) and answer.code == code


def test_a_choice_in_a_message_consists_of_bytes_0_and_1():
    delta, slots = picked()
    two = {**slots, "q": np.array([2, 0], np.uint8)}
    assert admit(sealed_choice(delta, two), task=CHOOSING).code == "slots"
    assert admit(sealed_choice(delta, slots, {"q.slots": "F32"}), task=CHOOSING).code == "slots"
    assert admit(sealed_choice(delta, slots, {"q.slots": "U8"}), task=CHOOSING).code == "shape"
    assert admit(sealed_choice(delta, slots, {"q.B": "BOOL"}), task=CHOOSING).code == "shape"


def test_an_unrequested_choice_is_rejected():
    assert admit(update(slots={"q": mask(1, 1)})).code == "slots"
    both = values() | {"q.slots": mask(1, 1)}
    assert admit(Sealed("a", forged(both, dtypes={"q.slots": "BOOL"}))).code == "tensors"


def test_the_largest_message_of_a_choice_is_that_of_the_largest_slots():
    # Two slots of q (7 numbers each), one of v (3); four truth values; names q.B, v.B, q.slots, v.slots.
    most = 8 + 16_384 + 4 * 128 + (3 + 3 + 7 + 7) + 4 * (7 + 7 + 3) + 4
    larger, as_large = (admit(Sealed("a", b" " * n), task=CHOOSING) for n in (most + 1, most))
    assert (larger.code, larger.detail) == ("too-large", f"{most + 1} bytes, the limit is {most}")
    assert as_large.detail.startswith("the header claims")


SECRET = "the-patient-takes-insulin"


class Liar(type):
    """A class whose comparisons run code, and whose name is text of a client."""

    def __eq__(cls, other):
        raise SystemExit("compared")

    def __hash__(cls):
        raise SystemExit("hashed")


class Hostile(metaclass=Liar):
    """An object that raises an exception on every operation."""

    def stop(self, *arguments):
        raise SystemExit(SECRET)

    __getattribute__ = __bool__ = __len__ = __iter__ = __int__ = __index__ = __eq__ = __hash__ = __array__ = stop


def hollow() -> ClientUpdate:
    return object.__new__(ClientUpdate)


HOSTILE = [
    None, 5, "update", b"", {}, [], Hostile(), Hostile, hollow(), Sealed("a", Hostile()), Sealed(Hostile(), b""),
    Sealed("z", b""), Sealed("a", bytearray(forged())), ClientFailure(Hostile(), 3, "norm", ""),
    ClientFailure("a", 3, Hostile(), ""), ClientFailure("a", Hostile(), "norm", ""), ClientFailure("a", 3, SECRET, ""),
    ClientFailure("a", 3, f"error:{SECRET}", ""), ClientFailure("z", 3, "norm", ""), object.__new__(ClientFailure),
    update(client="z"), update(client=SECRET), update(client=""), update(client=None), update(client=["a"]),
    *(update(**{name: Hostile()}) for name in ("client", "round", "delta", "num_examples", "num_tokens", "steps",
                                               "metrics", "private", "slots")),
    update(slots={SECRET: Hostile()}), update(slots={SECRET: np.ones(2, bool)}),
    sealed(tensors=values() | {f"{SECRET}.slots": np.ones(2, bool)}, dtypes={f"{SECRET}.slots": "BOOL"}),
    update(delta=with_tensor("q.A", Hostile())), update(delta=values() | {SECRET: ONES}),
    update(metrics={"loss": Hostile()}), update(metrics={SECRET: 1.0, "loss": 1.0}),
    update(private={SECRET: Hostile()}), sealed(run=SECRET), sealed(nonce=f"/{SECRET}"), sealed(client=SECRET),
    sealed(metrics={SECRET: 1.0}),
    sealed(base=SECRET), sealed(envelope=f'"{SECRET}"'), sealed(tensors=values() | {SECRET: ONES}),
    sealed(rank=SECRET), sealed(entries={"q.A": {"dtype": SECRET}}), sealed(metadata=lambda m: {**m, SECRET: SECRET}),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(HOSTILE)))
def test_hostile_replies_are_rejected_without_an_exception_and_without_their_text(index):
    answer = admit(HOSTILE[index])
    assert type(answer) is ClientFailure and answer.code in REASONS
    assert answer.client in ("a", "z", UNKNOWN) and answer.round == 3
    assert SECRET not in f"{answer}" and "insulin" not in f"{answer}"


def test_every_reply_of_a_client_that_was_not_sampled_is_uninvited():
    for answer in (update(client="z"), Sealed("z", forged(client="z")), ClientFailure("z", 3, "norm", "")):
        assert admit(answer).code == "uninvited"


def test_a_failure_keeps_no_detail_that_is_not_a_short_line():
    for detail in ("x" * 201, "two\nlines", "\x1b[31m", None, Hostile()):
        assert admit(ClientFailure("a", 3, "error:ValueError", detail)).detail == ""


def test_every_code_that_the_sources_use_is_explained():
    sources = Path(__file__).parents[2] / "src" / "shepherd"
    used = set()
    for path in sources.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        used |= set(re.findall(r'WireError\(\s*"([a-z-]+)"', text))
        used |= set(re.findall(r'ClientFailure\([^)"\[]*"([a-z-]+)"', text))
    assert {"tensors", "format", "non-finite"} <= used <= REASONS.keys()


def test_the_base_of_a_message_is_compared_with_that_of_the_client_model():
    assert isinstance(admit(sealed(base=BASE)), ClientUpdate)
