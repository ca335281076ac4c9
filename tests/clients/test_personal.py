"""Personalization in training: local parts, and the second adapter of Ditto."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from plain_client import train_plainly
from shepherd.clients.personal.methods import own_adapter, personalizations, second_adapter
from shepherd.clients.settings import LocalTraining
from shepherd.clients.training import TrainingHost, train
from shepherd.errors import ClientError
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.types import ClientModel, Factors, Objective, TrainTask, Work
from tiny_training import adapter_for, base_model, distance, same_bytes, some_data, targets_of

RATES = (3e-3, 2e-3, 1e-3)
MODULES = targets_of(base_model())
DATA = some_data()
ADAPTER = adapter_for(MODULES)


def one_round(views, private=None, first=0, objective=None, control=None, **settings):
    model = base_model()
    modules = targets_of(model)
    work = {client: Work(client, first, 2 * len(RATES), RATES) for client in views}
    task = TrainTask(1, views, 7, work, {}, objective or Objective(), control or {})
    local = LocalTraining(weight_decay=0.5, **settings)
    found = train(task, private or {}, TrainingHost(PackedModel(model), lambda: CohortLora(modules), local, DATA))
    return {update.client: update for update in found}


def moved(adapter, update):
    """The adapter after an update of both factors."""
    factors = {
        n: Factors(A + update.delta.get(f"{n}.A", 0), B + update.delta.get(f"{n}.B", 0))
        for n, (A, B) in adapter.factors.items()
    }
    return replace(adapter, factors=factors)


# Local parts


def test_local_parts_are_restored_in_the_next_round_of_the_client():
    view = ClientModel(ADAPTER, sends="A")
    both = one_round({"client-0": ClientModel(ADAPTER)})["client-0"]
    home = one_round({"client-0": view})["client-0"]
    assert {name.rsplit(".", 1)[1] for name in home.delta} == {"A"}
    assert {name.split("/")[0] for name in home.private} == {"home"}
    assert same_bytes(home.delta, {n: d for n, d in both.delta.items() if n.endswith(".A")})
    after = moved(ADAPTER, both)  # the server has one client: it takes its A over and knows no B
    served = replace(ADAPTER, factors={n: Factors(after.factors[n].A, ADAPTER.factors[n].B) for n in ADAPTER.factors})
    again = one_round({"client-0": replace(view, adapter=served)}, {"client-0": home.private}, first=6)["client-0"]
    whole = one_round({"client-0": ClientModel(own_adapter(replace(view, adapter=served), home.private))}, first=6)[
        "client-0"
    ]
    assert again.metrics == whole.metrics
    assert same_bytes(again.delta, {n: d for n, d in whole.delta.items() if n.endswith(".A")})
    for name, pair in after.factors.items():
        np.testing.assert_allclose(home.private[f"home/{name}.B"], pair.B, atol=1e-7)


def test_local_parts_have_no_control_variate_and_the_client_keeps_both_factors():
    view, objective = ClientModel(ADAPTER, sends="A"), Objective(scaffold=True)
    c = {f"{name}.A": np.full(pair.A.shape, 0.1, np.float32) for name, pair in ADAPTER.factors.items()}
    update = one_round({"client-0": view}, objective=objective, control=c)["client-0"]
    assert {name.split(".", 1)[0].split("/")[0] for name in update.private} == {"control", "home"}
    assert all(name.endswith((".A", ".A.control")) for name in update.delta)
    assert not any(name.startswith("control/") and name.endswith(".B") for name in update.private)


def test_a_local_part_of_another_rank_is_refused_with_the_name_of_the_module():
    home = {f"home/{name}.B": pair.B[:, :2] for name, pair in ADAPTER.factors.items()}
    with pytest.raises(ClientError, match=r"the client keeps .*\.B\[24, 2\], its view has \[24, 4\]"):
        one_round({"client-0": ClientModel(ADAPTER, sends="A")}, {"client-0": home})


def test_a_client_model_without_local_parts_keeps_no_state():
    for view in (
        ClientModel(ADAPTER),
        ClientModel(ADAPTER, trains=("B",), sends="B"),
        ClientModel(ADAPTER, trains=("B", "A")),
    ):
        assert one_round({"client-0": view})["client-0"].private == {}


def test_local_parts_that_a_round_does_not_train_are_kept_from_earlier_rounds():
    views = {part: ClientModel(ADAPTER, trains=(part,), sends=part) for part in "BA"}  # RoLoRA's rounds
    objective = Objective(scaffold=True)
    first = one_round({"client-0": views["B"]}, objective=objective)["client-0"].private
    second = one_round({"client-0": views["A"]}, {"client-0": first}, objective=objective)["client-0"].private
    assert {name.rsplit(".", 1)[1] for name in first} == {"B"}
    assert {name.rsplit(".", 1)[1] for name in second} == {"A", "B"}
    assert all(second[name].tobytes() == array.tobytes() and array.any() for name, array in first.items())


def ditto(**options):
    return personalizations.build("ditto", options)


# Ditto


@pytest.mark.parametrize("form", ["factors", "product"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("ratio", [1.0, 3.0])
def test_the_proximal_gradient_of_ditto_matches_autograd(form, optimizer, ratio):
    own = {n: Factors(A * 1.5, B * -0.5) for n, (A, B) in ADAPTER.factors.items()}
    private = {"client-0": {f"personal/{n}.{p}": getattr(pair, p) for n, pair in own.items() for p in "AB"}}
    personal = ditto(strength=2.0, form=form)
    update = one_round(
        {"client-0": ClientModel(ADAPTER)}, private, personal=personal, optimizer=optimizer,
        objective=Objective(rate_ratio=ratio),
    )["client-0"]  # fmt: skip
    model = base_model()
    start = ClientModel(replace(ADAPTER, factors=own))
    after, losses, _ = train_plainly(
        model, targets_of(model), start, DATA["client-0"], "client-0", RATES,
        optimizer=optimizer, objective=replace(personal.pull, rate_ratio=ratio), anchor=ADAPTER,
    )  # fmt: skip
    expected = {name: after[name] - begin for name, begin in start.tensors().items()}
    got = {name: update.private[f"personal/{name}"] - begin for name, begin in start.tensors().items()}
    assert distance(got, expected) < 1e-5
    assert update.metrics["personal_loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_second_adapter_does_not_change_the_global_update():
    views = dict.fromkeys(DATA, ClientModel(ADAPTER))
    plain, beside = one_round(views), one_round(views, personal=ditto(), clients_at_once=2)
    for client in DATA:
        assert same_bytes(plain[client].delta, beside[client].delta)
        assert {name.split("/")[0] for name in beside[client].private} == {"personal"}


def test_ditto_of_strength_zero_is_local_training_over_the_rounds():
    view = ClientModel(ADAPTER)
    first = one_round({"client-0": view}, personal=ditto(strength=0.0))["client-0"]
    other = replace(
        view, adapter=replace(ADAPTER, factors={n: Factors(A * 0, B) for n, (A, B) in ADAPTER.factors.items()})
    )
    second = one_round({"client-0": other}, {"client-0": first.private}, first=6, personal=ditto(strength=0.0))[
        "client-0"
    ]
    alone = one_round({"client-0": ClientModel(second_adapter(view, first.private))}, first=6)["client-0"]
    expected = moved(second_adapter(view, first.private), alone)
    for name, pair in second_adapter(view, second.private).factors.items():
        np.testing.assert_allclose(pair.A, expected.factors[name].A, atol=1e-7)
        np.testing.assert_allclose(pair.B, expected.factors[name].B, atol=1e-7)


def test_a_strong_pull_keeps_the_second_adapter_near_the_global_one():
    ways = {}
    for strength in (0.0, 200.0):
        options = dict(optimizer="sgd", max_grad_norm=0.0, personal=ditto(strength=strength))
        update = one_round({"client-0": ClientModel(ADAPTER)}, **options)["client-0"]
        own = second_adapter(ClientModel(ADAPTER), update.private)
        ways[strength] = sum(np.abs(pair.B - ADAPTER.factors[n].B).sum() for n, pair in own.factors.items())
    assert ways[200.0] < 0.8 * ways[0.0]


def test_a_client_with_a_non_finite_second_adapter_fails_alone():
    broken = {f"personal/{n}.{p}": getattr(pair, p) * np.nan for n, pair in ADAPTER.factors.items() for p in "AB"}
    found = one_round(dict.fromkeys(DATA, ClientModel(ADAPTER)), {"client-1": broken}, personal=ditto())
    assert (found["client-1"].code, found["client-1"].detail) == (
        "diverged", "of its second adapter the loss became nan in local step 1",
    )  # fmt: skip
    healthy = one_round(dict.fromkeys(DATA, ClientModel(ADAPTER)), personal=ditto())
    for client in ("client-0", "client-2"):
        assert same_bytes(found[client].private, healthy[client].private)
