"""Aggregation of a round: weights, means, diagnostics, and the deviation of the mean of factors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from number_engine import NumberEngine
from shepherd.clients.selection import build_selection
from shepherd.errors import ClientError
from shepherd.round import Plan, run_round
from shepherd.server import diagnostics
from shepherd.server.diagnostics import diagnose, subspace_move
from shepherd.server.methods import build_method
from shepherd.server.weights import update_weights
from shepherd.types import (
    Adapter,
    ClientFailure,
    ClientModel,
    ClientUpdate,
    Factors,
    GlobalModel,
    Objective,
    ServerState,
    Work,
)

SHAPES = {"q": (5, 7), "v": (4, 3)}  # module: (in, out)
R = 2


def adapter(seed=0, scale=1.0) -> Adapter:
    rng = np.random.default_rng(seed)
    return Adapter({name: _factors(rng, name, scale) for name in SHAPES}, R, 4.0)


def _factors(rng, name, scale) -> Factors:
    n_in, n_out = SHAPES[name]
    return Factors(*(rng.normal(0, scale, size).astype(np.float32) for size in ((R, n_in), (n_out, R))))


def tensors(factors) -> dict[str, np.ndarray]:
    return {f"{name}.{part}": getattr(pair, part) for name, pair in factors.items() for part in "AB"}


def update(client: str, seed=0, examples=1, tokens=1, scale=0.1, round=1) -> ClientUpdate:
    rng = np.random.default_rng(seed)
    delta = tensors({name: _factors(rng, name, scale) for name in SHAPES})
    return ClientUpdate(client, round, delta, examples, tokens, 1, {"loss": 2.0})


def some_updates(count=5) -> list[ClientUpdate]:
    return [update(f"c{k}", seed=k, examples=k + 1, tokens=10 * k + 3) for k in range(count)]


def assert_close(a, b, rtol=1e-6, atol=1e-7) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=atol)


# Weights


@pytest.mark.parametrize(
    "by, expected",
    [
        ("examples", (0.125, 0.375, 0.5)),  # 1, 3, 4 of 8
        ("tokens", (0.6, 0.3, 0.1)),  # 60, 30, 10 of 100
        ("uniform", (1 / 3, 1 / 3, 1 / 3)),
    ],
)
def test_weights_are_shares_of_examples_of_target_tokens_or_equal(by, expected):
    updates = [update("a", 0, 1, 60), update("b", 1, 3, 30), update("c", 2, 4, 10)]
    assert update_weights(updates, by) == pytest.approx(expected, rel=1e-12)


def test_an_unknown_weighting_is_refused_with_the_list_of_weightings():
    with pytest.raises(ValueError, match=r"unknown weights: 'size'\. Known: examples, tokens, uniform"):
        update_weights(some_updates(), "size")


# FedIT


def flat(**values) -> dict[str, np.ndarray]:
    return {f"m.{part}": np.full((1, 1), value, np.float32) for part, value in values.items()}


def combined(name: str, updates, weights, start: Adapter | None = None) -> GlobalModel:
    start = start or Adapter({"m": Factors(np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32))}, 1, 1.0)
    views = {u.client: ClientModel(start) for u in updates}
    return build_method(name).combine(GlobalModel(start), views, updates, dict(zip("abc", weights, strict=False)))


def test_fedit_is_the_weighted_mean_of_A_and_of_B():
    updates = [ClientUpdate(c, 1, flat(A=v, B=-v), n, 1, 1) for c, v, n in (("a", 1, 1), ("b", 2, 3), ("c", 10, 4))]
    A, B = combined("fedit", updates, update_weights(updates, "examples")).adapter.factors["m"]
    # 1/8 · 1 + 3/8 · 2 + 4/8 · 10 = 5.875
    assert A.item() == 5.875 and B.item() == -5.875


def test_fedit_sums_in_float64():
    # 1e8 + 1 − 1e8 = 1, and 0 in float32, where 1e8 + 1 is 1e8.
    updates = [ClientUpdate(c, 1, flat(A=v, B=v), 1, 1, 1) for c, v in (("a", 1e8), ("b", 1.0), ("c", -1e8))]
    A, B = combined("fedit", updates, (0.25, 0.25, 0.25)).adapter.factors["m"]
    assert A.item() == B.item() == 0.25


def test_a_step_adds_the_delta_in_float32_and_keeps_everything_else():
    before = replace(adapter(), rslora=True, base_digest="digest")
    only = update("a", 5)
    after = combined("fedit", [only], (1.0,), before).adapter
    assert (after.r, after.alpha, after.rslora, after.base_digest) == (R, 4.0, True, "digest")
    expected = {name: value + only.delta[name] for name, value in tensors(before.factors).items()}
    assert all(np.array_equal(value, expected[name]) for name, value in tensors(after.factors).items())


# The diagnostics


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


# In a round


class Answers(NumberEngine):
    """An engine that returns these replies for any task."""

    def __init__(self, *answers) -> None:
        self.answers = answers

    def train(self, task, deadline, enough, observe):
        return iter(self.answers)


def begin(number: int = 0, **changes) -> ServerState:
    return ServerState(number, GlobalModel(adapter()), **changes)


def a_plan(clients, min_updates=1, weights="examples", rows=9, cohort=0) -> Plan:
    return Plan(
        seed=0, clients=tuple(clients), cohort_size=cohort or len(clients), select=build_selection("uniform"),
        method=build_method("fedit"), weights=weights, min_updates=min_updates,
        work=lambda client, number, first: Work(client, first, rows, (0.2, 0.1)), rank=lambda client: R,
        objective=Objective(),
    )  # fmt: skip


def test_a_round_does_not_depend_on_the_order_of_replies():
    start, updates = begin(), some_updates()
    plan = a_plan([u.client for u in updates])
    state, record = run_round(start, plan, Answers(*updates))
    for order in ((4, 3, 2, 1, 0), (2, 0, 4, 1, 3)):
        other, again = run_round(start, plan, Answers(*(updates[i] for i in order)))
        ours, theirs = tensors(state.model.adapter.factors), tensors(other.model.adapter.factors)
        assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
        assert replace(again, seconds={}) == replace(record, seconds={})
        assert list(again.weights) == list(record.weights)


def test_a_round_applies_the_weighted_mean_and_records_the_weights():
    updates = [update("a", 0, examples=1), update("b", 1, examples=3)]
    start = begin(4, cursors={"a": 9})
    state, record = run_round(start, a_plan("ab"), Answers(*(replace(u, round=5) for u in updates)))
    assert state.round == record.round == 5 and record.weights == {"a": 0.25, "b": 0.75}
    a, b = (u.delta for u in updates)
    expected = {n: value + 0.25 * a[n] + 0.75 * b[n] for n, value in tensors(start.model.adapter.factors).items()}
    assert_close(tensors(state.model.adapter.factors), expected)
    assert state.cursors == {"a": 18, "b": 9}
    assert record.learning_rate == (0.2, 0.1)


def test_traffic_counts_float32_factors_down_per_sampled_client_and_up_per_reply():
    size = 4 * R * sum(n_in + n_out for n_in, n_out in SHAPES.values())
    failed = ClientFailure("b", 1, "diverged", "the loss became nan")
    _, record = run_round(begin(), a_plan("abc"), Answers(update("a"), failed, update("c")))
    assert (record.bytes_down, record.bytes_up) == (3 * size, 2 * size)


def test_failed_rejected_and_lost_clients_are_recorded_and_not_averaged():
    failed = ClientFailure("b", 1, "diverged", "the loss became nan")
    stale = replace(update("c", 2), round=7)
    good = update("a", 1)
    start = begin()
    state, record = run_round(start, a_plan("abcd"), Answers(stale, failed, good))
    assert [(r["client"], r["code"]) for r in record.rejected] == [("b", "diverged"), ("c", "stale-round")]
    assert record.missing == ("d",) and record.weights == {"a": 1.0}
    expected = {name: value + good.delta[name] for name, value in tensors(start.model.adapter.factors).items()}
    assert_close(tensors(state.model.adapter.factors), expected)
    assert state.cursors == {"a": 9}  # the others have not trained on theirs


def test_too_few_usable_updates_end_the_run_with_the_failure_of_each_client():
    failed = ClientFailure("b", 1, "diverged", "the loss became nan")
    with pytest.raises(ClientError) as caught:
        run_round(begin(), a_plan("ab", min_updates=2), Answers(update("a"), failed))
    assert caught.value.exit_code == 6
    assert "round 1: 1 usable updates, 2 needed" in caught.value.message
    assert "b: diverged: the loss became nan" in caught.value.message
    assert "training.learning_rate" in caught.value.hint
