"""LoRA-A² (2410.22815) in a cohort: a probe chooses the slots of each client, and only these are trained and sent."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from test_training_views import DATA, MODULES, adapter_of

from federations import dense_choice
from plain_client import train_plainly
from shepherd.clients.settings import LocalTraining
from shepherd.clients.slots import best_slots, probe_work
from shepherd.clients.training import TrainingHost, train
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.types import (
    Adapter,
    ClientFailure,
    ClientModel,
    ClientUpdate,
    Factors,
    Objective,
    SlotChoice,
    TrainTask,
    Work,
)
from shepherd.updates.gate import Gate
from shepherd.updates.wire import Envelope, Sealed, pack
from tiny_training import base_model, distance, same_bytes, targets_of

RATES = (0.3, 0.2, 0.1)  # of SGD: large, so that slots differ by far more than rounding
BUDGET = 7  # of 4 slots in each of 6 modules


def choosing(part: str, budget: int = BUDGET, steps: int = 0) -> ClientModel:
    sends = part if part in ("A", "B") else "AB"
    return ClientModel(adapter_of(MODULES), (part,), sends, choice=SlotChoice(budget, steps))


def task_of(views, rates=RATES, objective=None) -> TrainTask:
    work = {client: Work(client, 0, 2 * len(rates), tuple(rates)) for client in views}
    return TrainTask(1, views, 7, work, objective=objective or Objective())


def answers_of(task, data=DATA, private=None, observe=lambda report: None, **settings) -> dict:
    model = base_model()
    local = LocalTraining(**{"optimizer": "sgd", "max_grad_norm": 0.0, **settings})
    make = lambda: CohortLora(targets_of(model))  # noqa: E731
    return {
        answer.client: answer
        for answer in train(task, private or {}, TrainingHost(PackedModel(model), make, local, data), observe)
    }


def plainly(view, rates, **options):
    """The whole change after training by plain autograd, by the names of all factors."""
    model = base_model()
    options = {"optimizer": "sgd", "max_grad_norm": math.inf, "weight_decay": 0.0, **options}
    after, _, _ = train_plainly(model, targets_of(model), view, DATA["client-0"], "client-0", rates, **options)
    return {f"{n}.{p}": after[f"{n}.{p}"] - getattr(pair, p) for n, pair in view.adapter.factors.items() for p in "AB"}


# The probe and the choice


@pytest.mark.parametrize("steps, probed", [(0, RATES), (2, RATES[:2]), (5, (*RATES, 0.1, 0.1))])
@pytest.mark.parametrize("part", ["B", "A", "AB"])
def test_a_client_trains_the_slots_with_the_highest_scores_of_a_dense_probe(part, steps, probed):
    view = choosing(part, steps=steps)
    update = answers_of(task_of({"client-0": view}))["client-0"]
    free = replace(view, choice=None)
    expected = dense_choice(free, plainly(free, probed), BUDGET)
    assert all(np.array_equal(update.slots[name], expected[name]) for name in MODULES)
    assert len({int(slots.sum()) for slots in expected.values()}) > 1, "an even choice would be no test"
    # The round itself begins anew, in these slots alone.
    chosen = replace(free, slots=expected)
    change = plainly(chosen, RATES)
    assert distance(update.delta, chosen.gather({n: change[n] for n in update.delta})) < 1e-5
    assert update.steps == len(RATES)


def test_another_number_of_steps_can_pick_other_slots_and_another_budget_picks_nested_ones():
    slots = {
        (steps, budget): answers_of(task_of({"client-0": choosing("B", budget, steps)}))["client-0"].slots
        for steps, budget in ((1, 7), (3, 7), (3, 11), (3, 24))
    }
    assert any((slots[1, 7][n] != slots[3, 7][n]).any() for n in MODULES)
    assert all((slots[3, 7][n] <= slots[3, 11][n]).all() for n in MODULES)
    assert all(slots[3, 24][n].all() for n in MODULES)


@pytest.mark.parametrize(
    "work, steps, held, rows, rates",
    [
        ((12, (3.0, 2.0, 1.0)), 0, 12, 12, (3.0, 2.0, 1.0)),  # one epoch is the round
        ((60, (5.0, 4.0, 3.0, 2.0, 1.0)), 0, 12, 12, (5.0,)),  # the paper's: one of five epochs
        ((12, (3.0, 2.0, 1.0)), 0, 100, 12, (3.0, 2.0, 1.0)),  # an epoch would be longer than the round
        ((12, (3.0, 2.0, 1.0)), 0, 6, 8, (3.0, 2.0)),  # an epoch of one and a half steps
        ((12, (3.0, 2.0, 1.0)), 2, 12, 8, (3.0, 2.0)),
        ((12, (3.0, 2.0, 1.0)), 5, 12, 20, (3.0, 2.0, 1.0, 1.0, 1.0)),
        ((5, (2.0, 1.0)), 1, 3, 2, (2.0,)),
    ],
)
def test_a_probe_is_an_epoch_and_no_longer_than_the_round_unless_its_steps_are_given(work, steps, held, rows, rates):
    assert probe_work(Work("a", 4, *work), SlotChoice(1, steps), held) == Work("a", 4, rows, rates)


def test_scores_are_norms_of_dense_changes_and_ties_go_to_the_first():
    rng = np.random.default_rng(0)
    start = Adapter({m: Factors(rng.normal(size=(4, 9)), rng.normal(size=(6, 4))) for m in "yx"}, 4, 8.0)
    for parts in ("A", "B", "AB"):
        delta = {f"{m}.{p}": rng.normal(size=getattr(start.factors[m], p).shape) for m in "yx" for p in parts}
        learned = {f"{m}.{p}": getattr(start.factors[m], p) + delta.get(f"{m}.{p}", 0.0) for m in "yx" for p in "AB"}
        for budget in range(9):
            got, expected = best_slots(start, learned, budget), dense_choice(ClientModel(start), delta, budget)
            assert all(np.array_equal(got[m], expected[m]) for m in "yx")
    still = {f"{m}.{p}": getattr(start.factors[m], p) for m in "yx" for p in "AB"}
    assert [list(may) for may in best_slots(start, still, 5).values()] == [[True] * 4, [True, False, False, False]]


def mixed_views() -> dict[str, ClientModel]:
    return {
        "client-0": choosing("B", 3),
        "client-1": ClientModel(adapter_of(MODULES), ("B",), "B"),
        "client-2": choosing("B", 9),
    }


# In a cohort


@pytest.mark.parametrize("settings", [{}, {"optimizer": "adamw", "clients_at_once": 2}], ids=["sgd", "adamw"])
def test_the_slots_and_the_update_of_a_client_do_not_depend_on_the_cohort(settings):
    together = answers_of(task_of(mixed_views()), **settings)
    assert together["client-1"].slots == {}
    for client, view in mixed_views().items():
        alone = answers_of(task_of({client: view}), **settings)[client]
        assert same_bytes(alone.delta, together[client].delta) and same_bytes(alone.slots, together[client].slots)


def test_a_client_with_a_non_finite_probe_fails_alone_with_the_probe_as_the_reason():
    task = task_of(mixed_views())
    wild = Work("client-0", 0, 6, (1e30,) * 3)
    answers = answers_of(replace(task, work={**task.work, "client-0": wild}))
    failure = answers["client-0"]
    assert isinstance(failure, ClientFailure) and failure.detail.startswith("of its probe the ")
    well = answers_of(task)
    assert all(same_bytes(answers[c].delta, well[c].delta) for c in ("client-1", "client-2"))
    only = answers_of(replace(task, views={"client-0": choosing("B", 3)}, work={"client-0": wild}))
    assert list(only) == ["client-0"] and isinstance(only["client-0"], ClientFailure)


def test_progress_counts_the_tokens_but_not_the_steps_of_the_probe():
    reports = []
    answers_of(task_of({"client-0": choosing("B")}), observe=reports.append)
    rows = [report["client-0"] for report in reports]
    assert [row.step for row in rows] == [0, 0, 0, 1, 2, 3]
    assert [row.targets > 0 for row in rows] == [False] * 3 + [True] * 3
    tokens = [row.tokens for row in rows]
    assert tokens == sorted(set(tokens)) and tokens[5] == 2 * tokens[2]


@pytest.mark.parametrize("scaffold", [False, True])
def test_a_choice_passes_the_gate_as_a_message_to_the_last_bit(scaffold):
    task = task_of(mixed_views(), objective=Objective(scaffold=scaffold))
    for client, update in answers_of(task).items():
        message = pack(update, Envelope("", "n", "", "", 4, 2.0))
        got, plain = Gate().admit(Sealed(client, message, update.private), task), Gate().admit(update, task)
        assert isinstance(got, ClientUpdate) and isinstance(plain, ClientUpdate)
        assert same_bytes(got.delta, plain.delta) and same_bytes(got.slots, update.slots)
        size = sum(array.nbytes for array in (*update.delta.values(), *update.slots.values()))
        assert len(message) == 8 + int.from_bytes(message[:8], "little") + size == len(message) - size + update.nbytes
        budget = {"client-0": 3, "client-1": 24, "client-2": 9}[client]
        changes = {n: d for n, d in update.delta.items() if not n.endswith(".control")}
        assert sum(delta.shape[1] for delta in changes.values()) == budget
