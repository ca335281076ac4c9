"""Local modules in training: messages, state of the client, and personal adapters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from plain_client import train_plainly
from shepherd.clients.personal.methods import own_adapter
from shepherd.clients.settings import LocalTraining
from shepherd.clients.training import TrainingHost, train
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.types import ClientModel, Factors, Objective, TrainTask, Work
from shepherd.updates.gate import Gate
from shepherd.updates.wire import Envelope, Sealed, pack
from tiny_training import adapter_for, base_model, distance, same_bytes, some_data, targets_of

RATES = (3e-3, 2e-3, 1e-3)
MODULES = targets_of(base_model())
DATA = some_data()
ADAPTER = adapter_for(MODULES)
LAST = frozenset(name for name in MODULES if ".1." in name)
BELOW = MODULES.keys() - LAST
VIEW = ClientModel(ADAPTER, local_modules=LAST)


def task_of(views, number=1, first=0, objective=None, c=None) -> TrainTask:
    work = {client: Work(client, first, 2 * len(RATES), RATES) for client in views}
    return TrainTask(number, views, 7, work, {}, objective or Objective(), c or {})


def one_round(view, private=None, **settings):
    """The update of client-0."""
    model = base_model()
    task = task_of({"client-0": view}, **settings)
    lora = lambda: CohortLora(targets_of(model))  # noqa: E731
    kept = {"client-0": private or {}}
    (update,) = train(task, kept, TrainingHost(PackedModel(model), lora, LocalTraining(weight_decay=0.5), DATA))
    return update


def plainly(adapter, first=0, **options):
    model = base_model()
    return train_plainly(
        model, targets_of(model), ClientModel(adapter), DATA["client-0"], "client-0", RATES, first=first, **options
    )


def adapter_of(tensors):
    return replace(ADAPTER, factors={n: Factors(tensors[f"{n}.A"], tensors[f"{n}.B"]) for n in MODULES})


def parts(tensors, modules, prefix=""):
    return {name: tensors[prefix + name] for name in (f"{m}.{part}" for m in sorted(modules) for part in "AB")}


def served(tensors):
    """The adapter sent by a server whose only client has trained these tensors, without the local modules."""
    start = {f"{n}.{part}": getattr(pair, part) for n, pair in ADAPTER.factors.items() for part in "AB"}
    return adapter_of({**start, **parts(tensors, BELOW)})


def test_messages_contain_no_local_modules_and_the_gate_rejects_them():
    objective = Objective(scaffold=True)
    update, task = one_round(VIEW, objective=objective), task_of({"client-0": VIEW}, objective=objective)
    assert {name.removesuffix(".control") for name in update.delta} == set(parts(VIEW.tensors(), BELOW))
    assert set(update.private) == {*parts_named(LAST, "home/"), *parts_named(BELOW, "control/")}

    def admitted(update):
        message = pack(update, Envelope("run", "1", "", "", ADAPTER.r, ADAPTER.scale))
        assert all(name.encode() in message for name in BELOW)
        return message, Gate(run="run").admit(Sealed("client-0", message), task)

    message, answer = admitted(update)
    assert not any(name.encode() in message for name in LAST)
    assert same_bytes(answer.delta, update.delta)
    told = {name.removeprefix("home/"): array for name, array in update.private.items() if name.startswith("home/")}
    assert admitted(replace(update, delta=update.delta | told))[1].code in ("tensors", "too-large")


def test_local_modules_are_trained_like_shared_ones():
    update, whole = one_round(VIEW), one_round(ClientModel(ADAPTER))
    assert same_bytes(update.delta, parts(whole.delta, BELOW)) and update.metrics == whole.metrics
    after, _, _ = plainly(ADAPTER)
    assert distance(parts(update.private, LAST, "home/"), parts(after, LAST)) < 1e-5
    assert one_round(ClientModel(ADAPTER)).private == {}


@pytest.mark.parametrize("scaffold", [False, True])
def test_the_second_round_of_a_client_starts_from_its_local_blocks_and_the_shared_ones(scaffold):
    # Textbook autograd on both rounds: of the local modules go on the values, and there is nothing to correct them.
    objective = Objective(scaffold=scaffold)
    after, _, controls = plainly(ADAPTER, objective=objective)
    first = one_round(VIEW, objective=objective)
    c = {name: 0.3 * controls[name] for name in parts(controls, BELOW)}  # the server's: the mean with two clients at 0
    mixed = replace(VIEW, adapter=served({**after, **{name: 0.7 * after[name] for name in parts(after, BELOW)}}))
    start = adapter_of({**mixed.tensors(), **parts(after, LAST)})
    own = parts(controls, BELOW)
    expected, losses, _ = plainly(start, first=6, objective=objective, control=c, own_control=own)
    second = one_round(mixed, first.private, number=2, first=6, objective=objective, c=c if scaffold else {})
    assert second.metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    begins = mixed.tensors()
    assert distance({n: second.delta[n] for n in begins}, {n: expected[n] - a for n, a in begins.items()}) < 1e-5
    assert distance(parts(second.private, LAST, "home/"), parts(expected, LAST)) < 1e-5
    without = one_round(mixed, {}, number=2, first=6, objective=objective)
    assert abs(without.metrics["loss"] - np.mean(losses)) > 1e-3  # the difference that it makes


def test_a_local_factor_that_a_round_does_not_train_is_kept_by_the_client():
    # RoLoRA: B in odd rounds, A in even ones. The local B of round 1 is in force in round 2, where A moves.
    first = one_round(replace(VIEW, trains=("B",), sends="B"))
    even = replace(VIEW, trains=("A",), sends="A")
    second = one_round(even, first.private, number=2, first=6)
    for name in LAST:
        kept, before = (update.private[f"home/{name}.B"] for update in (second, first))
        assert kept.tobytes() == before.tobytes() != ADAPTER.factors[name].B.tobytes()
        assert second.private[f"home/{name}.A"].tobytes() != ADAPTER.factors[name].A.tobytes()
    own = own_adapter(even, first.private)
    alone = one_round(ClientModel(own, trains=("A",), sends="A"), number=2, first=6)
    assert same_bytes(second.delta, {n: d for n, d in alone.delta.items() if n.rsplit(".", 1)[0] in BELOW})


def test_a_factor_and_modules_can_both_be_local():
    update = one_round(replace(VIEW, sends="A"))  # FedSA-LoRA below, FedPer above
    assert set(update.delta) == {f"{name}.A" for name in BELOW}
    assert set(update.private) == {*(f"home/{name}.B" for name in BELOW), *parts_named(LAST, "home/")}


def test_a_personal_adapter_combines_shared_and_local_blocks_and_needs_a_round():
    update = one_round(VIEW)
    own = own_adapter(VIEW, update.private)
    for name, pair in own.factors.items():
        kept = ADAPTER.factors[name] if name in BELOW else [update.private[f"home/{name}.{part}"] for part in "AB"]
        assert [x.tobytes() for x in pair] == [x.tobytes() for x in kept]
    assert own_adapter(VIEW, {}) is None
    assert own_adapter(VIEW, {f"control/{next(iter(LAST))}.A": np.zeros(1)}) is None


def parts_named(modules, prefix):
    return {f"{prefix}{name}.{part}" for name in modules for part in "AB"}
