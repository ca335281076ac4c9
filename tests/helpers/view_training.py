"""Training of client models in a cohort and by plain autograd."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from plain_client import train_plainly
from shepherd.clients.settings import LocalTraining
from shepherd.clients.training import TrainingHost, train
from shepherd.model.adapter import fresh_adapter
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.model.slots import features
from shepherd.types import Adapter, ClientModel, ClientUpdate, Core, Factors, Objective, TrainTask, Work
from tiny_training import base_model, some_data, targets_of

RATES = (3e-3, 2e-3, 1e-3)
ROUNDING = 1e-5  # as in cohort_training.py; the largest error observed here is 2e-6, AdamW included
OPTIMIZERS = ("adamw", "sgd")


def adapter_of(modules, r=4, alpha=8.0, seed=3) -> Adapter:
    sizes = {name: features(module) for name, module in modules.items()}
    adapter = fresh_adapter(sizes, r, alpha, seed)
    for pair in adapter.factors.values():
        pair.B[:] = np.random.default_rng(seed).normal(0, 0.1, pair.B.shape)
    return adapter


def updates_of(
    views, data, model=None, rates=RATES, remainder=None, objective=None, control=None, private=None, **settings
) -> dict[str, ClientUpdate]:
    """The updates of a cohort in which client k has client model k."""
    model = model or base_model()
    modules = targets_of(model)
    named = dict(zip(sorted(data), views, strict=False)) if not isinstance(views, dict) else views
    work = {client: Work(client, 0, 2 * len(rates), tuple(rates)) for client in named}
    local = LocalTraining(**{"weight_decay": 0.5, **settings})
    task = TrainTask(1, named, 7, work, remainder or {}, objective or Objective(), control or {})
    results = train(task, private or {}, TrainingHost(PackedModel(model), lambda: CohortLora(modules), local, data))
    return {update.client: update for update in results}


def plainly(view, data, client, model=None, rates=RATES, **options):
    """(expected delta by the names of sent tensors, losses, new control variates) by plain autograd."""
    model = model or base_model()
    after, losses, control = train_plainly(model, targets_of(model), view, data[client], client, rates, **options)
    begins = replace(view, slots=None).tensors()
    changes = {name: after[name] - begin for name, begin in begins.items()}
    assert not any(others(view, name, change).any() for name, change in changes.items())
    return {name: mine(view, name, change) for name, change in changes.items()}, losses, control


def mine(view, name, whole) -> np.ndarray:
    """The slots of a whole tensor that the client may train, which should all be sent."""
    return whole if view.slots is None else _pick(view, name, whole, lambda may: may)


def others(view, name, whole) -> np.ndarray:
    """The slots of a whole tensor that the client may not train."""
    return whole[:0] if view.slots is None else _pick(view, name, whole, lambda may: ~may)


def _pick(view, name, whole, which) -> np.ndarray:
    module, part = name.rsplit(".", 1)
    may = which(view.slots[module])
    return whole[:, may] if part == "B" else whole[may[:: len(may) // len(whole)]]


MODULES = targets_of(base_model())
DATA = some_data()


def some_slots(r=4, seed=0):
    rng = np.random.default_rng(seed)
    slots = {name: rng.random(r) < 0.5 for name in MODULES}
    next(iter(slots.values()))[:] = False  # a module of which nothing moves
    return slots


def core_view(heads: int, r: int = 4, **changes) -> ClientModel:
    rng = np.random.default_rng(heads)
    draw = lambda *shape: rng.normal(0, 0.3, shape).astype(np.float32)  # noqa: E731
    adapter = adapter_of(MODULES, r)
    basis = {name: draw(features(module)[1], r) for name, module in MODULES.items()}
    values = {name: draw(heads, r // heads, r // heads) for name in MODULES}
    factors = {
        name: Factors(A, (basis[name] @ torch.block_diag(*torch.tensor(values[name])).numpy()))
        for name, (A, _) in adapter.factors.items()
    }
    changed = replace(adapter, factors=factors)
    return ClientModel(changed, **{"trains": ("B",), "sends": "core", "core": Core(basis, values), **changes})
