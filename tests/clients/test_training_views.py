"""What a view lets move, and what a client is corrected by, against one client trained by plain autograd."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from plain_client import train_plainly
from shepherd.clients.local_optimizer import LocalOptimizer
from shepherd.clients.objectives import add_product_proximal, add_proximal
from shepherd.clients.settings import LocalTraining
from shepherd.clients.training import TrainingHost, train
from shepherd.errors import ClientError
from shepherd.lowrank import LowRank
from shepherd.model.adapter import fresh_adapter
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.model.slots import Slot, features
from shepherd.types import Adapter, ClientFailure, ClientModel, ClientUpdate, Core, Factors, Objective, TrainTask, Work
from shepherd.updates.gate import Gate
from tiny_training import base_model, distance, same_bytes, some_data, targets_of

RATES = (3e-3, 2e-3, 1e-3)
ROUNDING = 1e-5  # as in test_training_laws.py; the most that was seen here is 2e-6, AdamW included
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
    """The updates of a cohort in which client k has view k."""
    model = model or base_model()
    modules = targets_of(model)
    named = dict(zip(sorted(data), views, strict=False)) if not isinstance(views, dict) else views
    work = {client: Work(client, 0, 2 * len(rates), tuple(rates)) for client in named}
    local = LocalTraining(**{"weight_decay": 0.5, **settings})
    task = TrainTask(1, named, 7, work, remainder or {}, objective or Objective(), control or {})
    results = train(task, private or {}, TrainingHost(PackedModel(model), lambda: CohortLora(modules), local, data))
    return {update.client: update for update in results}


def plainly(view, data, client, model=None, rates=RATES, **options):
    """(expected delta by the names that travel, losses, new control variates) by plain autograd."""
    model = model or base_model()
    after, losses, control = train_plainly(model, targets_of(model), view, data[client], client, rates, **options)
    begins = replace(view, slots=None).tensors()
    changes = {name: after[name] - begin for name, begin in begins.items()}
    assert not any(others(view, name, change).any() for name, change in changes.items())
    return {name: mine(view, name, change) for name, change in changes.items()}, losses, control


def mine(view, name, whole) -> np.ndarray:
    """Of a whole tensor the slots that the client may move: all that should travel."""
    return whole if view.slots is None else _pick(view, name, whole, lambda may: may)


def others(view, name, whole) -> np.ndarray:
    """The slots that it may not move."""
    return whole[:0] if view.slots is None else _pick(view, name, whole, lambda may: ~may)


def _pick(view, name, whole, which) -> np.ndarray:
    module, part = name.rsplit(".", 1)
    may = which(view.slots[module])
    return whole[:, may] if part == "B" else whole[may[:: len(may) // len(whole)]]


MODULES = targets_of(base_model())
DATA = some_data()


# Ranks and scales


def test_a_cohort_of_mixed_ranks_and_scales_gives_each_client_the_bytes_that_it_gets_alone():
    views = [ClientModel(adapter_of(MODULES, r, alpha)) for r, alpha in ((1, 8.0), (6, 8.0), (3, 1.0))]
    together = updates_of(views, DATA)
    for client, view in zip(DATA, views, strict=True):
        alone = updates_of({client: view}, DATA)[client]
        assert same_bytes(together[client].delta, alone.delta) and together[client].metrics == alone.metrics
        assert {d.shape[0] for n, d in alone.delta.items() if n.endswith(".A")} == {view.adapter.r}
        expected, losses, _ = plainly(view, DATA, client)
        assert distance(alone.delta, expected) < ROUNDING
        assert alone.metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_rank_slots_of_zeros_stay_exactly_zero_under_adamw_with_weight_decay():
    # So a server may pad an adapter to a larger rank: at equal scale the padded client learns what the small one does.
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


# Which parts move when


@pytest.mark.parametrize("settings", [{"optimizer": "adamw"}, {"optimizer": "sgd", "momentum": 0.9}], ids=str)
@pytest.mark.parametrize("frozen, trained", ["AB", "BA"])
def test_a_factor_that_is_not_trained_keeps_every_bit_and_the_other_learns_as_alone(frozen, trained, settings):
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
def test_factors_that_take_turns_do_what_plain_optimizers_do_in_turns(trains, optimizer):
    momentum = 0.9 if optimizer == "sgd" else 0.0  # which a resting factor must not feel
    view, rates = ClientModel(adapter_of(MODULES), trains=trains), (3e-3,) * 5
    update = updates_of([view], DATA, rates=rates, optimizer=optimizer, momentum=momentum)["client-0"]
    expected, _, _ = plainly(view, DATA, "client-0", rates=rates, optimizer=optimizer, momentum=momentum)
    assert distance(update.delta, expected) < ROUNDING


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_b_moves_at_rate_ratio_times_the_rate_of_a(optimizer):
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


def some_slots(r=4, seed=0):
    rng = np.random.default_rng(seed)
    slots = {name: rng.random(r) < 0.5 for name in MODULES}
    next(iter(slots.values()))[:] = False  # a module of which nothing moves
    return slots


@pytest.mark.parametrize("trains", [("AB",), ("B",)], ids="".join)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_masked_rank_slots_keep_every_bit_and_do_not_count_in_the_norm(optimizer, trains):
    slots = some_slots()
    view = ClientModel(adapter_of(MODULES), trains=trains, slots=slots)
    update = updates_of([view], DATA, optimizer=optimizer, max_grad_norm=0.05)["client-0"]
    for name, delta in update.delta.items():
        module, part = name.rsplit(".", 1)
        assert delta.shape[part == "B"] == slots[module].sum(), "no other slot travels"
        assert delta.all() == (part in trains[0] or not slots[module].any())
    expected, _, _ = plainly(view, DATA, "client-0", optimizer=optimizer, max_grad_norm=0.05)
    assert distance(update.delta, expected) < ROUNDING


def test_masked_slots_are_a_smaller_adapter_beside_a_frozen_remainder():
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
def test_training_beside_a_remainder_is_training_on_a_base_that_it_is_merged_into(q):
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


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_core_learns_what_autograd_through_basis_and_core_gives_it(heads, optimizer):
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


def test_a_view_that_would_move_a_beside_a_core_is_refused():
    with pytest.raises(ValueError, match="with a core A is fixed"):
        updates_of([core_view(2, trains=("AB",))], DATA)


# FedProx


PROXIMAL = [
    Objective(proximal=3.0),
    Objective(proximal=3.0, proximal_form="product"),
    Objective(proximal=3.0, proximal_form="product", rate_ratio=4.0),
]


@pytest.mark.parametrize("objective", PROXIMAL, ids=lambda o: f"{o.proximal_form}-{o.rate_ratio:g}")
@pytest.mark.parametrize("trains", [("AB",), ("B",), ("B", "A")], ids="-".join)
def test_the_proximal_gradient_is_that_of_autograd(objective, trains):
    view, rates = ClientModel(adapter_of(MODULES), trains=trains), (0.1,) * 4
    options = dict(rates=rates, objective=objective, optimizer="sgd", max_grad_norm=0.3)
    update = updates_of([view], DATA, **options)["client-0"]
    expected, losses, _ = plainly(view, DATA, "client-0", **options)
    assert distance(update.delta, expected) < ROUNDING
    assert update.metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-5)  # of the data alone
    free = updates_of([view], DATA, **options | {"objective": Objective(rate_ratio=objective.rate_ratio)})
    assert distance(free["client-0"].delta, expected) > 1e-3


@pytest.mark.parametrize("objective", PROXIMAL[:2], ids=lambda o: o.proximal_form)
def test_a_core_and_masked_slots_feel_the_proximal_term_too(objective):
    for view in (core_view(2), ClientModel(adapter_of(MODULES), slots=some_slots())):
        options = dict(rates=(0.1,) * 3, objective=objective, optimizer="sgd")
        update = updates_of([view], DATA, **options)["client-0"]
        expected, _, _ = plainly(view, DATA, "client-0", **options)
        assert distance(update.delta, expected) < ROUNDING


def rotated(adapter: Adapter, seed: int = 0) -> Adapter:
    """The same increments in another gauge: B Q, Qᵀ A."""
    Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(adapter.r, adapter.r)))[0]
    return replace(
        adapter, factors={n: Factors((Q.T @ A).astype(np.float32), (B @ Q).astype(np.float32))
                          for n, (A, B) in adapter.factors.items()},
    )  # fmt: skip


def test_a_rotation_of_the_factors_is_no_distance_for_the_product_form_and_one_for_the_factors():
    start, scale = adapter_of(MODULES), 2.0
    pulls = {"product": 0.0, "factors": 0.0}
    for name, pair in rotated(start).factors.items():
        now, then = (tuple(torch.tensor(m) for m in (p.A, p.B.T.copy())) for p in (pair, start.factors[name]))
        gradient = tuple(torch.zeros_like(tensor) for tensor in now)
        add_product_proximal(gradient, now, then, 1.0, scale)
        pulls["product"] += sum(g.abs().sum().item() for g in gradient)
        for value, begin in zip(now, then, strict=True):
            gradient = torch.zeros_like(value)
            add_proximal(gradient, value, begin, 1.0)
            pulls["factors"] += gradient.abs().sum().item()
    assert pulls["product"] < 1e-4 * pulls["factors"]


# SCAFFOLD


def controls_of(view: ClientModel, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    everything = replace(view, slots=None).tensors()
    return {name: rng.normal(0, 0.05, t.shape).astype(np.float32) for name, t in everything.items()}


VIEWS = {
    "AB": ClientModel(adapter_of(MODULES)),
    "B": ClientModel(adapter_of(MODULES), trains=("B",), sends="B"),
    "B-A": ClientModel(adapter_of(MODULES), trains=("B", "A")),
    "core": core_view(2),
    "slots": ClientModel(adapter_of(MODULES), slots=some_slots()),
}


@pytest.mark.parametrize("kind", sorted(VIEWS))
@pytest.mark.parametrize("optimizer, momentum", [*((name, 0.0) for name in OPTIMIZERS), ("sgd", 0.9)])
def test_scaffold_corrects_every_step_and_renews_what_the_client_keeps(kind, optimizer, momentum):
    view, objective = VIEWS[kind], Objective(scaffold=True, rate_ratio=2.0)
    c, own = controls_of(view, 1), controls_of(view, 2)
    private = {"client-0": {f"control/{name}": array for name, array in own.items()}}
    options = dict(objective=objective, optimizer=optimizer, momentum=momentum, control=c, rates=(0.02,) * 4)
    update = updates_of([view], DATA, private=private, **options)["client-0"]
    expected, _, new = plainly(view, DATA, "client-0", own_control=own, **options)
    sent = view.tensors()
    assert set(update.delta) == set(sent) | {f"{name}.control" for name in sent}
    assert distance({n: update.delta[n] for n in sent}, expected) < ROUNDING
    for name in sent:
        kept = update.private[f"control/{name}"]
        # A slot that did not move keeps its control variate, and nothing of it travels.
        np.testing.assert_array_equal(others(view, name, kept), others(view, name, own[name]))
        kept, before, right = (mine(view, name, whole) for whole in (kept, own[name], new[name]))
        np.testing.assert_allclose(before + update.delta[f"{name}.control"], kept, atol=1e-6)
        np.testing.assert_allclose(kept, right, atol=2e-3 * max(1e-9, np.abs(right).max(initial=0.0)))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_clients_of_sgd_with_unequal_steps_settle_at_the_optimum_of_their_mean(momentum):
    # ½(x − a)² with a = 0, 1; x is B, and A is 1. With momentum they settled at 0.76: the correction did not go through
    # it, and c_k was 1.45 and 4.1 times the gradient for 2 and 10 steps.
    factors = {"m": Factors(np.ones((1, 1), np.float32), np.full((1, 1), 0.3, np.float32))}
    settings = LocalTraining(optimizer="sgd", momentum=momentum, weight_decay=0.0, max_grad_norm=0.0)
    c, kept = {}, [{}, {}]
    for _ in range(200):
        view = ClientModel(Adapter(factors, 1, 1.0), trains=("B",), sends="B")
        deltas, changes = [], []
        for k, (a, steps) in enumerate(((0.0, 2), (1.0, 10))):
            slot = Slot(view.adapter, {"m": (1, 1)}, torch.device("cpu"), True)
            moving = LocalOptimizer(slot, view, settings, Objective(scaffold=True), c, kept[k])
            x, gradient = slot.flat("B")
            for step in range(steps):
                moving.begin(step)
                gradient.copy_(x - a)
                moving.settle(1)
                moving.step(0.02)
            sent, kept[k] = moving.controls()
            deltas.append(moving.delta()["m.B"])
            changes.append(sent["m.B.control"])
        c = {"m.B": c.get("m.B", 0.0) + np.float32(0.5) * sum(changes)}
        factors = {"m": Factors(factors["m"].A, factors["m"].B + np.float32(0.5) * sum(deltas))}
    assert factors["m"].B.item() == pytest.approx(0.5, abs=1e-3)


def test_a_part_that_no_step_moved_keeps_its_control_variate():
    view, c = VIEWS["B-A"], controls_of(VIEWS["B-A"], 1)
    own = controls_of(view, 2)
    private = {"client-0": {f"control/{name}": array for name, array in own.items()}}
    options = dict(objective=Objective(scaffold=True), control=c, private=private, rates=(0.02,))
    update = updates_of([view], {"client-0": DATA["client-0"]}, **options)["client-0"]
    for name in view.tensors():  # one step: B's
        still = name.endswith(".A")
        assert np.array_equal(update.private[f"control/{name}"], own[name]) == still
        assert update.delta[f"{name}.control"].any() != still and np.isfinite(update.delta[f"{name}.control"]).all()


@pytest.mark.parametrize("kind", sorted(VIEWS))
@pytest.mark.parametrize("steps", [1, 3])
def test_the_control_variates_of_an_honest_client_pass_the_gate(kind, steps):
    view, objective = VIEWS[kind], Objective(scaffold=True, rate_ratio=2.0)
    rates, c = (0.02, 0.01, 0.03)[:steps], controls_of(VIEWS[kind], 1)
    task = TrainTask(1, {"client-0": view}, 7, {"client-0": Work("client-0", 0, 6, rates)}, {}, objective, c)
    one = {"client-0": DATA["client-0"]}
    update = updates_of([view], one, objective=objective, control=c, rates=rates)["client-0"]
    assert isinstance(Gate().admit(update, task), ClientUpdate)
    most = {name: array * np.float32(20) for name, array in update.delta.items() if name.endswith(".control")}
    refused = Gate().admit(replace(update, delta={**update.delta, **most}), task)
    assert isinstance(refused, ClientFailure) and refused.code == "norm"


def test_two_rounds_of_scaffold_with_one_client_are_two_rounds_of_fedavg():
    # c = c_k with one client, so no step is corrected; but the variates are renewed.
    view, objective = ClientModel(adapter_of(MODULES)), Objective(scaffold=True)
    one = {"client-0": DATA["client-0"]}
    first = updates_of([view], one, objective=objective)["client-0"]
    c = {name.removesuffix(".control"): d for name, d in first.delta.items() if name.endswith(".control")}
    assert any(array.any() for array in c.values())
    again = updates_of([view], one, objective=objective, control=c, private={"client-0": first.private})["client-0"]
    plain = updates_of([view], one)["client-0"]
    for update in (first, again):
        assert same_bytes({n: d for n, d in update.delta.items() if not n.endswith(".control")}, plain.delta)


def test_control_variates_of_another_rank_are_refused_with_the_tensor():
    view = ClientModel(adapter_of(MODULES, 4))
    c = controls_of(ClientModel(adapter_of(MODULES, 2)), 0)
    with pytest.raises(ClientError, match=r"q_proj\.A is \[2, 24\], the client trains \[4, 24\]"):
        updates_of([view], DATA, objective=Objective(scaffold=True), control=c)


# Nothing beside the loss


@pytest.mark.parametrize("kind", sorted(VIEWS))
def test_without_mu_and_without_control_variates_the_bits_are_those_of_fedavg(kind):
    view = VIEWS[kind]
    plain = updates_of([view], DATA)["client-0"]
    zeros = {name: np.zeros_like(array) for name, array in controls_of(view, 0).items()}
    scaffold = updates_of([view], DATA, objective=Objective(scaffold=True), control=zeros)["client-0"]
    assert same_bytes({n: d for n, d in scaffold.delta.items() if not n.endswith(".control")}, plain.delta)
    for form in ("factors", "product"):
        prox = updates_of([view], DATA, objective=Objective(proximal=0.0, proximal_form=form))["client-0"]
        assert same_bytes(prox.delta, plain.delta)
        assert prox.private == plain.private == {}


def test_a_task_leaves_views_and_control_variates_as_they_were():
    view = ClientModel(adapter_of(MODULES), slots=some_slots())
    before = copy.deepcopy(view)
    updates_of([view], DATA, objective=PROXIMAL[1])
    assert same_bytes(view.tensors(), before.tensors())
