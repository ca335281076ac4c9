"""The sum law: the next model of a linear method depends on the updates through Σ w_k Δ_k alone.

Each row of the methods table is measured, so a method that is added has the right `linear` or fails here.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from federations import SEED, WEIGHTS, R, Round, a_round, after_rounds, random_update, whole
from shepherd.server.methods import build_method, methods
from shepherd.types import GlobalModel
from shepherd.updates.transforms import Contributions

STEPS = {"a": 1, "b": 3, "c": 5}
RULE = {"name": "trimmed_mean", "share": 0.4}
CASES = [
    *((name, "fedavg", "") for name in methods),
    *(("fedit", optimizer, "") for optimizer in ("fedavgm", "fedadam", "fednova")),
    ("fedit", "fedavg", RULE),
]


def _id(case) -> str:
    name, optimizer, rule = case
    return "-".join((name, *([optimizer] if optimizer != "fedavg" else []), *(["trimmed_mean"] if rule else [])))


@pytest.fixture(scope="module", params=CASES, ids=_id)
def done(request) -> Round:
    """The third round of a method: three clients of one rank, with unlike weights and steps."""
    name, optimizer, rule = request.param
    method = build_method(name, {}, optimizer, aggregator=rule)
    return a_round(method, after_rounds(method, 2), 3, steps=STEPS)


def test_other_updates_of_the_same_weighted_sum_give_the_same_model_exactly_where_a_method_is_linear(done):
    view, rng = done.views["a"], np.random.default_rng(2)
    moved = random_update(view, "", 3, rng).delta
    signs = {"a": 1 / done.weights["a"], "b": -1 / done.weights["b"], "c": 0.0}
    others = tuple(
        replace(u, delta={n: value + 0.2 * signs[u.client] * moved[n] for n, value in u.delta.items()})
        for u in done.updates
    )
    _holds_exactly_where_linear(done, done.after, replace(done, updates=others).after)


def test_one_pseudo_update_of_the_weighted_sum_gives_the_same_model_exactly_where_a_method_is_linear(done):
    # Three clients and a pseudo-update that nobody sent, against their sum.
    start = done.method.view(done.before, "(server)", R, 3, SEED)
    noise = random_update(start, "", 3, np.random.default_rng(1)).delta
    given = Contributions(3, done.updates, done.views, WEIGHTS).plus("noise", start, noise, 0.7)
    total = {n: sum(given.weights[u.client] * u.delta[n] for u in given.updates) for n in noise}
    summed = Contributions(3).plus("sum", start, total, 1.0)
    one, other = (done.method.combine(done.before, g.views, g.updates, g.weights) for g in (given, summed))
    _holds_exactly_where_linear(done, one, other)


def test_with_mixed_ranks_an_update_weighs_by_who_else_has_its_slots_so_the_sum_is_not_enough():
    method = build_method("fed_plora")
    before = after_rounds(method, 2)
    done = a_round(method, before, 3, ranks={"a": 1, "b": 2})
    assert method.linear, "of clients of one rank"
    start = method.view(before, "(server)", R, 3, SEED)
    total = {
        n: sum(WEIGHTS[u.client] * whole(done.views[u.client], u, n) for u in done.updates) for n in start.tensors()
    }
    summed = Contributions(3).plus("sum", start, total, 1.0)
    assert _apart(done.after, method.combine(before, summed.views, summed.updates, summed.weights)) > 1e-3


def _holds_exactly_where_linear(done: Round, one: GlobalModel, other: GlobalModel) -> None:
    apart = _apart(one, other)
    assert apart < 1e-10 if done.method.linear else apart > 1e-3, apart


def _apart(one: GlobalModel, other: GlobalModel) -> float:
    """The largest relative difference of a factor, or of an increment with its remainder."""
    return max(
        np.abs(a - b).max() / np.abs(a).max()
        for module in one.adapter.factors
        for a, b in zip(_parts(one, module), _parts(other, module), strict=True)
        if a.any()
    )


def _parts(model: GlobalModel, module: str) -> tuple[np.ndarray, ...]:
    A, B = model.adapter.factors[module]
    rest = model.remainder.get(module)
    return A, B, B @ A * model.adapter.scale + (rest.L @ rest.R if rest is not None else 0.0)
