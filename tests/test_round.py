"""One round with an engine made of numbers: who counts, what moves, what is recorded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from shepherd.clients.selection import selections
from shepherd.errors import ClientError
from shepherd.round import Plan, run_round
from shepherd.server.methods import build_method
from shepherd.types import (
    Adapter,
    ClientFailure,
    ClientUpdate,
    Factors,
    GlobalModel,
    Objective,
    ServerState,
    TrainTask,
    Work,
)

CLIENTS = ("a", "b", "c")


def adapter(value: float = 0.0) -> Adapter:
    return Adapter({"q": Factors(np.full((1, 3), value, np.float32), np.full((2, 1), value, np.float32))}, 1, 1.0)


def begin(number: int = 0, value: float = 0.0, **changes) -> ServerState:
    return ServerState(number, GlobalModel(adapter(value)), **changes)


def plan(**changes) -> Plan:
    usual = Plan(
        seed=0,
        clients=CLIENTS,
        cohort_size=3,
        select=selections.build("uniform"),
        method=build_method("fedit"),
        weights="examples",
        min_updates=1,
        work=lambda client, number, first: Work(client, first, {"a": 1, "b": 2, "c": 5}[client], (0.1, 0.05)),
        rank=lambda client: 1,
        objective=Objective(),
    )
    return replace(usual, **changes)


def update(client: str, task: TrainTask, value: float, **changes) -> ClientUpdate:
    delta = {"q.A": np.full((1, 3), value, np.float32), "q.B": np.full((2, 1), 2 * value, np.float32)}
    rows = task.work[client].rows if client in task.work else 1
    return replace(ClientUpdate(client, task.round, delta, rows, 10 * rows, 2, {"loss": 1.0}), **changes)


class Answers:
    """An engine that gives what `answer(task)` returns."""

    def __init__(self, answer) -> None:
        self.answer = answer

    def train(self, task, private, observe):
        return self.answer(task)


def all_three(task: TrainTask) -> list:
    return [update(client, task, value) for client, value in (("a", 8.0), ("b", 4.0), ("c", 1.6))]


def test_the_next_adapter_is_the_old_one_plus_the_mean_by_examples():
    state, record = run_round(begin(0, 1.0), plan(), Answers(all_three))
    # (1·8 + 2·4 + 5·1.6) / 8 = 3
    np.testing.assert_allclose(state.model.adapter.factors["q"].A, 4.0, rtol=1e-6)
    np.testing.assert_allclose(state.model.adapter.factors["q"].B, 7.0, rtol=1e-6)
    assert dict(record.weights) == {"a": 1 / 8, "b": 2 / 8, "c": 5 / 8}
    assert record.learning_rate == (0.1, 0.05)
    assert record.bytes_up == record.bytes_down == 3 * 4 * 5


def test_the_order_of_arrival_changes_no_bit():
    states = [
        run_round(begin(), plan(), Answers(lambda t, o=order: [all_three(t)[i] for i in o]))[0]
        for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0))
    ]
    assert len({state.model.adapter.factors["q"].A.tobytes() for state in states}) == 1


def test_a_client_that_answers_twice_counts_once():
    once, _ = run_round(begin(), plan(), Answers(all_three))
    twice, record = run_round(begin(), plan(), Answers(lambda t: [*all_three(t), update("c", t, 99.0)]))
    assert twice.model.adapter.factors["q"].A.tobytes() == once.model.adapter.factors["q"].A.tobytes()
    assert sum(record.weights.values()) == 1


def test_failed_rejected_and_missing_clients_are_named_and_do_not_walk_on():
    def answer(task):
        broken = update("b", task, float("nan"))
        return [update("a", task, 1.0), broken]

    state, record = run_round(begin(4, cursors={"a": 7, "b": 7, "c": 7}), plan(), Answers(answer))
    assert record.missing == ("c",)
    assert [(r["client"], r["code"]) for r in record.rejected] == [("b", "non-finite")]
    assert dict(record.weights) == {"a": 1.0}
    assert dict(state.cursors) == {"a": 8, "b": 7, "c": 7}
    assert state.round == record.round == 5


def test_an_answer_of_somebody_who_was_not_asked_does_not_count():
    _, record = run_round(begin(), plan(), Answers(lambda t: [update("a", t, 1.0), update("z", t, 1.0)]))
    assert list(record.weights) == ["a"] and record.rejected[0]["code"] == "uninvited"


def test_too_few_usable_updates_end_the_run_with_every_reason():
    failures = lambda task: [ClientFailure("a", 1, "non-finite", "the loss became nan in local step 2")]  # noqa: E731
    with pytest.raises(ClientError) as caught:
        run_round(begin(), plan(), Answers(failures))
    assert "round 1: 0 usable updates, 1 needed" in caught.value.message
    assert "a: non-finite: the loss became nan in local step 2" in caught.value.message
    assert "learning_rate" in caught.value.hint and caught.value.exit_code == 6
    with pytest.raises(ClientError, match="3 usable updates, 4 needed"):
        run_round(begin(), plan(min_updates=4), Answers(all_three))
