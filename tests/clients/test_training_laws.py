"""Joint training of a cohort against plain PEFT for each client alone."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F

from cohort_training import RATES, ROUNDING, assert_same_update, bytes_of, cohort_updates
from shepherd.clients.cohort import Cohort
from shepherd.clients.row_order import next_rows
from shepherd.clients.settings import LocalTraining
from shepherd.clients.training import TrainingHost, train
from shepherd.evaluation.losses import row_losses
from shepherd.model import lora as lora_module
from shepherd.model.adapter import save_adapter
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.types import ClientModel, TrainTask, Work
from tiny_training import (
    BASES,
    VOCABULARY,
    adapter_for,
    base_model,
    distance,
    some_data,
    targets_of,
)


def peft_reference(data, client, kind, folder, optimizer, rates=RATES, seed=7, first=0):
    """One client alone with plain PEFT: rows padded to a rectangle, full logits, torch's AdamW, gradient clipping.

    Returns losses, weights, the initial adapter, and the least |gradient| of each weight over all steps.
    """
    model = base_model(kind)
    adapter = adapter_for(targets_of(model, kind))
    save_adapter(folder, adapter, base_name="none", conv1d=kind == "gpt2")
    model = peft.PeftModel.from_pretrained(model, folder, is_trainable=True).eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    least = [torch.full_like(p, torch.inf) for p in trained]
    optimizer = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer](trained, lr=1.0, weight_decay=0.5)
    rows = next_rows(data[client], client, first, 2 * len(rates), seed)
    losses = []
    for step, rate in enumerate(rates):
        batch = rows[2 * step : 2 * step + 2]
        longest = max(len(t.input_ids) for t in batch)
        ids, labels = torch.zeros(2, longest, dtype=torch.long), torch.full((2, longest), -100)
        attention = torch.zeros(2, longest, dtype=torch.long)
        for i, t in enumerate(batch):
            n = len(t.input_ids)
            ids[i, :n] = torch.from_numpy(t.input_ids.astype(np.int64))
            labels[i, :n] = torch.where(torch.from_numpy(t.loss_mask), ids[i, :n], -100)
            attention[i, :n] = 1
        logits = model(input_ids=ids, attention_mask=attention).logits
        loss = F.cross_entropy(logits[:, :-1].reshape(-1, VOCABULARY), labels[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        least = [torch.minimum(before, p.grad.abs()) for before, p in zip(least, trained, strict=True)]
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        losses.append(loss.item())
    state = {k.replace(".default", ""): v for k, v in model.state_dict().items() if "lora_" in k}
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    met = {name.replace(".default", ""): lowest.numpy() for name, lowest in zip(names, least, strict=True)}
    return losses, state, adapter, met


FLAT = 1e-7
"""Adam's first step is lr · g / (|g| + 1e-8). Gradients here are clipped to norm 1, so each is known to about 1e-8 in
float32; where |g| itself is that small, rounding decides the step, as for one of 21,600 weights here (2e-8, gemma2)."""


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("kind", sorted(BASES))
def test_joint_training_of_three_clients_matches_plain_peft_for_each_alone(kind, optimizer, tmp_path):
    data = some_data()
    together = cohort_updates(data, kind, optimizer=optimizer)
    for client in data:
        losses, state, start, met = peft_reference(data, client, kind, tmp_path / client, optimizer)
        assert together[client].metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
        expected = {
            f"{name}.{part}": state[f"base_model.model.{name}.lora_{part}.weight"].numpy() - getattr(pair, part)
            for name, pair in start.factors.items()
            for part in "AB"
        }
        assert all(
            np.abs(value).max() > 1e-6 for name, value in expected.items() if name.endswith(".A")
        )  # it did learn
        got = dict(together[client].delta)
        for name in expected if optimizer == "adamw" else ():
            flat = met[f"base_model.model.{name[:-2]}.lora_{name[-1]}.weight"] < FLAT
            assert flat.sum() <= 1
            expected[name], got[name] = (np.where(flat, 0, value) for value in (expected[name], got[name]))
        assert distance(got, expected) < ROUNDING


def test_a_limit_of_zero_clips_nothing():
    data = {"client-0": some_data(1)["client-0"]}
    free, wide, narrow = (
        cohort_updates(data, optimizer="sgd", max_grad_norm=limit)["client-0"] for limit in (0.0, 1e9, 0.5)
    )
    assert bytes_of(free) == bytes_of(wide) != bytes_of(narrow)


def test_evaluation_after_training_has_no_dropout():
    model, data = base_model(), some_data(2)
    modules = targets_of(model)
    packed, lora = PackedModel(model), CohortLora(modules, dropout=0.5)
    views = dict.fromkeys(data, ClientModel(adapter_for(modules)))
    cohort = Cohort(packed, lora, LocalTraining(dropout=0.5), views, data, 7)
    cohort.run([Work(client, 0, 4, (0.1, 0.1)) for client in data], 1, lambda report: None)
    learned = [replace(views[c].adapter, factors=lora.read(slot)) for slot, c in enumerate(data)]
    for rows in data.values():
        after, plain = (row_losses(packed, rows, it) for it in (lora, CohortLora(modules).hold(learned)))
        for a, b in zip(after, plain, strict=True):
            np.testing.assert_array_equal(a.nll, b.nll)


def test_gradient_checkpointing_changes_nothing_but_memory():
    data = some_data()
    for kind in ("llama", "gpt2"):  # gpt2 has dropout layers that train mode would enable
        plain, checkpointed = cohort_updates(data, kind), cohort_updates(data, kind, gradient_checkpointing=True)
        for client in data:
            assert_same_update(checkpointed[client], plain[client])


def test_the_memory_of_a_cohort_is_released_after_its_round(monkeypatch):
    made, hold = [], CohortLora.hold

    def watched(lora: CohortLora, adapters, **options) -> CohortLora:
        hold(lora, adapters, **options)
        made.extend(weakref.ref(vector) for slot in lora.held for vector in (slot.vector, slot.gradient))
        return lora

    monkeypatch.setattr(CohortLora, "hold", watched)
    gc.collect()
    gc.disable()  # the collector may not run for many rounds
    try:
        cohort_updates(some_data())
        assert [vector() for vector in made] == [None] * 6
    finally:
        gc.enable()


def test_clients_with_fewer_steps_finish_early_and_keep_their_result():
    data = some_data()
    model = base_model()
    modules = targets_of(model)
    adapter = adapter_for(modules)
    make = lambda: CohortLora(modules)  # noqa: E731
    work = {"client-0": Work("client-0", 0, 2, RATES[:1]), "client-1": Work("client-1", 0, 6, RATES)}
    settings = LocalTraining(weight_decay=0.5)
    task = TrainTask(1, dict.fromkeys(work, ClientModel(adapter)), 7, work)
    mixed = {u.client: u for u in train(task, {}, TrainingHost(PackedModel(model), make, settings, data))}
    assert (mixed["client-0"].steps, mixed["client-1"].steps) == (1, 3)
    assert_same_update(mixed["client-0"], cohort_updates(data, rates=RATES[:1])["client-0"])
    assert_same_update(mixed["client-1"], cohort_updates(data)["client-1"])


def test_unevenly_divisible_rows_are_all_trained_on_and_num_examples_counts_the_rows_held():
    model, data = base_model(), {"client-0": some_data(1)["client-0"]}  # six rows
    modules = targets_of(model)
    for rows in (4, 5, 6):
        steps: list[int] = []
        task = TrainTask(
            1, {"client-0": ClientModel(adapter_for(modules))}, 7, {"client-0": Work("client-0", 0, rows, RATES)}
        )
        site = TrainingHost(PackedModel(model), lambda: CohortLora(modules), LocalTraining(), data)
        (update,) = train(task, {}, site, lambda report, steps=steps: steps.append(report["client-0"].targets))
        walked = [row.targets for row in next_rows(data["client-0"], "client-0", 0, rows, 7)]
        ends = {4: (1, 2, 4), 5: (1, 3, 5), 6: (2, 4, 6)}[rows]  # as even as can be
        assert steps == [sum(walked[:end]) for end in ends]
        assert (update.num_examples, update.num_tokens, update.steps) == (6, sum(walked), 3)


def test_the_row_order_visits_every_row_once_per_pass_and_continues_over_rounds():
    rows = some_data(1, 5)["client-0"]
    once = [t.id for t in next_rows(rows, "client-0", 0, 5, 0)]
    assert sorted(once) == sorted(t.id for t in rows)
    parts = [t.id for start, n in ((0, 3), (3, 4), (7, 3)) for t in next_rows(rows, "client-0", start, n, 0)]
    assert parts == [t.id for t in next_rows(rows, "client-0", 0, 10, 0)]
    assert parts[5:] != once  # the second pass has another order


def test_training_on_a_bfloat16_base_is_close_to_float32():
    data = some_data()
    exact = cohort_updates(data)
    rough = cohort_updates(data, model=base_model().to(torch.bfloat16))
    for client in data:
        assert rough[client].metrics["loss"] == pytest.approx(exact[client].metrics["loss"], rel=0.02)
        a = np.concatenate([m.ravel() for m in exact[client].delta.values()])
        b = np.concatenate([m.ravel() for m in rough[client].delta.values()])
        assert b.dtype == np.float32
        assert np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) > 0.9


def test_cast_factors_follow_the_float32_factors_through_every_step(monkeypatch):
    # As on a GPU, where the factors are cast. A copy that a step did not renew would meet the later rows untaught.
    data, rates = some_data(rows=2), (0.03,) * 3  # the same rows in every step
    exact = cohort_updates(data, rates=rates)
    monkeypatch.setattr(lora_module, "product_dtype", lambda x: torch.bfloat16)
    rough = cohort_updates(data, model=base_model().to(torch.bfloat16), rates=rates)
    untaught = cohort_updates(data, rates=(0.0,) * 3)
    for client in data:
        learned = untaught[client].metrics["last_loss"] - exact[client].metrics["last_loss"]
        assert learned > 0.1
        assert abs(rough[client].metrics["last_loss"] - exact[client].metrics["last_loss"]) < 0.3 * learned
