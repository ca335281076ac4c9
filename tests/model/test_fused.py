"""Shared low-rank products, used on GPUs, against separate products per client; tested on a CPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from shepherd.clients.settings import LocalTraining
from shepherd.clients.training import TrainingHost, train
from shepherd.model import fused as together
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.types import Adapter, ClientFailure, ClientModel, Factors, TrainTask, Work
from tiny_training import adapter_for, base_model, distance, some_data, targets_of

RATES = (3e-3, 2e-3)


def updates(views: dict[str, ClientModel] | None = None, *, shared: bool, dropout: float = 0.0, **settings) -> dict:
    model, data = base_model(), some_data()
    modules = targets_of(model)
    views = views or dict.fromkeys(data, ClientModel(adapter_for(modules)))
    work = {client: Work(client, 0, 4, RATES) for client in data}

    def make_lora() -> CohortLora:
        lora = CohortLora(modules, dropout=dropout)
        lora.together = shared
        return lora

    local = LocalTraining(optimizer="sgd", dropout=dropout, **settings)
    answers = train(TrainTask(1, views, 7, work), {}, TrainingHost(PackedModel(model), make_lora, local, data))
    return {answer.client: answer for answer in answers}


def of_rank(rank: int, scale: float = 2.0) -> Adapter:
    whole = adapter_for(targets_of(base_model()))
    factors = {name: Factors(A[:rank], np.ascontiguousarray(B[:, :rank])) for name, (A, B) in whole.factors.items()}
    return Adapter(factors, rank, scale * rank)


@pytest.mark.parametrize("settings", [{}, {"dropout": 0.3}, {"gradient_checkpointing": True}, {"tokens_per_pass": 40}])
def test_shared_products_train_each_client_as_separate_products_do(settings, monkeypatch):
    passes, columns = [], together.Columns.of.__func__
    monkeypatch.setattr(together.Columns, "of", classmethod(lambda *a: passes.append(columns(*a)) or passes[-1]))
    own, shared = updates(shared=False, **settings), updates(shared=True, **settings)
    assert any(passes), "nothing was shared"
    for client in own:
        assert shared[client].metrics["loss"] == pytest.approx(own[client].metrics["loss"], rel=1e-6)
        assert distance(shared[client].delta, own[client].delta) < 1e-5


def test_ranks_scales_and_frozen_factors_of_each_client_are_kept():
    views = {
        "client-0": ClientModel(of_rank(1, 4.0)),
        "client-1": ClientModel(of_rank(4), trains=("B",), sends="B"),
        "client-2": ClientModel(of_rank(3, 0.5), trains=("A", "B")),
    }
    own, shared = updates(views, shared=False), updates(views, shared=True)
    for client in own:
        assert distance(shared[client].delta, own[client].delta) < 1e-5
    assert all(name.endswith(".B") for name in shared["client-1"].delta)


@pytest.mark.parametrize("poison", [np.nan, 1e38])
def test_a_diverging_client_does_not_affect_other_clients(poison):
    good = adapter_for(targets_of(base_model()))
    bad = replace(good, factors={n: Factors(A, np.full_like(B, poison)) for n, (A, B) in good.factors.items()})
    healthy = updates(shared=False)
    answers = updates({**dict.fromkeys(healthy, ClientModel(good)), "client-1": ClientModel(bad)}, shared=True)
    assert isinstance(answers["client-1"], ClientFailure) and answers["client-1"].code == "diverged"
    for client in ("client-0", "client-2"):
        assert distance(answers[client].delta, healthy[client].delta) < 1e-5


def test_a_pass_with_one_client_or_too_many_columns_shares_no_products(monkeypatch):
    monkeypatch.setattr(together, "WIDEST", 8)
    monkeypatch.setattr("shepherd.model.lora.AddLowRankTogether.apply", lambda *a: pytest.fail("shared"))
    assert len(updates(shared=True)) == 3  # 3 · 4 columns
