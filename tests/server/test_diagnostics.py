"""Diagnostics of a round against dense increments."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from shepherd.server import diagnostics
from shepherd.server.diagnostics import diagnose, subspace_move
from shepherd.server.weights import update_weights
from shepherd.types import (
    Adapter,
    ClientModel,
    ClientUpdate,
    Factors,
    GlobalModel,
)
from small_updates import SHAPES, R, adapter, some_updates, tensors, update


@pytest.fixture(params=["thin", "dense"])
def form(request, monkeypatch) -> str:
    """Both forms of the diagnostics for any shapes: stacked thin factors, or summed dense products."""
    monkeypatch.setattr(diagnostics, "DENSE_FROM", {"thin": np.inf, "dense": 0.0}[request.param])
    return request.param


def seen(start: Adapter, updates, weights, after: Adapter | None = None):
    views = {u.client: ClientModel(start) for u in updates}
    return diagnose(GlobalModel(start), GlobalModel(after or start), views, updates, weights)


def dense_deviation(start: Adapter, updates, weights) -> float:
    """‖Σ wₖBₖAₖ − B̄Ā‖ / ‖Σ wₖBₖAₖ‖ with dense matrices in float64."""
    difference = total = 0.0
    for name, (A, B) in start.factors.items():
        As = [A.astype(np.float64) + u.delta[f"{name}.A"] for u in updates]
        Bs = [B.astype(np.float64) + u.delta[f"{name}.B"] for u in updates]
        product = sum(w * b @ a for w, a, b in zip(weights, As, Bs, strict=True))
        mean_A, mean_B = (sum(w * m for w, m in zip(weights, ms, strict=True)) for ms in (As, Bs))
        difference += np.sum((product - mean_B @ mean_A) ** 2)
        total += np.sum(product**2)
    return float(np.sqrt(difference / total))


@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("by", ["examples", "uniform"])
def test_the_deviation_is_that_of_dense_products(by, spread, form):
    start = adapter(9)
    updates = [update(f"c{k}", seed=k, examples=k + 1, scale=spread) for k in range(4)]
    weights = update_weights(updates, by)
    expected = dense_deviation(start, updates, weights)
    got = seen(start, updates, dict(zip([u.client for u in updates], weights, strict=True))).deviation
    assert got == pytest.approx(expected, rel=1e-7)
    assert expected > 0


def test_the_deviation_of_a_hand_worked_pair():
    # A = B = 1 for one client, 3 for the other, equal weights: products 1 and 9, mean 5; means 2 and 2, product 4.
    start = Adapter({"m": Factors(np.ones((1, 1), np.float32), np.ones((1, 1), np.float32))}, 1, 1.0)
    two = {"m": Factors(np.full((1, 1), 2, np.float32), np.full((1, 1), 2, np.float32))}
    none = {"m": Factors(np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32))}
    updates = [ClientUpdate("a", 1, tensors(none), 1, 1, 1), ClientUpdate("b", 1, tensors(two), 1, 1, 1)]
    assert seen(start, updates, {"a": 0.5, "b": 0.5}).deviation == pytest.approx(1 / 5, rel=1e-12)


def test_identical_or_single_clients_have_no_deviation(form):
    updates = [replace(update("x", 3), client=f"c{k}") for k in range(3)]
    assert seen(adapter(), updates, dict.fromkeys(("c0", "c1", "c2"), 1 / 3)).deviation < 1e-12
    assert seen(adapter(), updates[:1], {"c0": 1.0}).deviation == 0.0


def test_a_zero_adapter_has_no_deviation(form):
    start = Adapter({"m": Factors(np.ones((1, 2), np.float32), np.zeros((2, 1), np.float32))}, 1, 1.0)
    none = {"m": Factors(np.zeros((1, 2), np.float32), np.zeros((2, 1), np.float32))}
    assert seen(start, [ClientUpdate("a", 1, tensors(none), 1, 1, 1)], {"a": 1.0}).deviation == 0.0


@pytest.mark.parametrize("count", [2, 5, 45])
def test_the_other_diagnostics_are_those_of_dense_increments(count, form):
    start, updates = adapter(9), sorted(some_updates(count), key=lambda u: u.client)
    weights = dict(zip([u.client for u in updates], update_weights(updates, "examples"), strict=True))
    after = adapter(4)
    found = seen(start, updates, weights, after)
    X = []  # each client's change, both modules in one vector
    mean = {}
    for u in updates:
        change = []
        for name, (A, B) in start.factors.items():
            A, B = A.astype(np.float64), B.astype(np.float64)
            own = start.scale * (B + u.delta[f"{name}.B"]) @ (A + u.delta[f"{name}.A"])
            mean[name] = mean.get(name, 0) + weights[u.client] * own
            change.append((own - start.scale * B @ A).ravel())
        X.append(np.concatenate(change))
    first = X[: diagnostics.PAIRS_OF]
    cosines = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for i, x in enumerate(first) for y in first[i + 1 :]]
    assert found.cosine_mean == pytest.approx(np.mean(cosines), rel=1e-9)
    assert found.cosine_min == pytest.approx(min(cosines), rel=1e-9)
    assert list(found.increment_norm) == [u.client for u in updates]
    assert list(found.increment_norm.values()) == pytest.approx([np.linalg.norm(x) for x in X], rel=1e-9)
    S = [np.linalg.svd(product, compute_uv=False) for product in mean.values()]
    assert found.effective_rank == pytest.approx(np.mean([s.sum() ** 2 / (s**2).sum() for s in S]), rel=1e-9)
    assert found.energy_at_rank == pytest.approx(np.mean([(s[:R] ** 2).sum() / (s**2).sum() for s in S]), rel=1e-9)
    P, Q = (
        {n: np.linalg.pinv(A.astype(np.float64)) @ A.astype(np.float64) for n, (A, _) in a.factors.items()}
        for a in (start, after)
    )
    assert found.subspace_move == pytest.approx(np.mean([np.linalg.norm(P[n] - Q[n]) / 2 for n in P]), rel=1e-6)
    assert found.modules == len(SHAPES)


def test_a_small_rotation_of_the_row_space_is_measured_accurately():
    angle = 1e-9
    A, B = np.eye(2, 5), np.eye(2, 5)
    B[0, [0, 2]] = np.cos(angle), np.sin(angle)
    # One of two principal angles is 1e-9: ‖P − P'‖² = 2 sin², over 2r = 4.
    assert subspace_move(A, B) == pytest.approx(angle / np.sqrt(2), rel=1e-6)
    assert subspace_move(A, A) == 0.0
    assert subspace_move(np.eye(2, 5), np.eye(5)[2:4]) == pytest.approx(1.0, rel=1e-12)


def test_a_single_client_and_zero_changes_have_no_cosine():
    updates = some_updates(2)
    assert seen(adapter(), updates[:1], {"c0": 1.0}).cosine_mean is None
    still = replace(updates[1], delta={name: np.zeros_like(d) for name, d in updates[1].delta.items()})
    found = seen(adapter(), [updates[0], still], {"c0": 0.5, "c1": 0.5})
    assert found.cosine_min is None and found.increment_norm["c1"] == 0.0


def test_expensive_diagnostics_skip_some_modules(monkeypatch):
    monkeypatch.setattr(diagnostics, "OPERATIONS", 1000)
    assert seen(adapter(), some_updates(2), {"c0": 0.5, "c1": 0.5}).modules == 1


def test_measured_modules_are_of_all_kinds(monkeypatch):
    kinds, factors = "qkvogud", Factors(np.ones((2, 6), np.float32), np.ones((5, 2), np.float32))
    model = GlobalModel(Adapter({f"layers.{i:02}.{kind}": factors for i in range(30) for kind in kinds}, 2, 2.0))
    names = list(model.adapter.factors)
    monkeypatch.setattr(diagnostics, "OPERATIONS", np.inf)
    assert diagnostics.affordable(model, 4, names) == names
    monkeypatch.setattr(diagnostics, "OPERATIONS", diagnostics._cost(model, "layers.00.q", 4) * 210 / 7)
    some = diagnostics.affordable(model, 4, names)  # every seventh would be 30 times the same kind
    assert len(some) == 30 and some == sorted(some, key=names.index)
    assert all(2 <= sum(name.endswith(kind) for name in some) <= 7 for kind in kinds)
