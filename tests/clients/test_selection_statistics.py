"""Frequencies of client selections and the bias of their means: statistics with fixed seeds at p < 1e-6."""

from __future__ import annotations

import numpy as np
import pytest

from pools import BY, CLIENTS, SEEN, SIZES, N, P, pool
from shepherd.clients.pool import Pool, Selection
from shepherd.clients.selection import _utility as utility_of
from shepherd.clients.selection import build_selection
from shepherd.rng import stream


def cohorts(selection: Selection, repeats: int, size: int, **known) -> tuple[np.ndarray, np.ndarray]:
    """(times drawn, weight) of each client in each round: [repeats, N], from the same pool."""
    times, weights = np.zeros((repeats, N)), np.zeros((repeats, N))
    given = pool(**known)
    for number in range(repeats):
        draw = selection.draw(given, size, stream(7, "select", number))
        parts = {c: given.shares[c] for c in draw.clients} if draw.weights is None else draw.weights
        total = sum(parts.values()) if draw.weights is None else 1.0
        for client in draw.clients:
            times[number, CLIENTS.index(client)] = draw.times(client)
            weights[number, CLIENTS.index(client)] = parts[client] / total
    return times, weights


def most(freedom: int, z: float = 4.753) -> float:
    """The 1 − 1e-6 quantile of χ² (Wilson & Hilferty)."""
    return freedom * (1 - 2 / (9 * freedom) + z * np.sqrt(2 / (9 * freedom))) ** 3


def test_the_limits_of_the_tests_are_right():
    # 100,000 draws of χ² with 19 degrees of freedom: of a limit at 1e-3 (z = 3.09), 100 are above it.
    values = stream(0, "chi").chisquare(19, 100_000)
    assert 60 < (values > most(19, 3.0902)).sum() < 145


# Frequencies


def test_uniform_draws_every_client_and_every_pair_equally_often():
    # 2,000 rounds of 5 from 20. Each client: mean 500. Each of 190 pairs: 2000 · (5·4)/(20·19) = 105.3.
    rounds, _ = cohorts(build_selection("uniform"), 2000, 5)
    # Within a round draws are dependent: the variance of a count is n·p·(1 − p), its covariance −n·p·(1 − p)/19.
    assert ((rounds.sum(0) - 500) ** 2).sum() / (2000 * 0.25 * 0.75) * 19 / 20 < most(19)
    pairs = (rounds.T @ rounds)[np.triu_indices(N, 1)]
    assert 0.6 < pairs.var() / (105.26 * (1 - 105.26 / 2000)) < 1.6  # 1 ± 4.9 · √(2 / 190)
    neighbours = (rounds[:-1] * rounds[1:]).sum() / 1999  # clients that two rounds in turn share: 5 · 5 / 20
    assert neighbours == pytest.approx(1.25, abs=0.1)


def test_size_weighted_draws_in_proportion_to_size_with_replacement():
    times, weights = cohorts(build_selection("size_weighted"), 2000, 5)
    assert ((times.sum(0) - 10_000 * P) ** 2 / (10_000 * P)).sum() < most(N - 1)
    assert times.max() > 1, "with replacement"
    np.testing.assert_allclose(weights, times / 5)


def test_poisson_draws_each_client_independently():
    times, _ = cohorts(build_selection("poisson", {"q": 0.2}), 4000, 99)
    assert ((times.sum(0) - 800) ** 2 / (4000 * 0.2 * 0.8)).sum() < most(N)
    # The size is binomial(20, 0.2): its variance is 3.2, and the variance of that estimate is about 2 · 3.2² / 4000.
    assert times.sum(1).var() == pytest.approx(3.2, abs=4.9 * 3.2 * np.sqrt(2 / 4000))
    pairs = (times.T @ times)[np.triu_indices(N, 1)]  # 4000 · 0.04 = 160 each
    assert ((pairs - 160) ** 2 / (160 * 0.96)).mean() == pytest.approx(1.0, abs=0.6)
    assert (times.sum(1) == 0).sum() == pytest.approx(4000 * 0.8**20, abs=4.9 * np.sqrt(46)), "empty draws stay empty"


def test_the_default_probability_of_poisson_is_that_of_the_cohort_size():
    times, weights = cohorts(build_selection("poisson"), 1000, 5, weights="uniform")
    assert times.mean() == pytest.approx(0.25, abs=4.9 * np.sqrt(0.25 * 0.75 / 20_000))
    assert set(np.unique(weights)) == {0.0, 1 / (0.25 * N)}, "1 / (qN), for every cohort"


def test_power_of_choice_takes_the_higher_loss_of_two_candidates_drawn_by_size():
    losses = {c: float((7 * k) % N) for k, c in enumerate(CLIENTS)}  # 7 and 20 have no common factor: all differ
    known = {"rounds": dict.fromkeys(CLIENTS, 1), "losses": losses}
    times, _ = cohorts(build_selection("power_of_choice", {"candidates": 2}), 4000, 1, **known)
    # k wins where it is drawn with somebody of lower loss: p_k p_j / (1 − p_k) first, p_j p_k / (1 − p_j) second.
    loss = np.array([losses[c] for c in CLIENTS])
    pair = P[:, None] * P[None, :] / (1 - P[:, None])
    wins = np.where(loss[:, None] > loss[None, :], pair + pair.T, 0).sum(1)
    assert wins.sum() == pytest.approx(1)
    expected = 4000 * wins
    often = expected > 5
    assert ((times.sum(0) - expected)[often] ** 2 / expected[often]).sum() < most(int(often.sum()))
    assert times[:, ~often].sum() < 40


def test_power_of_choice_draws_unknown_clients_first_and_those_without_updates_last():
    known = {"rounds": dict.fromkeys(CLIENTS[2:], 1), "losses": {c: float(SIZES[c]) for c in CLIENTS[4:]}}
    choice = build_selection("power_of_choice", {"candidates": N})
    assert choice.draw(pool(**known), 4, stream(0, "s")).clients == ("c00", "c01", "c18", "c19")
    assert choice.draw(pool(**known), 18, stream(0, "s")).clients == tuple(sorted({*CLIENTS} - {"c02", "c03"}))


def test_power_of_choice_with_as_many_candidates_as_the_cohort_draws_by_size_alone():
    times, _ = cohorts(build_selection("power_of_choice", {"candidates": 1}), 4000, 1, **SEEN)
    assert ((times.sum(0) - 4000 * P) ** 2 / (4000 * P)).sum() < most(N - 1)


def test_oort_explores_a_share_of_the_cohort_and_fills_it_by_utility():
    oort = build_selection("oort", {"exploration": 0.5, "decay": 1.0, "cutoff": 1.0, "penalty": 0.0})
    for number in range(50):
        clients = oort.draw(pool(**SEEN), 6, stream(1, "select", number)).clients
        assert len(clients) == 6 and sum(c in CLIENTS[12:] for c in clients) == 3
        # |S| · loss grows with k, so the best three of the known are c09, c10, c11.
        assert {c for c in clients if c in CLIENTS[:12]} == {"c09", "c10", "c11"}
    times, _ = cohorts(oort, 1000, 6, **SEEN)
    explored = times.sum(0)[12:]
    assert ((explored - 375) ** 2).sum() / (1000 * (3 / 8) * (5 / 8)) * 7 / 8 < most(7)


def test_oort_prefers_fast_and_long_unsampled_clients_and_explores_less_over_rounds():
    known = {
        "rounds": dict.fromkeys(CLIENTS, 4),
        "losses": {c: 1 / SIZES[c] for c in CLIENTS},  # |S| · loss is 1 for all
        "seconds": {c: 100.0 if c < "c10" else 1.0 for c in CLIENTS},
    }
    oort = build_selection("oort", {"cutoff": 1.0, "least": 0.0, "exploration": 0.0, "seconds": 1.0})
    assert set(oort.draw(pool(**known), 10, stream(0, "s")).clients) == set(CLIENTS[10:])
    known |= {"seconds": {}, "rounds": {c: 1 if c < "c10" else 4 for c in CLIENTS}}
    assert set(oort.draw(pool(**known), 10, stream(0, "s")).clients) == set(CLIENTS[:10])
    known = {"rounds": dict.fromkeys(CLIENTS[:10], 1), "losses": dict.fromkeys(CLIENTS[:10], 1.0)}
    fading = build_selection("oort", {"exploration": 1.0, "decay": 0.5, "least": 0.25})
    counts = [
        sum(c >= "c10" for c in fading.draw(pool(number=n, **known), 8, stream(0, "s", n)).clients)
        for n in (1, 2, 3, 9)
    ]
    assert counts == [8, 4, 2, 2]


def test_oort_draws_known_clients_in_proportion_to_their_utility():
    known = {"rounds": dict.fromkeys(CLIENTS, 10**12), "losses": dict.fromkeys(CLIENTS, 1.0)}
    greedy = build_selection("oort", {"cutoff": 0.0, "least": 0.0, "exploration": 0.0})
    times, _ = cohorts(greedy, 4000, 1, **known)
    clipped = np.minimum([SIZES[c] for c in CLIENTS], 19)  # the 95th percentile of 1 … 20
    expected = 4000 * clipped / clipped.sum()
    assert ((times.sum(0) - expected) ** 2 / expected).sum() < most(N - 1)


@pytest.mark.parametrize("claim", [1e12, 1.7e308])
def test_one_inflated_loss_does_not_disable_the_selection_of_oort(claim):
    # Without the clip all others had a utility of next to nothing beside the claim, and were drawn as if equal.
    honest = {"rounds": dict.fromkeys(CLIENTS, 10**12), "losses": dict.fromkeys(CLIENTS, 1.0)}
    claimed = honest | {"losses": honest["losses"] | {"c00": claim}}
    utility = utility_of(pool(**claimed), list(CLIENTS), 0.0, 0.0)
    np.testing.assert_allclose(utility[1:], [SIZES[c] / 20 for c in CLIENTS[1:]], atol=1e-5)  # as it was, and
    assert utility[0] == pytest.approx(1.0, abs=1e-5)  # at most the largest
    greedy = build_selection("oort", {"cutoff": 1.0, "least": 0.0, "exploration": 0.0})
    assert set(greedy.draw(pool(**claimed), 5, stream(0, "s")).clients) == {"c00", *CLIENTS[16:]}


@pytest.mark.parametrize("losses", [{"c00": -1e9}, dict.fromkeys(CLIENTS, -1.0), dict.fromkeys(CLIENTS, 1e308)])
def test_impossible_losses_do_not_break_the_draw_of_oort(losses):
    seen = {"rounds": dict.fromkeys(CLIENTS, 3), "losses": dict.fromkeys(CLIENTS, 1.0) | losses}
    assert len(build_selection("oort", {"cutoff": 0.0}).draw(pool(**seen), 5, stream(0, "s")).clients) == 5
    utility = utility_of(pool(**seen), list(CLIENTS), 0.0, 0.0)
    bonus = utility_of(pool(**seen | {"losses": dict.fromkeys(CLIENTS, 0.0)}), list(CLIENTS), 0.0, 0.0)
    assert ((utility >= bonus) & (utility <= bonus + 1)).all()  # less than nothing is nothing


def test_the_utility_of_oort_combines_loss_size_staleness_and_slowness():
    # n · loss = 8, 4, 2, of which the 95th percentile is the second: 4, 4, 2, and shares of that 1, 1, 1/2. In round 9,
    # sampled in rounds 1, 4 and 8, √(0.1 ln 9 / L) = 0.46875, half of it, 1/√8 of it. T is the median of 1, 2, 8 s; the
    # third is slower: (2/8)³ of it all.
    three = Pool(9, ("a", "b", "c"), {"a": 4, "b": 2, "c": 1}, {}, {"a": 1, "b": 4, "c": 8},
                 dict.fromkeys("abc", 2.0), {"a": 1.0, "b": 2.0, "c": 8.0})  # fmt: skip
    bonus = (0.1 * 2.1972245773362196) ** 0.5
    expected = [1 + bonus, 1 + bonus / 2, (0.5 + bonus / 8**0.5) / 64]
    np.testing.assert_allclose(utility_of(three, ["a", "b", "c"], 3.0, 0.0), expected, rtol=1e-12)


VALUES = np.random.default_rng(3).normal(size=(N, 3)) + np.linspace(-1, 1, N)[:, None]  # correlated with size


def deviations(weights: np.ndarray, by: str) -> np.ndarray:
    """The distance of the mean of Σ w_k x_k over rounds from Σ p_k x_k in standard errors, for three x."""
    estimates = weights @ VALUES
    return (estimates.mean(0) - BY[by] @ VALUES) / (estimates.std(0, ddof=1) / np.sqrt(len(estimates)))


# The mean


@pytest.mark.parametrize(
    "name, options, by",
    [
        ("uniform", {}, "uniform"),
        ("uniform", {"denominator": "all"}, "uniform"),
        ("uniform", {"denominator": "all"}, "examples"),
        ("size_weighted", {}, "examples"),
        ("poisson", {"q": 0.2}, "uniform"),
        ("poisson", {"q": 0.2}, "examples"),
        ("poisson", {}, "examples"),
    ],
)
def test_the_weighted_mean_over_many_draws_is_the_mean_over_all_clients(name, options, by):
    _, weights = cohorts(build_selection(name, options), 4000, 4, weights=by)
    assert np.abs(deviations(weights, by)).max() < 4.9


def test_the_test_of_the_mean_detects_double_counted_sizes_and_the_bias_of_a_ratio():
    times, _ = cohorts(build_selection("size_weighted"), 4000, 4)
    twice = times * P
    assert np.abs(deviations(twice / twice.sum(1, keepdims=True), "examples")).max() > 10
    _, ratio = cohorts(build_selection("uniform"), 4000, 2)
    assert np.abs(deviations(ratio, "examples")).max() > 4.9, "the ratio of FedAvg is biased in small cohorts"
