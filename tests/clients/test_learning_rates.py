"""The learning rate of each local step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from shepherd.clients.learning_rates import effective_steps, learning_rates
from shepherd.errors import UsageError
from shepherd.recipe import load


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


def test_a_warm_up_continues_over_rounds_or_repeats_in_each_round():
    over_run = [learning_rates(1.0, 2, warmup_steps=3, rounds=3, round_index=i) for i in range(3)]
    assert over_run == [pytest.approx((1 / 3, 2 / 3)), (1.0, 1.0), (1.0, 1.0)]
    over_round = [learning_rates(1.0, 2, over="round", warmup_steps=2, rounds=3, round_index=i) for i in range(3)]
    assert over_round == [(0.5, 1.0)] * 3


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 3, 50])
@pytest.mark.parametrize("over", ["run", "round", "rounds"])
def test_rates_are_positive_and_never_above_the_peak(schedule, warmup, over):
    for index in range(4):
        rates = learning_rates(
            0.1, 5, schedule=schedule, over=over, round_index=index, rounds=4, warmup_steps=warmup, warmup_rounds=warmup
        )  # fmt: skip
        assert len(rates) == 5 and min(rates) > 0 and max(rates) <= 0.1


def test_clients_with_different_numbers_of_steps_have_the_same_position_in_the_schedule():
    few = learning_rates(1.0, 2, schedule="cosine", rounds=4, round_index=2)
    many = learning_rates(1.0, 50, schedule="cosine", rounds=4, round_index=2)
    assert few[0] == pytest.approx(many[0], abs=1e-12)


def test_an_unknown_schedule_is_refused_with_the_list_of_schedules():
    with pytest.raises(ValueError, match=r"unknown schedule: 'step'\. Known: constant, linear, cosine"):
        learning_rates(1.0, 1, schedule="step")


def test_over_rounds_the_rate_is_constant_inside_a_round_and_a_cosine_over_rounds():
    # OpenFedLLM: lr_min + (lr − lr_min) (1 + cos(π t / T)) / 2 for t = 0 … T − 1, for any number of steps.
    for t in range(5):
        expected = 1e-6 + (5e-5 - 1e-6) * (1 + math.cos(math.pi * t / 5)) / 2
        got = learning_rates(5e-5, 7, least=1e-6, schedule="cosine", over="rounds", round_index=t, rounds=5)
        assert got == pytest.approx([expected] * 7, rel=1e-12)


def test_over_rounds_the_warm_up_counts_rounds():
    rates = [
        learning_rates(
            1.0, 2, schedule="linear", over="rounds", round_index=t, rounds=6, warmup_rounds=2, warmup_steps=9
        )
        for t in range(6)
    ]
    # 1/2, 2/2; then 1 − t / 4
    assert rates == [(0.5, 0.5), (1.0, 1.0), (1.0, 1.0), (0.75, 0.75), (0.5, 0.5), (0.25, 0.25)]


@pytest.mark.parametrize("over", ["run", "round", "rounds"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_no_rate_is_below_the_least_and_the_last_comes_near_it(schedule, over):
    rates = [
        rate
        for t in range(50)
        for rate in learning_rates(1.0, 50, least=0.25, schedule=schedule, over=over, round_index=t, rounds=50)
    ]
    assert 0.25 < min(rates) < 0.25 + 0.75 / 49 and max(rates) == 1.0


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["training.min_learning_rate=1", "training.schedule=cosine"], "min_learning_rate = 1 is more than"),
        (["training.min_learning_rate=1e-6"], 'needs training.schedule = "linear" or "cosine"'),
        (["training.schedule_over=rounds", "training.warmup_steps=2"], "set training.warmup_rounds"),
        (["training.warmup_rounds=2"], 'needs training.schedule_over = "rounds", got "run"'),
    ],
)
def test_contradictory_settings_of_a_schedule_are_refused(overrides, message):
    with pytest.raises(UsageError) as caught:
        load(overrides=overrides)
    assert message in caught.value.message


def moved(gradients, rates, momentum: float, mu: float) -> float:
    """The distance of torch's SGD from 0 after these gradients and those of the proximal term."""
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    sgd = torch.optim.SGD([x], lr=1.0, momentum=momentum)
    for gradient, rate in zip(gradients, rates, strict=True):
        sgd.param_groups[0]["lr"] = rate
        x.grad = gradient + mu * x.detach()
        sgd.step()
    return x.item()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("mu", [0.0, 2.0])
@pytest.mark.parametrize("rates", [(0.1,) * 6, (0.05, 0.1, 0.1, 0.08, 0.04, 0.01)])
def test_effective_steps_equal_the_summed_effects_of_unit_gradients(rates, mu, momentum):
    # ‖a‖₁ from one gradient of 1 at a time, by torch: momentum, schedule and proximal term, each alone and together.
    alone = [moved(np.eye(6)[i], rates, momentum, mu) for i in range(6)]
    assert effective_steps(rates, 0.1, momentum, mu) == pytest.approx(sum(map(abs, alone)) / 0.1)


def test_effective_steps_match_the_closed_forms_of_fednova():
    # 2007.07481, §4.2: momentum [τ − ρ(1 − ρ^τ)/(1 − ρ)] / (1 − ρ); proximal Σ (1 − ημ)^i; decaying rates Σ η_i / η_1.
    rho, tau = 0.9, 50
    closed = (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)
    assert effective_steps((0.1,) * tau, 0.1, rho) == pytest.approx(closed)
    assert effective_steps((0.1,) * 3, 0.1, proximal=2.0) == pytest.approx(1 + 0.8 + 0.64)
    assert effective_steps((0.1, 0.05, 0.02), 0.1) == pytest.approx(1.7)
    assert effective_steps((0.1,) * 3, 0.1) == pytest.approx(3)
