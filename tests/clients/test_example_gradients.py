"""Per-example gradients on the cohort axis against plain autograd, one row at a time."""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F

from dp_sgd import clipped_by_hand
from shepherd.clients.example_level.gradients import ExampleGradients
from shepherd.clients.local_optimizer import LocalOptimizer
from shepherd.clients.settings import LocalTraining
from shepherd.model.adapter import save_adapter
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.server.methods import build_method
from shepherd.types import ClientModel, Tokens
from tiny_training import VOCABULARY, base_model, distance, some_data, targets_of
from view_training import MODULES, adapter_of, core_view, some_slots

ROWS = some_data(1, rows=9)["client-0"]
EXACT = 1e-6
"""Of the design, relative, in L2 norm. float32 against float64 by autograd: the largest error observed is 4e-7."""


class Slots:
    """The clipped sums of a client with this model, on a packed tiny base."""

    def __init__(self, view: ClientModel, at_once: int = 9, model=None, **settings) -> None:
        model = model or base_model()
        self.packed, self.lora = PackedModel(model), CohortLora(targets_of(model))
        (slot,) = self.lora.hold([view.adapter], trainable=True).held
        local = LocalTraining(optimizer="sgd", **settings)
        self.optimizer = LocalOptimizer(slot, view, local)
        self.gradients = ExampleGradients(self.packed, self.lora, self.optimizer, local, at_once)

    def sums(self, rows, clip: float, step: int = 0) -> dict[str, np.ndarray]:
        """{trained tensor: float64} of a step."""
        self.optimizer.begin(step)
        with self.packed.packing(), self.lora.attached():
            totals = self.gradients.clipped_sum([(row, 0) for row in rows], clip)
        parts = zip(self.optimizer.active, totals, strict=True)
        return {n: array for part, total in parts for n, array in part.layout.unpack(total.numpy()).items()}

    def sum(self, rows, clip: float) -> np.ndarray:
        """float64[n] over all parts that the first step trains."""
        return np.concatenate([array.ravel() for array in self.sums(rows, clip).values()])


def of_method(name: str, number: int = 1) -> ClientModel:
    method = build_method(name)
    base = {n: module.weight.detach().numpy() for n, module in MODULES.items()} if method.needs_base else None
    model = method.start(adapter_of(MODULES), 0, base)
    return method.view(model, "c", model.adapter.r, number, 0)


VIEWS = {
    **{f"{name}, round {n}": of_method(name, n) for name, n in (("fedit", 1), ("ffa_lora", 1), ("rolora", 2))},
    **{name: of_method(name) for name in ("la_lora", "fedsa_lora", "fedper_lora", "fed_sb")},
    "two heads": core_view(2),
    "rank slots": ClientModel(adapter_of(MODULES), slots=some_slots()),
}


@pytest.mark.parametrize("name", VIEWS)
def test_each_row_is_clipped_alone_over_all_tensors_as_by_autograd_one_row_at_a_time(name):
    view, slots = VIEWS[name], Slots(VIEWS[name])
    for step in range(len(view.trains)):
        for clip in (0.2, 1e9):  # every row is clipped, and none
            got, expected = slots.sums(ROWS, clip, step), clipped_by_hand(view, ROWS, clip, step)
            assert distance(got, expected) < EXACT
            assert all(array.any() for array in expected.values()) or view.slots is not None


def test_clipped_sum_of_one_row_is_the_gradient_of_plain_peft_scaled_to_the_clip(tmp_path):
    view = VIEWS["fedit, round 1"]
    save_adapter(tmp_path, view.adapter, base_name="none")
    model = peft.PeftModel.from_pretrained(base_model(), tmp_path, is_trainable=True).eval()
    slots = Slots(view)
    for row in ROWS[:4]:
        ids = torch.from_numpy(row.input_ids.astype(np.int64))[None]
        labels = torch.where(torch.from_numpy(row.loss_mask), ids, -100)
        logits = model(input_ids=ids).logits
        model.zero_grad()
        F.cross_entropy(logits[:, :-1].reshape(-1, VOCABULARY), labels[:, 1:].reshape(-1)).backward()
        found = {
            f"{name}.{part}": model.get_parameter(f"base_model.model.{name}.lora_{part}.default.weight").grad.numpy()
            for part in "AB"
            for name in view.adapter.factors
        }
        plain = np.concatenate([array.ravel() for array in found.values()]).astype(np.float64)
        norm = np.linalg.norm(plain)
        for clip in (0.1 * norm, 10 * norm):
            got = slots.sum([row], clip)
            assert np.linalg.norm(got - plain * min(1, clip / norm)) < EXACT * np.linalg.norm(got)
            assert np.linalg.norm(got) <= clip * (1 + 1e-12)


def test_the_sum_over_rows_without_a_clip_is_the_gradient_of_the_sum_of_their_mean_losses():
    slots = Slots(VIEWS["fedit, round 1"])
    one_by_one = sum(slots.sum([row], 1e9) for row in ROWS)
    assert np.linalg.norm(slots.sum(ROWS, 1e9) - one_by_one) < EXACT * np.linalg.norm(one_by_one)


@pytest.mark.parametrize("at_once, tokens", [(1, 512), (2, 512), (4, 20), (9, 1)])
def test_any_number_of_rows_is_summed_whatever_slots_and_passes_there_are(at_once, tokens):
    view = VIEWS["la_lora"]
    whole = Slots(view).sum(ROWS, 0.3)
    parts = Slots(view, at_once, tokens_per_pass=tokens).sum(ROWS, 0.3)
    assert np.linalg.norm(parts - whole) < 1e-12 * np.linalg.norm(whole)


@pytest.mark.parametrize("name", ["fedit, round 1", "ffa_lora, round 1", "rolora, round 2", "fed_sb"])
def test_removing_one_row_moves_the_sum_by_its_clipped_gradient_alone_at_most_the_clip(name):
    slots, clip = Slots(VIEWS[name]), 0.2
    whole = slots.sum(ROWS, clip)
    moved = []
    for i, row in enumerate(ROWS):
        without = slots.sum(ROWS[:i] + ROWS[i + 1 :], clip)
        moved.append(np.linalg.norm(whole - without))
        assert np.linalg.norm(whole - without - slots.sum([row], clip)) < 1e-12 * np.linalg.norm(whole)
    assert max(moved) <= clip * (1 + 1e-9)
    assert max(moved) > 0.999 * clip, "a row was clipped"


@pytest.mark.parametrize("together", [False, True], ids=["apart", "together"])
def test_a_row_whose_gradient_is_not_finite_counts_as_zero_and_touches_no_other(together):
    model = base_model()
    model.get_input_embeddings().weight[VOCABULARY - 1] = torch.inf
    ill = Tokens("ill", np.array([1, VOCABULARY - 1, 5, 6], np.int32), np.array([False, False, True, True]))
    well = [row for row in ROWS if VOCABULARY - 1 not in row.input_ids]
    slots = Slots(VIEWS["fedit, round 1"], model=model)
    slots.lora.together = together
    whole = slots.sum(well, 0.3)
    with_it = slots.sum([well[0], ill, *well[1:]], 0.3)
    assert np.isfinite(with_it).all() and whole.any()
    assert np.linalg.norm(with_it - whole) < (1e-5 if together else 1e-12) * np.linalg.norm(whole)
    assert not slots.sum([ill], 0.3).any()


def test_no_rows_make_a_sum_of_zeros():
    assert not Slots(VIEWS["fedit, round 1"]).sum([], 1.0).any()
