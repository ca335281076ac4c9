"""Many updates become one step: weights, means, and how far the mean of factors is from the mean of products."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from shepherd.clients.selection import selections
from shepherd.errors import ClientError
from shepherd.round import Plan, run_round
from shepherd.server.aggregation import aggregation_deviation, aggregators, step, update_weights
from shepherd.server.method import FactorMean
from shepherd.types import Adapter, ClientFailure, ClientUpdate, Factors, GlobalModel, Objective, ServerState, Work

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


def test_an_unknown_weighting_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"unknown weights: 'size'\. Known: examples, tokens, uniform"):
        update_weights(some_updates(), "size")


# Every aggregator joins these


@pytest.fixture(params=list(aggregators))
def aggregate(request):
    return aggregators.build(request.param)


def test_the_order_of_updates_changes_no_bit(aggregate):
    updates = some_updates()
    weights = update_weights(updates, "examples")
    straight = aggregate(updates, weights)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(updates))
        mixed = aggregate([updates[i] for i in order], [weights[i] for i in order])
        for name in straight:
            assert straight[name].tobytes() == mixed[name].tobytes()


def test_one_client_gets_its_own_update_back(aggregate):
    only = update("a", 3, examples=17)
    assert_close(aggregate([only], (1.0,)), only.delta, rtol=0, atol=0)


def test_clients_that_agree_get_what_they_agree_on(aggregate):
    updates = [replace(update("x", 3), client=f"c{k}", num_examples=k + 1) for k in range(7)]
    assert_close(aggregate(updates, update_weights(updates, "examples")), updates[0].delta)


def test_aggregates_have_the_modules_shapes_and_precision_of_the_updates(aggregate):
    updates = some_updates()
    result = aggregate(updates, update_weights(updates, "tokens"))
    assert set(result) == {f"{name}.{part}" for name in SHAPES for part in "AB"}
    for name, (n_in, n_out) in SHAPES.items():
        assert (result[f"{name}.A"].shape, result[f"{name}.B"].shape) == ((R, n_in), (n_out, R))
    assert all(array.dtype == np.float32 for array in result.values())


def test_aggregating_leaves_the_updates_as_they_were(aggregate):
    updates = some_updates()
    before = [u.delta["q.A"].copy() for u in updates]
    aggregate(updates, update_weights(updates, "uniform"))
    assert all(np.array_equal(u.delta["q.A"], b) for u, b in zip(updates, before, strict=True))


def test_an_aggregator_says_in_one_line_what_it_is():
    for name in aggregators:
        assert aggregators.describe(name), name


# FedIT


def test_fedit_is_the_weighted_mean_of_A_and_of_B():
    def flat(value):
        return {"m.A": np.full((1, 2), value, np.float32), "m.B": np.full((2, 1), -value, np.float32)}

    updates = [ClientUpdate(c, 1, flat(v), n, 1, 1) for c, v, n in (("a", 1, 1), ("b", 2, 3), ("c", 10, 4))]
    mean = aggregators.build("fedit")(updates, update_weights(updates, "examples"))
    # 1/8 · 1 + 3/8 · 2 + 4/8 · 10 = 5.875
    assert (mean["m.A"] == 5.875).all() and (mean["m.B"] == -5.875).all()


def test_fedit_sums_in_float64():
    # 1e8 + 1 − 1e8 = 1, and 0 in float32, where 1e8 + 1 is 1e8.
    def of(value):
        return {"m.A": np.full((1, 1), value, np.float32), "m.B": np.full((1, 1), value, np.float32)}

    updates = [ClientUpdate(c, 1, of(v), 1, 1, 1) for c, v in (("a", 1e8), ("b", 1.0), ("c", -1e8))]
    mean = aggregators.build("fedit")(updates, (0.25, 0.25, 0.25))
    assert mean["m.A"].item() == mean["m.B"].item() == 0.25


def test_a_step_adds_the_delta_and_keeps_everything_else():
    before = Adapter(adapter().factors, R, 4.0, True, "digest")
    delta = update("a", 5).delta
    after = step(before, delta)
    assert (after.r, after.alpha, after.rslora, after.base_digest) == (R, 4.0, True, "digest")
    assert_close(tensors(after.factors), {name: value + delta[name] for name, value in tensors(before.factors).items()})
    assert after.factors["q"].A.dtype == np.float32


# The deviation


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
def test_the_deviation_is_that_of_dense_products(by, spread):
    start = adapter(9)
    updates = [update(f"c{k}", seed=k, examples=k + 1, scale=spread) for k in range(4)]
    weights = update_weights(updates, by)
    expected = dense_deviation(start, updates, weights)
    got = aggregation_deviation(start, updates, dict(zip([u.client for u in updates], weights, strict=True)))
    assert got == pytest.approx(expected, rel=1e-2 if spread < 1e-3 else 1e-4)  # A + δ is rounded to float32
    assert expected > 0


def test_the_deviation_of_a_hand_worked_pair():
    # A = B = 1 for one client, 3 for the other, equal weights: products 1 and 9, mean 5; means 2 and 2, product 4.
    start = Adapter({"m": Factors(np.ones((1, 1), np.float32), np.ones((1, 1), np.float32))}, 1, 1.0)
    two = {"m": Factors(np.full((1, 1), 2, np.float32), np.full((1, 1), 2, np.float32))}
    none = {"m": Factors(np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32))}
    updates = [ClientUpdate("a", 1, tensors(none), 1, 1, 1), ClientUpdate("b", 1, tensors(two), 1, 1, 1)]
    assert aggregation_deviation(start, updates, {"a": 0.5, "b": 0.5}) == pytest.approx(1 / 5, rel=1e-12)


def test_clients_that_agree_or_are_alone_have_no_deviation():
    updates = [replace(update("x", 3), client=f"c{k}") for k in range(3)]
    assert aggregation_deviation(adapter(), updates, dict.fromkeys(("c0", "c1", "c2"), 1 / 3)) < 1e-12
    assert aggregation_deviation(adapter(), updates[:1], {"c0": 1.0}) == 0.0


def test_an_adapter_that_is_still_zero_has_no_deviation():
    start = Adapter({"m": Factors(np.ones((1, 2), np.float32), np.zeros((2, 1), np.float32))}, 1, 1.0)
    none = {"m": Factors(np.zeros((1, 2), np.float32), np.zeros((2, 1), np.float32))}
    assert aggregation_deviation(start, [ClientUpdate("a", 1, tensors(none), 1, 1, 1)], {"a": 1.0}) == 0.0


# In a round


class Answers:
    """An engine that gives these answers, whatever it is asked."""

    def __init__(self, *answers) -> None:
        self.answers = answers

    def train(self, task, private, observe):
        return iter(self.answers)

    def evaluate(self, model, rows):
        raise AssertionError("a round does not evaluate")


def begin(number: int = 0, **changes) -> ServerState:
    return ServerState(number, GlobalModel(adapter()), **changes)


def a_plan(clients, min_updates=1, weights="examples", rows=9, cohort=0) -> Plan:
    return Plan(
        seed=0, clients=tuple(clients), cohort_size=cohort or len(clients), select=selections.build("uniform"),
        method=FactorMean(aggregators.build("fedit")), weights=weights, min_updates=min_updates,
        work=lambda client, number, first: Work(client, first, rows, (0.2, 0.1)), rank=lambda client: R,
        objective=Objective(),
    )  # fmt: skip


def test_a_round_does_not_depend_on_the_order_in_which_answers_arrive():
    start, updates = begin(), some_updates()
    plan = a_plan([u.client for u in updates])
    state, record = run_round(start, plan, Answers(*updates))
    for order in ((4, 3, 2, 1, 0), (2, 0, 4, 1, 3)):
        other, again = run_round(start, plan, Answers(*(updates[i] for i in order)))
        ours, theirs = tensors(state.model.adapter.factors), tensors(other.model.adapter.factors)
        assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
        assert replace(again, seconds={}) == replace(record, seconds={})
        assert list(again.weights) == list(record.weights)


def test_a_round_steps_by_the_weighted_mean_and_records_who_counted_for_how_much():
    updates = [update("a", 0, examples=1), update("b", 1, examples=3)]
    start = begin(4, cursors={"a": 9})
    state, record = run_round(start, a_plan("ab"), Answers(*(replace(u, round=5) for u in updates)))
    assert state.round == record.round == 5 and record.weights == {"a": 0.25, "b": 0.75}
    a, b = (u.delta for u in updates)
    expected = {n: value + 0.25 * a[n] + 0.75 * b[n] for n, value in tensors(start.model.adapter.factors).items()}
    assert_close(tensors(state.model.adapter.factors), expected)
    assert state.cursors == {"a": 18, "b": 9}
    assert record.learning_rate == (0.2, 0.1)


def test_bytes_are_those_of_float32_factors_down_for_everyone_asked_up_for_every_answer():
    size = 4 * R * sum(n_in + n_out for n_in, n_out in SHAPES.values())
    failed = ClientFailure("b", 1, "non-finite", "the loss became nan")
    _, record = run_round(begin(), a_plan("abc"), Answers(update("a"), failed, update("c")))
    assert (record.bytes_down, record.bytes_up) == (3 * size, 2 * size)


def test_failed_refused_and_silent_clients_are_recorded_and_not_averaged():
    failed = ClientFailure("b", 1, "non-finite", "the loss became nan")
    stale = replace(update("c", 2), round=7)
    good = update("a", 1)
    start = begin()
    state, record = run_round(start, a_plan("abcd"), Answers(stale, failed, good))
    assert [(r["client"], r["code"]) for r in record.rejected] == [("b", "non-finite"), ("c", "stale-round")]
    assert record.missing == ("d",) and record.weights == {"a": 1.0}
    assert_close(tensors(state.model.adapter.factors), tensors(step(start.model.adapter, good.delta).factors))
    assert state.cursors == {"a": 9}  # the others' rows are still to come


def test_too_few_usable_updates_end_the_run_and_say_what_happened_to_each_client():
    failed = ClientFailure("b", 1, "non-finite", "the loss became nan")
    with pytest.raises(ClientError) as caught:
        run_round(begin(), a_plan("ab", min_updates=2), Answers(update("a"), failed))
    assert caught.value.exit_code == 6
    assert "round 1: 1 usable updates, 2 needed" in caught.value.message
    assert "b: non-finite: the loss became nan" in caught.value.message
    assert "training.learning_rate" in caught.value.hint
