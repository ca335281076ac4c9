"""Who takes part in a round, and at which learning rate."""

from __future__ import annotations

import numpy as np
import pytest

from shepherd.clients.schedule import learning_rates
from shepherd.clients.selection import cohort_size, selections
from shepherd.rng import stream

CLIENTS = tuple(f"c{k:02}" for k in range(20))


@pytest.fixture(params=list(selections))
def select(request):
    return selections.build(request.param)


# Every selection joins these


@pytest.mark.parametrize("size", [1, 7, 20])
def test_a_cohort_has_the_size_asked_for_no_client_twice_and_is_sorted(select, size):
    for number in range(20):
        cohort = select(CLIENTS, size, stream(0, "select", number))
        assert len(cohort) == len(set(cohort)) == size and set(cohort) <= set(CLIENTS)
        assert list(cohort) == sorted(cohort)


def test_the_cohort_is_a_function_of_the_stream_and_not_of_the_order_of_names(select):
    first = select(CLIENTS, 5, stream(0, "select", 3))
    np.random.seed(12345)
    assert select(CLIENTS[::-1], 5, stream(0, "select", 3)) == first
    drawn = {select(CLIENTS, 5, stream(seed, "select", number)) for seed in range(4) for number in range(4)}
    assert len(drawn) == 16


def test_everyone_is_selected_when_everyone_is_asked(select):
    assert select(CLIENTS[::-1], 20, stream(0, "select", 1)) == CLIENTS


def test_uniform_draws_every_client_and_every_pair_equally_often():
    # 2,000 rounds of 5 from 20. Each client: mean 500. Each of 190 pairs: 2000 · (5·4)/(20·19) = 105.3.
    select = selections.build("uniform")
    rounds = np.zeros((2000, 20))
    for number, row in enumerate(rounds):
        row[[CLIENTS.index(c) for c in select(CLIENTS, 5, stream(1, "select", number))]] = 1
    counts = rounds.sum(0)
    # Within a round draws are dependent: the variance of a count is n·p·(1 − p), its covariance −n·p·(1 − p)/19.
    chi = ((counts - 500) ** 2).sum() / (2000 * 0.25 * 0.75) * 19 / 20
    assert 7.6 < chi < 38.6  # 0.5 and 99.5 % of χ² with 19 degrees of freedom would be 6.8 and 38.6
    pairs = (rounds.T @ rounds)[np.triu_indices(20, 1)]
    assert abs(pairs.mean() - 2000 * 20 / 380) < 1e-9
    assert 0.8 < pairs.var() / (105.26 * (1 - 105.26 / 2000)) < 1.25
    neighbours = (rounds[:-1] * rounds[1:]).sum() / 1999  # clients that two rounds in turn share: 5 · 5 / 20
    assert neighbours == pytest.approx(1.25, abs=0.08)


@pytest.mark.parametrize(
    "clients, per_round, fraction, expected",
    [
        (30, 0, 0.1, 3),  # 0.1 · 30 is 3.0000000000000004 in floating point
        (100, 0, 0.07, 7),  # 0.07 · 100 is 7.000000000000001
        (100, 0, 0.29, 29),  # 0.29 · 100 is 28.999999999999996
        (30, 0, 0.11, 4),  # 3.3, rounded up
        (10, 0, 0.01, 1),
        (1, 0, 0.5, 1),
        (3, 0, 1.0, 3),
        (7, 0, 1 / 7, 1),
        (8, 5, 1.0, 5),
        (8, 5, 0.1, 5),  # the number wins over the fraction
        (8, 9, 0.1, 8),
        (8, 8, 0.1, 8),
    ],
)
def test_the_cohort_is_the_number_asked_for_or_the_fraction_rounded_up(clients, per_round, fraction, expected):
    size = cohort_size(clients, per_round, fraction)
    assert size == expected and type(size) is int


# Learning rates


def test_a_constant_rate_is_the_peak_at_every_step():
    assert learning_rates(0.5, 3) == (0.5, 0.5, 0.5)


def test_a_linear_schedule_spans_all_rounds():
    # 2 rounds of 2 steps: 1 − i / 4 for i = 0 … 3, and 0 would come next.
    assert learning_rates(8.0, 2, schedule="linear", rounds=2, round_index=0) == (8.0, 6.0)
    assert learning_rates(8.0, 2, schedule="linear", rounds=2, round_index=1) == (4.0, 2.0)


def test_a_cosine_schedule_is_half_way_at_half_time():
    # (1 + cos(π i / 4)) / 2 for i = 0 … 3
    expected = (1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5)
    assert learning_rates(1.0, 4, schedule="cosine") == pytest.approx(expected, abs=1e-12)
    halves = (
        *learning_rates(1.0, 2, schedule="cosine", rounds=2),
        *learning_rates(1.0, 2, schedule="cosine", rounds=2, round_index=1),
    )
    assert halves == pytest.approx(expected, abs=1e-12)


def test_over_a_round_the_schedule_starts_anew_each_time():
    first = learning_rates(1.0, 4, schedule="linear", over="round", rounds=3, round_index=0)
    assert first == (1.0, 0.75, 0.5, 0.25)
    assert learning_rates(1.0, 4, schedule="linear", over="round", rounds=3, round_index=2) == first


def test_a_warm_up_rises_to_the_peak_and_the_rest_of_the_steps_fall_from_there():
    # 2 of 6 steps warm up: 1/2, 2/2; then 1 − i / 4.
    rates = learning_rates(1.0, 6, schedule="linear", warmup_steps=2)
    assert rates == (0.5, 1.0, 1.0, 0.75, 0.5, 0.25)
    assert learning_rates(1.0, 3, warmup_steps=4) == pytest.approx((1 / 3, 2 / 3, 1.0))  # not longer than the run


def test_a_warm_up_goes_on_over_rounds_and_over_a_round_comes_back():
    over_run = [learning_rates(1.0, 2, warmup_steps=3, rounds=3, round_index=i) for i in range(3)]
    assert over_run == [pytest.approx((1 / 3, 2 / 3)), (1.0, 1.0), (1.0, 1.0)]
    over_round = [learning_rates(1.0, 2, over="round", warmup_steps=2, rounds=3, round_index=i) for i in range(3)]
    assert over_round == [(0.5, 1.0)] * 3


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 3, 50])
@pytest.mark.parametrize("over", ["run", "round"])
def test_rates_are_positive_and_never_above_the_peak(schedule, warmup, over):
    for index in range(4):
        rates = learning_rates(
            0.1, 5, schedule=schedule, over=over, round_index=index, rounds=4, warmup_steps=warmup
        )  # fmt: skip
        assert len(rates) == 5 and min(rates) > 0 and max(rates) <= 0.1


def test_clients_with_other_numbers_of_steps_are_at_the_same_place_of_the_schedule():
    few = learning_rates(1.0, 2, schedule="cosine", rounds=4, round_index=2)
    many = learning_rates(1.0, 50, schedule="cosine", rounds=4, round_index=2)
    assert few[0] == pytest.approx(many[0], abs=1e-12)


def test_an_unknown_schedule_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"unknown schedule: 'step'\. Known: constant, linear, cosine"):
        learning_rates(1.0, 1, schedule="step")
