"""Training of the local adapter of FedDPA with the global one frozen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from feddpa_models import DATA, LOCAL, SHARED, another, increment, put_into_base
from plain_client import train_plainly
from prepared import plan_of, trainer_of
from shepherd.clients.cohort import Cohort
from shepherd.clients.personal.feddpa import beside_shared, initial_local
from shepherd.clients.personal.joined import joined
from shepherd.clients.personal.methods import personalizations
from shepherd.clients.personal.mixture import hidden_states, prompt_of
from shepherd.clients.settings import LocalTraining
from shepherd.clients.training import TrainingHost, train
from shepherd.errors import ModelError
from shepherd.experiment.personal_models import mixtures, personal_models
from shepherd.experiment.rows import prepare_rows
from shepherd.experiment.schedule import prepare_schedule
from shepherd.model.base import load_base
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.types import Adapter, ClientModel, GlobalModel, ServerState, TrainTask, Work
from tiny_training import base_model, distance, same_bytes, targets_of

RATES = (3e-3, 2e-3, 1e-3)

# Joined adapters


@pytest.mark.parametrize("rslora", [False, True])
def test_the_increment_of_joined_adapters_is_the_weighted_sum_of_both(rslora):
    first, second = another(SHARED, 3, 5.0, 1, rslora), another(SHARED, 2, 7.0, 2, rslora)
    both = joined(first, second, (0.3, 0.7))
    for name in SHARED.factors:
        expected = 0.3 * increment(first, name) + 0.7 * increment(second, name)
        np.testing.assert_allclose(increment(both, name), expected, atol=1e-6)
        assert both.factors[name].A[3:].tobytes() == second.factors[name].A.tobytes()
        assert both.factors[name].B[:, 3:].tobytes() == second.factors[name].B.tobytes()


def test_adapters_of_other_modules_cannot_be_joined():
    some = replace(LOCAL, factors=dict(list(LOCAL.factors.items())[1:]))
    with pytest.raises(ModelError, match=rf"{next(iter(LOCAL.factors))} is in one of them only"):
        joined(SHARED, some)


def feddpa(**options):
    return personalizations.build("feddpa", options)


def one_round(views, private=None, data=DATA, **settings):
    model = base_model()
    modules = targets_of(model)
    work = {client: Work(client, 0, 2 * len(RATES), RATES) for client in views}
    task = TrainTask(1, views, 7, work)
    local = LocalTraining(weight_decay=0.5, **settings)
    found = train(task, private or {}, TrainingHost(PackedModel(model), lambda: CohortLora(modules), local, data))
    return {update.client: update for update in found}


def kept(adapter: Adapter):
    return {f"personal/{n}.{part}": getattr(pair, part) for n, pair in adapter.factors.items() for part in "AB"}


# Training


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_variant_T_trains_the_local_adapter_at_weight_a_with_the_global_one_frozen_at_the_rest(
    optimizer,
):
    update = one_round(
        {"client-0": ClientModel(SHARED)}, {"client-0": kept(LOCAL)}, optimizer=optimizer,
        personal=feddpa(variant="T", share=0.3),
    )["client-0"]  # fmt: skip
    model = base_model()
    modules = targets_of(model)
    put_into_base(modules, [(SHARED, 0.7)])
    weighted = ClientModel(replace(LOCAL, alpha=0.3 * LOCAL.alpha))
    after, losses, _ = train_plainly(model, modules, weighted, DATA["client-0"], "client-0", RATES, optimizer=optimizer)
    begin = weighted.tensors()
    expected = {name: after[name] - begin[name] for name in begin}
    assert distance({name: update.private[f"personal/{name}"] - begin[name] for name in begin}, expected) < 1e-5
    assert update.metrics["personal_loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_frozen_global_slots_keep_their_bits_and_the_local_slots_are_trained():
    model = base_model()
    lora = CohortLora(targets_of(model))
    view = beside_shared(SHARED, LOCAL, 0.5)
    cohort = Cohort(PackedModel(model), lora, LocalTraining(weight_decay=0.5), {"client-0": view}, DATA, 7)
    cohort.run([Work("client-0", 0, 6, RATES)], 1, lambda report: None)
    for name, (A, B) in lora.read(0).items():
        before = view.adapter.factors[name]
        assert A[:4].tobytes() == before.A[:4].tobytes() and B[:, :4].tobytes() == before.B[:, :4].tobytes()
        assert (A[4:] != before.A[4:]).any() and (B[:, 4:] != before.B[:, 4:]).any()


def test_the_local_adapter_is_not_part_of_the_update_message():
    views = dict.fromkeys(DATA, ClientModel(SHARED))
    plain, both = one_round(views), one_round(views, personal=feddpa(variant="T"), clients_at_once=2)
    for client in DATA:
        assert same_bytes(plain[client].delta, both[client].delta)
        assert set(both[client].delta) == set(ClientModel(SHARED).tensors())
        assert set(both[client].private) == {f"personal/{name}" for name in ClientModel(SHARED).tensors()}


def test_the_local_adapter_of_a_client_does_not_depend_on_the_cohort():
    personal = feddpa(variant="T")
    all_ = one_round(dict.fromkeys(DATA, ClientModel(SHARED)), personal=personal)
    for client in DATA:
        assert same_bytes(
            all_[client].private, one_round({client: ClientModel(SHARED)}, personal=personal)[client].private
        )


def test_variant_T_starts_the_local_adapter_with_a_zero_increment_and_continues_from_the_kept_one():
    first, second = initial_local(SHARED, 7, "a"), initial_local(SHARED, 7, "b")
    for name, (A, B) in first.factors.items():
        assert not B.any() and A.any() and A.shape == SHARED.factors[name].A.shape
        assert (A != second.factors[name].A).any() and (A != SHARED.factors[name].A).any()
    assert first.scale == SHARED.scale
    personal, view = feddpa(variant="T"), {"client-0": ClientModel(SHARED)}
    fresh = one_round(view, personal=personal)["client-0"].private
    given = one_round(view, {"client-0": kept(initial_local(SHARED, 7, "client-0"))}, personal=personal)[
        "client-0"
    ].private
    again = one_round(view, {"client-0": fresh}, personal=personal)["client-0"].private
    assert same_bytes(fresh, given) and not same_bytes(fresh, again)


def test_each_variant_trains_only_in_its_phase():
    assert one_round({"client-0": ClientModel(SHARED)}, personal=feddpa(variant="F"))["client-0"].private == {}


@pytest.fixture
def prepared(small_config):
    def prepare(*settings):
        config = small_config("training.optimizer=sgd", "training.learning_rate=0.1", *settings)
        base = load_base(config.model.base, device="cpu", dtype="float32")
        rows, _ = prepare_rows(config, base.tokenizer)
        trainer, plan = trainer_of(config, base), plan_of(config, rows)
        shared = replace(another(trainer.adapter, trainer.adapter.r, trainer.adapter.alpha))
        state = ServerState(1, GlobalModel(shared), cursors=dict.fromkeys(rows.clients, 3))
        return config, base, rows, trainer, plan, state

    return prepare


def test_variant_F_tunes_the_local_adapter_alone_from_the_global_one(prepared):
    found = {}
    for name in ("feddpa", "finetune"):
        config, _, rows, trainer, plan, state = prepared(f"personalization.name={name}", "personalization.steps=3")
        found[name], failures = personal_models(trainer, plan, rows, state, prepare_schedule(config))
        assert sorted(found[name]) == sorted(rows.clients) and not failures
    for client, model in found["feddpa"].items():
        assert same_bytes(
            ClientModel(model.adapter).tensors(), ClientModel(found["finetune"][client].adapter).tensors()
        )


def test_variant_F_with_a_share_tunes_the_local_adapter_with_the_global_one_frozen_at_the_rest(prepared):
    config, base, rows, trainer, plan, state = prepared(
        "personalization.name=feddpa", "personalization.steps=3", "personalization.share=0.4"
    )
    found, _ = personal_models(trainer, plan, rows, state, prepare_schedule(config))
    shared = state.model.adapter
    modules = {name: base.model.get_submodule(name) for name in shared.factors}
    put_into_base(modules, [(shared, 0.6)])
    for client in sorted(rows.clients)[:2]:
        view = ClientModel(replace(shared, alpha=0.4 * shared.alpha))
        after, _, _ = train_plainly(
            base.model, modules, view, rows.clients[client], client, (0.1,) * 3, optimizer="sgd",
            weight_decay=config.training.weight_decay, max_grad_norm=config.training.max_grad_norm,
            momentum=config.training.momentum, seed=config.run.seed, first=3,
        )  # fmt: skip
        begin = view.tensors()
        got = ClientModel(found[client].adapter).tensors()
        expected = {name: after[name] - begin[name] for name in begin}
        assert distance({n: got[n] - begin[n] for n in begin}, expected) < 1e-3
        assert found[client].adapter.scale == shared.scale


def test_anchors_depend_on_the_rows_of_the_client_alone(prepared):
    _, _, rows, trainer, _, state = prepared("personalization.name=feddpa", "personalization.samples=2")
    shared, names = state.model.adapter, sorted(rows.clients)
    all_ = mixtures(trainer, rows, shared, dict.fromkeys(reversed(names), shared), 3)
    for client in names[:3]:
        alone = mixtures(trainer, rows, shared, {client: shared}, 3)[client]
        assert alone.anchors.tobytes() == all_[client].anchors.tobytes()
        assert alone.anchors.shape == (2, 32) and alone.anchors.dtype == np.float32
        own = hidden_states(trainer.packed, trainer.make_lora(), shared, [prompt_of(r) for r in rows.clients[client]])
        chosen = {row.tobytes() for row in own}
        assert all(anchor.tobytes() in chosen for anchor in alone.anchors)
