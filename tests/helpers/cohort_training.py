"""Joint training of a cohort with equal settings for all clients."""

from __future__ import annotations

import pytest

from shepherd.clients.settings import LocalTraining
from shepherd.clients.training import TrainingHost, train
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.types import ClientFailure, ClientModel, ClientUpdate, TrainTask, Work
from tiny_training import (
    adapter_for,
    base_model,
    distance,
    targets_of,
)

RATES = (3e-3, 2e-3, 1e-3)


def cohort_updates(
    data, kind="llama", model=None, rates=RATES, first=None, order=None, lora_dropout=0.0, **settings
) -> dict[str, ClientUpdate | ClientFailure]:
    model = model or base_model(kind)
    modules = targets_of(model, kind)
    adapter = adapter_for(modules)
    work = {c: Work(c, (first or {}).get(c, 0), 2 * len(rates), tuple(rates)) for c in (order or sorted(data))}
    local = LocalTraining(dropout=lora_dropout, **{"weight_decay": 0.5, "max_grad_norm": 1.0, **settings})
    make = lambda: CohortLora(modules, dropout=lora_dropout)  # noqa: E731
    task = TrainTask(1, dict.fromkeys(work, ClientModel(adapter)), 7, work)
    results = train(task, {}, TrainingHost(PackedModel(model), make, local, data))
    return {result.client: result for result in results}


ROUNDING = 1e-5


def assert_same_update(a: ClientUpdate, b: ClientUpdate) -> None:
    assert a.metrics["loss"] == pytest.approx(b.metrics["loss"], rel=1e-5)
    assert distance(a.delta, b.delta) < ROUNDING


def bytes_of(update: ClientUpdate) -> bytes:
    return b"".join(update.delta[name].tobytes() for name in sorted(update.delta)) + repr(update.metrics).encode()
