"""LoRA-A² (2410.22815): a probe picks each client's slots, and they alone move, travel and count."""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from test_training_views import DATA, MODULES, adapter_of

from federations import SEED, SHAPES, WEIGHTS, R, a_round, assert_near, begin, dense_choice, in_dense_form, whole
from plain_client import train_plainly
from shepherd.cli.settings import gather
from shepherd.clients.settings import LocalTraining
from shepherd.clients.slots import best_slots, probe_work
from shepherd.clients.training import TrainingHost, train
from shepherd.errors import ClientError
from shepherd.experiment.estimate import plan
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.server.diagnostics import diagnose
from shepherd.server.methods import build_method
from shepherd.server.traffic import round_bytes
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
PART = {1: "B", 2: "A"}


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
def test_a_client_moves_the_slots_that_dense_scores_of_a_plain_probe_pick_over_the_whole_model(part, steps, probed):
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


# In a cohort


def mixed_views() -> dict[str, ClientModel]:
    return {
        "client-0": choosing("B", 3),
        "client-1": ClientModel(adapter_of(MODULES), ("B",), "B"),
        "client-2": choosing("B", 9),
    }


@pytest.mark.parametrize("settings", [{}, {"optimizer": "adamw", "clients_at_once": 2}], ids=["sgd", "adamw"])
def test_who_trains_beside_a_client_changes_neither_its_slots_nor_a_bit_of_its_update(settings):
    together = answers_of(task_of(mixed_views()), **settings)
    assert together["client-1"].slots == {}
    for client, view in mixed_views().items():
        alone = answers_of(task_of({client: view}), **settings)[client]
        assert same_bytes(alone.delta, together[client].delta) and same_bytes(alone.slots, together[client].slots)


def test_a_client_whose_probe_is_not_finite_fails_alone_and_says_that_it_was_the_probe():
    task = task_of(mixed_views())
    wild = Work("client-0", 0, 6, (1e30,) * 3)
    answers = answers_of(replace(task, work={**task.work, "client-0": wild}))
    failure = answers["client-0"]
    assert isinstance(failure, ClientFailure) and failure.detail.startswith("of its probe the ")
    well = answers_of(task)
    assert all(same_bytes(answers[c].delta, well[c].delta) for c in ("client-1", "client-2"))
    only = answers_of(replace(task, views={"client-0": choosing("B", 3)}, work={"client-0": wild}))
    assert list(only) == ["client-0"] and isinstance(only["client-0"], ClientFailure)


def test_progress_counts_the_probe_s_tokens_and_none_of_its_steps():
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


# On the server


def test_slots_that_a_client_does_not_own_count_as_no_change_and_not_by_their_owners_alone():
    method = build_method("lora_a2")
    model = begin(method)
    for number in (1, 2, 3):
        done = a_round(method, model, number, ranks={"a": 1, "b": 4, "c": 2})
        part = PART.get(number, "B")
        for module in SHAPES:
            mean = sum(WEIGHTS[u.client] * whole(done.views[u.client], u, f"{module}.{part}") for u in done.updates)
            before, after = done.before.adapter.factors[module], done.after.adapter.factors[module]
            assert_near(getattr(after, part) - getattr(before, part), mean, 1e-12)
            assert np.array_equal(getattr(after, "AB".replace(part, "")), getattr(before, "AB".replace(part, "")))
        model = done.after


@pytest.mark.parametrize("name", ["lora_a2", "fed_plora", "ravan"])
def test_the_diagnostics_of_owned_slots_are_those_of_all_slots(name):
    method = build_method(name)
    done = a_round(method, a_round(method, begin(method), 1).after, 2, ranks={"a": 1, "b": 4, "c": 2})
    one, other = (diagnose(done.before, done.after, d.views, d.updates, WEIGHTS) for d in (done, in_dense_form(done)))
    assert one == other and one.increment_norm["a"] > 0


def test_scaffold_s_control_variates_of_slots_that_did_not_travel_stay_as_they_were():
    method = replace(build_method("lora_a2"), population=dict.fromkeys(WEIGHTS, 1 / 3))
    model = begin(method)
    done = a_round(method, model, 1, ranks={"a": 1, "b": 4, "c": 2})
    doubled = tuple(
        replace(u, delta=u.delta | {f"{n}.control": 2 * d.astype(np.float32) for n, d in u.delta.items()})
        for u in done.updates
    )
    memory = replace(done, updates=doubled).after.memory
    for module in SHAPES:
        total = sum(2 * whole(done.views[u.client], u, f"{module}.B") for u in done.updates) / 3
        np.testing.assert_allclose(memory[f"control.{module}.B"], total, atol=1e-7)


def test_a_choice_that_did_not_pass_the_gate_ends_the_round_with_the_client_s_name():
    method = build_method("lora_a2")
    done = a_round(method, begin(method), 1, ranks={"a": 1, "b": 4, "c": 2})
    without = tuple(replace(u, slots={}) for u in done.updates)
    with pytest.raises(ClientError, match=r"^a: slots of 0 modules, expected 2; o is missing"):
        replace(done, updates=without).after  # noqa: B018
    other = replace(done.updates[1], slots=dict.fromkeys(SHAPES, np.ones(R, bool)))
    with pytest.raises(ClientError, match=r"^b: slots of 2 modules, and the client was to choose none"):
        replace(done, updates=(done.updates[0], other, done.updates[2])).after  # noqa: B018


def test_a_client_of_the_whole_rank_has_rolora_s_view_and_no_probe():
    a2, rolora = build_method("lora_a2"), build_method("rolora")
    for number in (1, 2):
        view, other = (method.view(begin(method), "a", R, number, SEED) for method in (a2, rolora))
        assert view.choice is view.slots is None
        assert (view.trains, view.sends) == (other.trains, other.sends) == ((PART[number],), PART[number])
        assert same_bytes(view.tensors(), other.tensors())


def test_who_is_yet_to_choose_gets_all_of_scaffold_s_control_variate():
    adapter = Adapter({"q": Factors(np.zeros((4, 10)), np.zeros((30, 4)))}, 4, 8.0)
    # B of 30 numbers a slot in odd rounds, A of 10 in even ones, 4 bytes each: all 4 slots down, and c beside it.
    for number, width in ((1, 30), (2, 10)):
        assert round_bytes(build_method("lora_a2"), adapter, number, [1, 2])[1] == 2 * 4 * width * 4
        assert round_bytes(build_method("lora_a2"), adapter, number, [1, 2], scaffold=True)[1] == 2 * 2 * 4 * width * 4


# A whole run

SMALL = (
    "federation.rounds=3", "evaluation.arms=base,federated", "evaluation.generate=0", "training.local_steps=2",
    "lora.r=4", "lora.alpha=8", "lora.targets=down_proj",
)  # fmt: skip


def test_the_plan_and_the_progress_know_of_the_probe(run_small):
    mixed = run_small(*SMALL, "federation.method=lora_a2", "lora.ranks=[2]")
    equal = mixed.config.model_copy(update={"lora": mixed.config.lora.model_copy(update={"ranks": ()})})
    # Two steps of a probe before two steps of a round.
    assert plan(mixed.config).tokens["federated"] == 2 * plan(equal).tokens["federated"]
    shares = [event["fraction"] for event in mixed.events if event["event"] == "step"]
    assert shares == sorted(shares) and shares[-1] > 0.9 and shares[len(shares) // 2 - 1] < 0.6


def test_with_all_ranks_whole_a_run_is_rolora_s_to_the_last_bit(run_small):
    runs = [run_small(*SMALL, f"federation.method={m}", "objective.rate_ratio=5") for m in ("rolora", "lora_a2")]
    assert runs[0].summary["adapter_sha256"] == runs[1].summary["adapter_sha256"]
    assert runs[0].summary["bytes_up"] == runs[1].summary["bytes_up"]


def test_a_run_of_mixed_ranks_sends_what_its_clients_chose_and_its_adapter_has_the_reported_loss(run_small):
    run = run_small(*SMALL, "federation.method=lora_a2", "lora.ranks=[1,4,2]")
    assert run.summary["arms"]["federated"]["loss"] < run.summary["arms"]["base"]["loss"]
    assert abs(run.summary["reload_check"]["difference"]) < 1e-4
    lines = [json.loads(line) for line in (run.path / "rounds.jsonl").read_text().splitlines()]
    A, B, modules = 4 * 48, 4 * 32, 2  # bytes of a slot of down_proj
    for line, slot in zip(lines, (B, A, B), strict=True):
        ranks = [[1, 4, 2][i % 3] for i in range(len(line["cohort"]))]
        choices = sum(4 * modules for rank in ranks if rank < 4)
        assert line["bytes_up"] == sum(rank * modules * slot for rank in ranks) + choices


def test_the_method_brings_its_ratio_of_rates_a_recipe_overrides_it_and_the_run_says_which_it_was(run_small):
    of = lambda *overrides: gather(None, ("federation.method=lora_a2", *overrides), default_recipe="demo")  # noqa: E731
    assert of().config.objective.rate_ratio == 5.0 and of().origins["objective.rate_ratio"] == "method lora_a2"
    own = of("objective.rate_ratio=2")
    assert own.config.objective.rate_ratio == 2.0 and own.origins["objective.rate_ratio"] == "--set"
    assert "objective.rate_ratio" not in gather(None, ("federation.method=rolora",)).origins
    used = {}
    for name, overrides in {"own": (), "one": ("objective.rate_ratio=1",), "five": ("objective.rate_ratio=5",)}.items():
        run = run_small(*SMALL, "federation.rounds=1", "federation.method=lora_a2", *overrides)
        written = tomllib.loads((run.path / "config.toml").read_text())["objective"]["rate_ratio"]
        used[name] = (written, run.summary["adapter_sha256"])
    assert used["own"] == used["five"] and used["own"][0] == 5.0
    assert used["one"][0] == 1.0 and used["one"][1] != used["own"][1]
