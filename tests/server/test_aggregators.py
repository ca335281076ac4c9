"""Rules over stacked deltas: every name in the registry joins the promises, and every method takes or refuses them."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from federations import SHAPES, WEIGHTS, a_round, after_rounds, assert_near, begin, whole
from shepherd.config import Config
from shepherd.errors import ClientError, UsageError
from shepherd.experiment.method import prepare_method, prepare_selection
from shepherd.recipe import resolve
from shepherd.server.aggregators import Aggregator, aggregators, build_aggregator
from shepherd.server.composition import aggregator_conflicts
from shepherd.server.methods import build_method, check_ranks, methods
from shepherd.testing import check_aggregator

REASONS = {
    "fed_sb": "no mean of factors",
    "ravan": "no mean of factors",
    "flora": "no mean of factors",
    "fedilora": "weighs each rank slot",
    "lora_a2": "slots of their choice",
}
"""A method of each kind that refuses -> the reason."""


def median(stacked: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.median(stacked, axis=0)


FITTING = [name for name in methods if not list(aggregator_conflicts(build_method(name).pieces))]


@pytest.mark.parametrize("name", list(aggregators))
def test_a_registered_rule_keeps_the_promises_of_aggregation(name):
    check_aggregator(name)


BROKEN = {
    "depends on the order": lambda stacked, weights: stacked[0],
    "what they agree on": lambda stacked, weights: np.sign(stacked.sum(axis=0)),
    "move the model": lambda stacked, weights: stacked.mean(axis=0) + 1e-14,
    "not finite": lambda stacked, weights: stacked.mean(axis=0) / 0.0,
    "the second time": lambda stacked, weights: stacked.mean(axis=0) * (1 + 1e-13 * np.random.default_rng().normal()),
}


@pytest.mark.parametrize("words", BROKEN)
@pytest.mark.filterwarnings("ignore:divide by zero|invalid value")
def test_a_rule_that_breaks_a_promise_is_refused_with_its_name(words):
    with pytest.raises(AssertionError, match=words):
        check_aggregator(BROKEN[words])


@pytest.mark.parametrize("name", FITTING)
def test_the_mean_as_a_rule_is_the_mean_of_the_method(name):
    method = build_method(name)
    model = after_rounds(method, 2)
    ours = a_round(build_method(name, aggregator="mean"), model, 3).after
    theirs = a_round(method, model, 3).after
    for module, (A, B) in theirs.adapter.factors.items():
        assert_near(ours.adapter.factors[module].A, A, 1e-13)
        assert_near(ours.adapter.factors[module].B, B, 1e-13)
        if module in theirs.remainder:
            assert_near(ours.remainder[module].dense(), theirs.remainder[module].dense(), 1e-12)


def test_the_rule_gets_the_deltas_of_one_factor_by_client_and_weights_that_sum_to_one():
    seen = {}

    def rule(stacked, weights):
        seen[stacked.shape[1:]] = stacked, weights
        return np.median(stacked, axis=0)

    method = build_method("fedit", aggregator=rule)
    done = a_round(method, begin(method), 1)
    after = done.after
    for module in SHAPES:
        for part in "AB":
            before = getattr(done.before.adapter.factors[module], part)
            deltas = np.stack([whole(done.views[u.client], u, f"{module}.{part}") for u in done.updates])
            stacked, weights = seen[before.shape]
            assert stacked.dtype == weights.dtype == np.float64
            assert_near(stacked, deltas, 1e-13)
            assert_near(weights, np.array([WEIGHTS[u.client] for u in done.updates]), 1e-15)
            assert_near(getattr(after.adapter.factors[module], part), before + np.median(deltas, axis=0), 1e-13)


def test_only_factors_that_were_sent_are_aggregated():
    method = build_method("ffa_lora", aggregator=median)
    done = a_round(method, begin(method), 1)
    for module, (A, B) in done.after.adapter.factors.items():
        assert np.array_equal(A, done.before.adapter.factors[module].A) and B.any()


def test_the_server_optimizer_steps_on_the_aggregated_delta():
    plain, halved = (build_method("fedit", {}, "fedavg", {"learning_rate": rate}, median) for rate in (1.0, 0.5))
    model = begin(plain)
    whole_step, half_step = (a_round(method, model, 1).after for method in (plain, halved))
    for module, (A, B) in model.adapter.factors.items():
        assert_near(half_step.adapter.factors[module].A - A, (whole_step.adapter.factors[module].A - A) / 2, 1e-12)
        assert_near(half_step.adapter.factors[module].B - B, (whole_step.adapter.factors[module].B - B) / 2, 1e-12)


def test_one_wild_client_moves_a_mean_and_not_a_trimmed_one():
    clients = {f"c{i}": 0.1 for i in range(10)}

    def wild(update):
        delta = {n: d + 1e3 for n, d in update.delta.items()} if update.client == "c3" else update.delta
        return replace(update, delta=delta)

    moved = {}
    for name in ("mean", "trimmed_mean"):
        method = build_method("fedit", aggregator=name)
        done = a_round(method, begin(method), 1, weights=clients, change=wild)
        moved[name] = np.abs(done.after.adapter.factors["q"].B).max()
    assert moved["mean"] > 99 and moved["trimmed_mean"] < 1


def test_trimming_leaves_out_the_share_at_either_end():
    stacked = np.arange(10.0)[:, None] ** 2
    trimmed = build_aggregator({"name": "trimmed_mean", "share": 0.2})
    assert trimmed.aggregate(stacked, np.ones(10) / 10, "m.A") == np.mean(np.arange(2, 8) ** 2)
    with pytest.raises(UsageError, match=r"share must be at least 0 and less than 0\.5, got 0\.5"):
        build_aggregator({"name": "trimmed_mean", "share": 0.5})


@pytest.mark.parametrize("name", sorted(set(methods) - set(FITTING)))
def test_a_method_that_cannot_take_a_rule_refuses_it_with_the_reason(name):
    with pytest.raises(UsageError, match=REASONS.get(name, "do not fit")) as caught:
        build_method(name, aggregator="trimmed_mean")
    assert 'federation.aggregator = "trimmed_mean"' in caught.value.message and "fedit" in caught.value.hint


def test_the_methods_that_average_factors_take_a_rule():
    assert {"fedit", "ffa_lora", "rolora", "la_lora", "fedsa_lora", "fedper_lora"} <= set(FITTING)
    assert not set(FITTING) & REASONS.keys()


MISFITS = {
    'federation.aggregator "mean" do not fit: it divides': {"server": {"optimizer": "fednova"}},
    "objective.scaffold = true and federation.aggregator": {"objective": {"scaffold": True}},
    "lora.ranks do not fit: it stacks": {"lora": {"r": 8, "ranks": [4, 8]}},
}


@pytest.mark.parametrize("words", MISFITS)
def test_settings_that_need_a_sum_refuse_a_rule(words):
    with pytest.raises(UsageError, match=re.escape(words)):
        prepare_method(resolve({"federation": {"aggregator": "mean"}, **MISFITS[words]}))


def test_a_selection_with_a_fixed_denominator_refuses_a_rule():
    config = resolve({"federation": {"aggregator": "mean"}, "selection": {"name": "poisson"}})
    with pytest.raises(UsageError, match=r'selection.name = "poisson" and federation\.aggregator = "mean" do not fit'):
        prepare_selection(config, prepare_method(config), ("a", "b"))


def test_a_rule_stays_when_other_pieces_or_the_optimizer_change():
    method = build_method("fedit", aggregator=median).changed({"split": "svd_balanced"})
    assert method.aggregator is not None and method.pieces.merge.name == "median" and not method.exact
    with pytest.raises(UsageError, match="do not fit"):
        method.changed({"merge": "product", "split": "svd_balanced"})
    check_ranks(method, [4], 4)


FAULTS = {
    r"failed on o\.A: ZeroDivisionError: division by zero": lambda stacked, weights: 1 / 0,
    r"returned \[3\] for o\.A, expected \[4, 40\]": lambda stacked, weights: weights,
    r"failed on o\.A: ValueError: could not convert": lambda stacked, weights: "what",
}


@pytest.mark.parametrize("words", FAULTS)
def test_a_rule_that_breaks_its_contract_is_named_with_the_tensor(words):
    method = build_method("fedit", aggregator=Aggregator("mine", FAULTS[words]))
    with pytest.raises(UsageError, match=f"aggregator 'mine' {words}"):
        _ = a_round(method, begin(method), 1).after


def test_a_rule_that_gives_nan_is_stopped_by_the_check_of_the_next_model():
    method = build_method("fedit", aggregator=lambda stacked, weights: np.full(stacked.shape[1:], np.nan))
    with pytest.raises(ClientError, match="the merged factors"):
        _ = a_round(method, begin(method), 1).after


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("trimed_mean", "unknown aggregator: 'trimed_mean'. Did you mean 'trimmed_mean'?"),
        ({"share": 0.2}, "an aggregator is a name or a table"),
        ({"name": "mean", "share": 0.2}, "aggregator 'mean' has no option 'share'"),
        ("numpy:median", "aggregator 'numpy:median'"),
        ("nowhere.rules:median", "cannot be imported"),
    ],
)
def test_a_wrong_name_or_option_is_answered_with_what_there_is(spec, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        build_aggregator(spec)


def test_the_default_is_the_methods_own_merge():
    assert Config().federation.aggregator == "" and prepare_method(Config()).aggregator is None


def test_trimming_leaves_out_one_of_three_clients_or_more_where_its_share_rounds_to_none():
    trimmed = build_aggregator("trimmed_mean")
    for clients in (3, 4, 8):
        stacked = np.zeros((clients, 1))
        stacked[1] = 1e6
        assert trimmed.aggregate(stacked, np.ones(clients) / clients, "m.A") == 0
    assert build_aggregator({"name": "trimmed_mean", "share": 0.0}).aggregate(stacked, np.ones(8) / 8, "m.A") == 1.25e5
    share = {"name": "trimmed_mean", "share": 0.29}
    many = np.r_[np.full(29, -1e6), np.zeros(42), np.full(29, 1e6)][:, None]
    many[28] = -5.0  # the 29th from below, which 0.29 · 100 = 28.999999999999996 would keep
    assert build_aggregator(share).aggregate(many, np.ones(100) / 100, "m.A") == 0


def test_a_rule_that_works_in_place_does_not_reach_the_next_factor():
    def rule(stacked, weights):
        weights *= 0
        stacked += 1
        return np.zeros(stacked.shape[1:])

    seen = []
    method = build_method(
        "fedit", aggregator=lambda stacked, weights: (seen.append(weights.sum()), rule(stacked, weights))[1]
    )
    _ = a_round(method, begin(method), 1).after
    assert seen == [pytest.approx(1.0)] * 4
