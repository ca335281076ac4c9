"""Aggregation of a round: weights, weighted means, and recorded replies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from number_engine import NumberEngine
from shepherd.clients.selection import build_selection
from shepherd.errors import ClientError
from shepherd.round import Plan, run_round
from shepherd.server.methods import build_method
from shepherd.server.weights import update_weights
from shepherd.types import (
    Adapter,
    ClientFailure,
    ClientModel,
    ClientUpdate,
    Factors,
    GlobalModel,
    Objective,
    ServerState,
    Work,
)
from small_updates import SHAPES, R, adapter, some_updates, tensors, update


def assert_close(a, b, rtol=1e-6, atol=1e-7) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=atol)


# Weights


@pytest.mark.parametrize(
    "by, expected",
    [
        ("examples", (0.125, 0.375, 0.5)),  # 1, 3, 4 of 8
        ("tokens", (0.6, 0.3, 0.1)),  # 60, 30, 10 of 100
        ("uniform", (1 / 3, 1 / 3, 1 / 3)),
    ],
)
def test_weights_are_shares_of_examples_of_target_tokens_or_equal(by, expected):
    updates = [update("a", 0, 1, 60), update("b", 1, 3, 30), update("c", 2, 4, 10)]
    assert update_weights(updates, by) == pytest.approx(expected, rel=1e-12)


def test_an_unknown_weighting_is_refused_with_the_list_of_weightings():
    with pytest.raises(ValueError, match=r"unknown weights: 'size'\. Known: examples, tokens, uniform"):
        update_weights(some_updates(), "size")


def flat(**values) -> dict[str, np.ndarray]:
    return {f"m.{part}": np.full((1, 1), value, np.float32) for part, value in values.items()}


def combined(name: str, updates, weights, start: Adapter | None = None) -> GlobalModel:
    start = start or Adapter({"m": Factors(np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32))}, 1, 1.0)
    views = {u.client: ClientModel(start) for u in updates}
    return build_method(name).combine(GlobalModel(start), views, updates, dict(zip("abc", weights, strict=False)))


# FedIT


def test_fedit_is_the_weighted_mean_of_A_and_of_B():
    updates = [ClientUpdate(c, 1, flat(A=v, B=-v), n, 1, 1) for c, v, n in (("a", 1, 1), ("b", 2, 3), ("c", 10, 4))]
    A, B = combined("fedit", updates, update_weights(updates, "examples")).adapter.factors["m"]
    # 1/8 · 1 + 3/8 · 2 + 4/8 · 10 = 5.875
    assert A.item() == 5.875 and B.item() == -5.875


def test_fedit_sums_in_float64():
    # 1e8 + 1 − 1e8 = 1, and 0 in float32, where 1e8 + 1 is 1e8.
    updates = [ClientUpdate(c, 1, flat(A=v, B=v), 1, 1, 1) for c, v in (("a", 1e8), ("b", 1.0), ("c", -1e8))]
    A, B = combined("fedit", updates, (0.25, 0.25, 0.25)).adapter.factors["m"]
    assert A.item() == B.item() == 0.25


def test_a_step_adds_the_delta_in_float32_and_keeps_everything_else():
    before = replace(adapter(), rslora=True, base_digest="digest")
    only = update("a", 5)
    after = combined("fedit", [only], (1.0,), before).adapter
    assert (after.r, after.alpha, after.rslora, after.base_digest) == (R, 4.0, True, "digest")
    expected = {name: value + only.delta[name] for name, value in tensors(before.factors).items()}
    assert all(np.array_equal(value, expected[name]) for name, value in tensors(after.factors).items())


class Answers(NumberEngine):
    """An engine that returns these replies for any task."""

    def __init__(self, *answers) -> None:
        self.answers = answers

    def train(self, task, deadline, enough, observe):
        return iter(self.answers)


def begin(number: int = 0, **changes) -> ServerState:
    return ServerState(number, GlobalModel(adapter()), **changes)


def a_plan(clients, min_updates=1, weights="examples", rows=9, cohort=0) -> Plan:
    return Plan(
        seed=0, clients=tuple(clients), cohort_size=cohort or len(clients), select=build_selection("uniform"),
        method=build_method("fedit"), weights=weights, min_updates=min_updates,
        work=lambda client, number, first: Work(client, first, rows, (0.2, 0.1)), rank=lambda client: R,
        objective=Objective(),
    )  # fmt: skip


# In a round


def test_a_round_does_not_depend_on_the_order_of_replies():
    start, updates = begin(), some_updates()
    plan = a_plan([u.client for u in updates])
    state, record = run_round(start, plan, Answers(*updates))
    for order in ((4, 3, 2, 1, 0), (2, 0, 4, 1, 3)):
        other, again = run_round(start, plan, Answers(*(updates[i] for i in order)))
        ours, theirs = tensors(state.model.adapter.factors), tensors(other.model.adapter.factors)
        assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
        assert replace(again, seconds={}) == replace(record, seconds={})
        assert list(again.weights) == list(record.weights)


def test_a_round_applies_the_weighted_mean_and_records_the_weights():
    updates = [update("a", 0, examples=1), update("b", 1, examples=3)]
    start = begin(4, cursors={"a": 9})
    state, record = run_round(start, a_plan("ab"), Answers(*(replace(u, round=5) for u in updates)))
    assert state.round == record.round == 5 and record.weights == {"a": 0.25, "b": 0.75}
    a, b = (u.delta for u in updates)
    expected = {n: value + 0.25 * a[n] + 0.75 * b[n] for n, value in tensors(start.model.adapter.factors).items()}
    assert_close(tensors(state.model.adapter.factors), expected)
    assert state.cursors == {"a": 18, "b": 9}
    assert record.learning_rate == (0.2, 0.1)


def test_traffic_counts_float32_factors_down_per_sampled_client_and_up_per_reply():
    size = 4 * R * sum(n_in + n_out for n_in, n_out in SHAPES.values())
    failed = ClientFailure("b", 1, "diverged", "the loss became nan")
    _, record = run_round(begin(), a_plan("abc"), Answers(update("a"), failed, update("c")))
    assert (record.bytes_down, record.bytes_up) == (3 * size, 2 * size)


def test_failed_rejected_and_lost_clients_are_recorded_and_not_averaged():
    failed = ClientFailure("b", 1, "diverged", "the loss became nan")
    stale = replace(update("c", 2), round=7)
    good = update("a", 1)
    start = begin()
    state, record = run_round(start, a_plan("abcd"), Answers(stale, failed, good))
    assert [(r["client"], r["code"]) for r in record.rejected] == [("b", "diverged"), ("c", "stale-round")]
    assert record.missing == ("d",) and record.weights == {"a": 1.0}
    expected = {name: value + good.delta[name] for name, value in tensors(start.model.adapter.factors).items()}
    assert_close(tensors(state.model.adapter.factors), expected)
    assert state.cursors == {"a": 9}  # the others have not trained on theirs


def test_too_few_usable_updates_end_the_run_with_the_failure_of_each_client():
    failed = ClientFailure("b", 1, "diverged", "the loss became nan")
    with pytest.raises(ClientError) as caught:
        run_round(begin(), a_plan("ab", min_updates=2), Answers(update("a"), failed))
    assert caught.value.exit_code == 6
    assert "round 1: 1 usable updates, 2 needed" in caught.value.message
    assert "b: diverged: the loss became nan" in caught.value.message
    assert "training.learning_rate" in caught.value.hint
