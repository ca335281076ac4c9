"""The gate: nothing reaches the aggregation that is not what was asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from shepherd.types import Adapter, ClientFailure, ClientUpdate, Factors, TrainTask, View, Work
from shepherd.updates.gate import admit, update_norm

SHAPES = {"q": ((2, 5), (7, 2)), "v": ((2, 4), (3, 2))}


def zeros() -> dict[str, Factors]:
    return {name: Factors(*(np.zeros(shape, np.float32) for shape in shapes)) for name, shapes in SHAPES.items()}


TASK = TrainTask(
    3,
    dict.fromkeys("ab", View(Adapter(zeros(), 2, 4.0))),
    0,
    {"a": Work("a", 0, 8, (0.1, 0.1)), "b": Work("b", 0, 4, (0.1,))},
)


def update(**changes) -> ClientUpdate:
    delta = {f"{n}.{part}": m + 1 + (part == "B") for n, p in zeros().items() for part, m in zip("AB", p, strict=True)}
    return replace(ClientUpdate("a", 3, delta, 8, 20, 2, {"loss": 2.0}), **changes)


def with_tensor(name: str, matrix: np.ndarray) -> ClientUpdate:
    return update(delta={**update().delta, name: matrix})


def without(name: str) -> dict[str, np.ndarray]:
    return {key: value for key, value in update().delta.items() if key != name}


def spoilt(value: float) -> np.ndarray:
    matrix = np.ones((3, 2), np.float32)
    matrix[1, 1] = value
    return matrix


def test_an_update_in_order_passes_untouched():
    given = update()
    assert admit(given, TASK) is given
    assert isinstance(admit(update(num_examples=1, num_tokens=1), TASK), ClientUpdate)


def test_a_failure_passes_as_it_is():
    failure = ClientFailure("b", 3, "non-finite", "the loss became nan in local step 1")
    assert admit(failure, TASK) is failure


ONES = np.ones((7, 2), np.float32)
FAULTS = {
    "a client nobody asked": (update(client="z"), "uninvited", "cohort"),
    "an earlier round": (update(round=2), "stale-round", "of round 2, this is round 3"),
    "a later round": (update(round=4), "stale-round", "of round 4, this is round 3"),
    "a tensor too few": (update(delta=without("q.B")), "tensors", "3 tensors, expected 4; q.B is missing"),
    "another tensor": (update(delta=without("q.B") | {"k.B": ONES}), "tensors", "4 tensors, expected 4; q.B is"),
    "a tensor too many": (update(delta=update().delta | {"k.A": ONES}), "tensors", "5 tensors, expected 4"),
    "another shape": (with_tensor("v.A", np.ones((2, 5), np.float32)), "shape", "v.A: float32[2, 5], expected"),
    "another rank": (with_tensor("q.B", np.ones((7, 3), np.float32)), "shape", "q.B: float32[7, 3]"),
    "a shape that would broadcast": (with_tensor("q.A", np.ones((1, 5), np.float32)), "shape", "q.A"),
    "float64": (with_tensor("q.A", np.ones((2, 5))), "shape", "q.A: float64[2, 5]"),
    "integers": (with_tensor("q.A", np.ones((2, 5), np.int32)), "shape", "int32"),
    "NaN": (with_tensor("v.B", spoilt(np.nan)), "non-finite", "v.B: 1 values are not finite"),
    "infinity": (with_tensor("v.B", spoilt(np.inf)), "non-finite", "v.B: 1"),
    "minus infinity": (with_tensor("v.B", spoilt(-np.inf)), "non-finite", "v.B: 1"),
    "no examples": (update(num_examples=0), "count", "num_examples = 0"),
    "negative examples": (update(num_examples=-1), "count", "num_examples = -1"),
    "no tokens": (update(num_tokens=0), "count", "num_tokens = 0"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_an_update_with_a_fault_becomes_a_failure_that_names_it(fault):
    given, code, detail = FAULTS[fault]
    answer = admit(given, TASK)
    assert isinstance(answer, ClientFailure)
    assert (answer.client, answer.round, answer.code) == (given.client, 3, code)
    assert detail in answer.detail


def test_the_norm_is_over_all_factors_in_float64():
    # q: 10 ones, 14 twos; v: 8 ones, 6 twos: 18 + 80 = 98
    assert update_norm(update()) == pytest.approx(98**0.5, rel=1e-12)
    huge = with_tensor("v.B", np.full((3, 2), 1e30, np.float32))  # its square is no float32
    assert update_norm(huge) == pytest.approx(6**0.5 * 1e30, rel=1e-6)


@pytest.mark.parametrize("metrics", [{}, {"loss": float("nan")}, {"loss": float("inf")}])
def test_an_update_without_a_finite_loss_is_refused(metrics):
    answer = admit(update(metrics=metrics), TASK)
    assert isinstance(answer, ClientFailure) and answer.code == "non-finite"
