"""Training of client models with mixed ranks, frozen factors, slots, remainders and cores, against plain autograd."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from shepherd.lowrank import LowRank
from shepherd.model.slots import features
from shepherd.types import Adapter, ClientModel, Factors, Objective
from tiny_training import base_model, distance, same_bytes, targets_of
from view_training import DATA, MODULES, OPTIMIZERS, ROUNDING, adapter_of, core_view, plainly, some_slots, updates_of

# Ranks and scales


def test_clients_of_mixed_ranks_and_scales_have_the_bytes_of_training_alone():
    views = [ClientModel(adapter_of(MODULES, r, alpha)) for r, alpha in ((1, 8.0), (6, 8.0), (3, 1.0))]
    together = updates_of(views, DATA)
    for client, view in zip(DATA, views, strict=True):
        alone = updates_of({client: view}, DATA)[client]
        assert same_bytes(together[client].delta, alone.delta) and together[client].metrics == alone.metrics
        assert {d.shape[0] for n, d in alone.delta.items() if n.endswith(".A")} == {view.adapter.r}
        expected, losses, _ = plainly(view, DATA, client)
        assert distance(alone.delta, expected) < ROUNDING
        assert alone.metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_zero_rank_slots_stay_exactly_zero_under_adamw_with_weight_decay():
    # So a server may pad an adapter to a larger rank: at equal scale, padding does not change the training.
    small = adapter_of(MODULES, 2, 4.0)
    padded = Adapter(
        {n: Factors(np.pad(A, ((0, 3), (0, 0))), np.pad(B, ((0, 0), (0, 3)))) for n, (A, B) in small.factors.items()},
        5, 10.0,
    )  # fmt: skip
    wide = updates_of([ClientModel(padded)], DATA)["client-0"].delta
    narrow = updates_of([ClientModel(small)], DATA)["client-0"].delta
    for name, delta in wide.items():
        own, rest = (delta[:2], delta[2:]) if name.endswith(".A") else (delta[:, :2], delta[:, 2:])
        assert not rest.any()
        assert np.abs(own - narrow[name]).max() < 1e-5


# Frozen and alternating factors


@pytest.mark.parametrize("settings", [{"optimizer": "adamw"}, {"optimizer": "sgd", "momentum": 0.9}], ids=str)
@pytest.mark.parametrize("frozen, trained", ["AB", "BA"])
def test_a_frozen_factor_keeps_every_bit_and_the_other_is_trained_as_alone(frozen, trained, settings):
    view = ClientModel(adapter_of(MODULES), trains=(trained,), sends="AB")
    update = updates_of([view], DATA, **settings)["client-0"]
    assert not any(delta.any() for name, delta in update.delta.items() if name.endswith(f".{frozen}"))
    expected, losses, _ = plainly(view, DATA, "client-0", **settings)
    assert distance(update.delta, expected) < ROUNDING
    assert update.metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    only = updates_of([replace(view, sends=trained)], DATA, **settings)["client-0"].delta
    assert same_bytes(only, {n: d for n, d in update.delta.items() if n.endswith(f".{trained}")})


@pytest.mark.parametrize("trains", [("B", "A"), ("AB", "B"), ("A", "A", "B")], ids="-".join)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_alternating_factors_match_alternating_plain_optimizers(trains, optimizer):
    momentum = 0.9 if optimizer == "sgd" else 0.0  # must not act on a resting factor
    view, rates = ClientModel(adapter_of(MODULES), trains=trains), (3e-3,) * 5
    update = updates_of([view], DATA, rates=rates, optimizer=optimizer, momentum=momentum)["client-0"]
    expected, _, _ = plainly(view, DATA, "client-0", rates=rates, optimizer=optimizer, momentum=momentum)
    assert distance(update.delta, expected) < ROUNDING


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_b_is_trained_at_rate_ratio_times_the_rate_of_a(optimizer):
    view, objective = ClientModel(adapter_of(MODULES)), Objective(rate_ratio=5.0)
    update = updates_of([view], DATA, optimizer=optimizer, objective=objective)["client-0"]
    expected, _, _ = plainly(view, DATA, "client-0", optimizer=optimizer, objective=objective)
    assert distance(update.delta, expected) < ROUNDING
    plain = updates_of([view], DATA, optimizer=optimizer)["client-0"]
    assert distance(update.delta, plain.delta) > 0.5


@pytest.mark.parametrize("settings", [{"optimizer": "adam"}, {"betas": (0.5, 0.8)}], ids=str)
def test_adam_and_the_betas_are_those_of_torch(settings):
    view, rates = ClientModel(adapter_of(MODULES)), (3e-3,) * 4
    update = updates_of([view], DATA, rates=rates, **settings)["client-0"]
    expected, _, _ = plainly(view, DATA, "client-0", rates=rates, **settings)
    assert distance(update.delta, expected) < ROUNDING
    assert distance(updates_of([view], DATA, rates=rates)["client-0"].delta, expected) > 0.01


# Rank slots


@pytest.mark.parametrize("trains", [("AB",), ("B",)], ids="".join)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_masked_rank_slots_keep_every_bit_and_are_not_part_of_the_norm(optimizer, trains):
    slots = some_slots()
    view = ClientModel(adapter_of(MODULES), trains=trains, slots=slots)
    update = updates_of([view], DATA, optimizer=optimizer, max_grad_norm=0.05)["client-0"]
    for name, delta in update.delta.items():
        module, part = name.rsplit(".", 1)
        assert delta.shape[part == "B"] == slots[module].sum(), "no other slot travels"
        assert delta.all() == (part in trains[0] or not slots[module].any())
    expected, _, _ = plainly(view, DATA, "client-0", optimizer=optimizer, max_grad_norm=0.05)
    assert distance(update.delta, expected) < ROUNDING


def test_masked_slots_equal_a_smaller_adapter_with_a_frozen_remainder():
    # Fed-PLoRA's fold: s Σ b_i a_i over all slots = s Σ over the moving ones + what lies frozen.
    adapter, moving = adapter_of(MODULES, 4, 8.0), np.array([True, False, True, False])
    masked = updates_of([ClientModel(adapter, slots=dict.fromkeys(MODULES, moving))], DATA, optimizer="sgd")["client-0"]
    small = Adapter({n: Factors(A[moving], B[:, moving]) for n, (A, B) in adapter.factors.items()}, 2, 4.0)
    rest = {n: LowRank(2.0 * B[:, ~moving], A[~moving]) for n, (A, B) in adapter.factors.items()}
    folded = updates_of([ClientModel(small)], DATA, remainder=rest, optimizer="sgd")["client-0"]
    for name, delta in folded.delta.items():
        np.testing.assert_allclose(masked.delta[name], delta, atol=1e-6)
    assert masked.metrics["loss"] == pytest.approx(folded.metrics["loss"], rel=1e-5)


# Remainder


@pytest.mark.parametrize("q", [1, 30])  # thin, and dense
def test_training_with_a_remainder_equals_training_on_a_merged_base(q):
    rng = np.random.default_rng(0)
    sizes = {name: features(module) for name, module in MODULES.items()}
    draw = lambda *shape: rng.normal(0, 0.1, shape).astype(np.float32)  # noqa: E731
    remainder = {name: LowRank(draw(n_out, q), draw(q, n_in)) for name, (n_in, n_out) in sizes.items()}
    del remainder[next(iter(remainder))]  # a module without one
    merged = base_model()
    for name, module in targets_of(merged).items():
        if name in remainder:
            module.weight += torch.from_numpy(remainder[name].L @ remainder[name].R)
    views = [ClientModel(adapter_of(MODULES, r)) for r in (4, 2)]
    beside = updates_of(views, DATA, remainder=remainder, optimizer="sgd")
    inside = updates_of(views, DATA, model=merged, optimizer="sgd")
    without = updates_of(views, DATA, optimizer="sgd")
    for client in beside:
        assert distance(beside[client].delta, inside[client].delta) < 1e-4
        assert beside[client].metrics["loss"] == pytest.approx(inside[client].metrics["loss"], rel=1e-5)
        assert distance(without[client].delta, inside[client].delta) > 0.05


# Cores


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_a_core_matches_autograd_through_basis_and_core(heads, optimizer):
    view = core_view(heads)
    update = updates_of([view], DATA, optimizer=optimizer, max_grad_norm=0.05)["client-0"]
    expected, losses, _ = plainly(view, DATA, "client-0", optimizer=optimizer, max_grad_norm=0.05)
    assert {name.rsplit(".", 1)[1] for name in update.delta} == {"core"}
    assert {delta.shape for delta in update.delta.values()} == {(heads, 4 // heads, 4 // heads)}
    assert all(delta.any() for delta in update.delta.values())
    assert distance(update.delta, expected) < ROUNDING
    assert update.metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_masked_heads_of_a_core_keep_every_bit():
    view = core_view(2, slots=dict.fromkeys(MODULES, np.array([True, True, False, False])))
    update = updates_of([view], DATA)["client-0"]
    expected, _, _ = plainly(view, DATA, "client-0")
    for delta in update.delta.values():
        assert delta.shape == (1, 2, 2) and delta.all()
    assert distance(update.delta, expected) < ROUNDING


def test_a_client_model_that_trains_a_and_a_core_is_refused():
    with pytest.raises(ValueError, match="with a core A is fixed"):
        updates_of([core_view(2, trains=("AB",))], DATA)
