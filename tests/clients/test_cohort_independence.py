"""Updates do not depend on the other clients of a cohort or on its division into passes."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from cohort_training import assert_same_update, bytes_of, cohort_updates
from shepherd.clients.settings import LocalTraining
from shepherd.clients.training import TrainingHost, train
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.types import ClientFailure, ClientModel, TrainTask, Work
from tiny_training import (
    BASES,
    adapter_for,
    base_model,
    some_data,
    targets_of,
)


@pytest.mark.parametrize(
    "settings", [{"tokens_per_pass": 1}, {"tokens_per_pass": 17}, {"clients_at_once": 1}, {"clients_at_once": 2}]
)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_updates_do_not_depend_on_the_division_into_passes(settings, optimizer):
    data = some_data()
    whole = cohort_updates(data, optimizer=optimizer)
    cut = cohort_updates(data, optimizer=optimizer, **settings)
    for client in data:
        assert_same_update(cut[client], whole[client])


def test_dropout_masks_do_not_depend_on_the_division_into_passes():
    data = some_data()
    whole = cohort_updates(data, lora_dropout=0.3)
    for settings in ({"tokens_per_pass": 17}, {"clients_at_once": 1}, {"gradient_checkpointing": True}):
        cut = cohort_updates(data, lora_dropout=0.3, **settings)
        for client in data:
            assert_same_update(cut[client], whole[client])
    assert whole["client-0"].metrics["loss"] != cohort_updates(data)["client-0"].metrics["loss"]


def test_dropout_masks_differ_from_client_to_client_from_row_to_row_and_from_round_to_round():
    (row, *_) = some_data(1)["client-0"]
    data = {client: [row] for client in ("client-0", "client-1")}  # one and the same row, in every step
    still = (0.0, 0.0)
    rounds = [cohort_updates(data, rates=still, lora_dropout=0.3, first=dict.fromkeys(data, n)) for n in (0, 4)]
    metrics = [update.metrics for updates in rounds for update in updates.values()]
    # Two steps of two masks each: the mean of the first step's is 2 · mean − last.
    steps = [loss for m in metrics for loss in (2 * m["loss"] - m["last_loss"], m["last_loss"])]
    assert len({round(loss, 6) for loss in steps}) == 8
    one = train_once(data, dropout=0.3)
    assert len({round(loss, 6) for loss in one}) == 2, "two rows of a step have a mask each"
    assert len({round(m["loss"], 6) for m in (u.metrics for u in cohort_updates(data, rates=still).values())}) == 1


def train_once(data, dropout: float) -> tuple[float, float]:
    """Losses of a step of one row and of a step of two equal ones."""
    model = base_model()
    modules = targets_of(model)
    losses = []
    for rows in (1, 2):
        work = {"client-0": Work("client-0", 0, rows, (0.0,))}
        task = TrainTask(1, {"client-0": ClientModel(adapter_for(modules))}, 7, work)
        make = lambda: CohortLora(modules, dropout=dropout)  # noqa: E731
        (update,) = train(task, {}, TrainingHost(PackedModel(model), make, LocalTraining(dropout=dropout), data))
        losses.append(update.metrics["loss"])
    return tuple(losses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", sorted(BASES))
def test_the_bytes_of_an_update_do_not_depend_on_the_order_or_the_size_of_the_cohort(kind, dtype):
    data = some_data(5, longest=9)  # steps of few tokens: with two threads such products use special kernels
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            run = partial(cohort_updates, data, kind, model=base_model(kind).to(dtype), tokens_per_pass=40)
            whole = {client: bytes_of(update) for client, update in run().items()}
            for at_once in (1, 2, 3):
                cut = run(clients_at_once=at_once)
                assert [c for c in data if bytes_of(cut[c]) != whole[c]] == []
            backwards = run(order=sorted(data, reverse=True))
            assert list(backwards) == sorted(data)
            assert [c for c in data if bytes_of(backwards[c]) != whole[c]] == []
            few = run(order=["client-3", "client-1"], lora_dropout=0.0)
            assert [c for c in few if bytes_of(few[c]) != whole[c]] == []
        finally:
            torch.set_num_threads(threads)


def test_with_dropout_and_checkpointing_the_bytes_of_an_update_do_not_depend_on_the_cohort():
    data = some_data(4)
    for options in ({"lora_dropout": 0.3}, {"gradient_checkpointing": True}):
        whole, alone = cohort_updates(data, **options), cohort_updates(data, clients_at_once=1, **options)
        assert [c for c in data if bytes_of(alone[c]) != bytes_of(whole[c])] == []


def test_the_same_seed_gives_the_same_bytes():
    first, again = cohort_updates(some_data()), cohort_updates(some_data())
    for client in first:
        for name in first[client].delta:
            assert first[client].delta[name].tobytes() == again[client].delta[name].tobytes()


def test_a_non_finite_loss_of_one_client_does_not_affect_the_others():
    data = some_data()
    healthy = cohort_updates(data)
    model = base_model()
    poisoned = 96  # one embedding row is NaN, and only client-1's rows use it
    for rows in data.values():
        for row in rows:
            row.input_ids[row.input_ids == poisoned] = 3
    healthy = cohort_updates(data)
    with torch.no_grad():
        model.get_input_embeddings().weight[poisoned] = float("nan")
    broken = copy.deepcopy(data)
    for row in broken["client-1"]:
        row.input_ids[0] = poisoned
    updates = cohort_updates(broken, model=_untied(model))
    assert isinstance(updates["client-1"], ClientFailure)
    assert updates["client-1"].code == "diverged"
    for client in ("client-0", "client-2"):
        assert_same_update(updates[client], healthy[client])


def _untied(model: torch.nn.Module) -> torch.nn.Module:
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    return model
