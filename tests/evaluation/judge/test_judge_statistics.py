"""Intervals over questions and seeds, further tests, verdicts, power."""

from __future__ import annotations

import dataclasses
import math
from statistics import NormalDist

import numpy as np
import pytest

from shepherd.evaluation.judge import significance, statistics
from shepherd.evaluation.judge.power import planned, power, smallest_difference
from shepherd.evaluation.judge.statistics import cluster_means, compare, equivalence, relative_score, table, two_way
from shepherd.rng import stream


def test_the_interval_of_three_questions_is_the_t_interval():
    found = two_way(np.array([[-1.0, -2.0, -3.0]]))
    # mean −2, s = 1, se = 1 / √3; t = −2√3 with 2 degrees: p = 1 − √(12 / 14); t₀.₉₇₅ = 4.302653
    assert (found.value, found.degrees) == (-2, 2) and found.stderr == pytest.approx(3**-0.5)
    assert found.p() == pytest.approx(1 - math.sqrt(12 / 14), rel=1e-9)
    assert found.interval() == pytest.approx((-2 - 4.302653 / 3**0.5, -2 + 4.302653 / 3**0.5), rel=1e-6)


def test_two_seeds_and_two_questions_have_the_hand_computed_two_way_error():
    found = two_way(np.array([[1.0, 2.0], [4.0, 7.0]]))
    # Question means 2.5, 4.5: V_q = 2 / 2 = 1. Seed means 1.5, 5.5: 8 / 2 = 4, less the residual: (±0.5)² · 4 / 1 = 1,
    # over Q S = 4. V_s = 4 − 0.25 = 3.75. se² = 4.75, degrees = 4.75² / (1² / 1 + 3.75² / 1).
    assert found.value == 3.5 and found.stderr == pytest.approx(math.sqrt(4.75))
    assert found.degrees == pytest.approx(4.75**2 / (1 + 3.75**2))


def test_seeds_that_differ_less_than_the_residual_add_no_variance():
    found = two_way(np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 2.0]]))  # both means 1
    assert found.degrees == 2 and found.stderr == pytest.approx(math.sqrt(0.75 / 3))  # question means ½, ½, 2


@pytest.mark.parametrize("values", [[[1.0]], [[0.1, 0.1, 0.1]], [[0.0, 0.0], [0.0, 0.0]]])
def test_the_interval_is_absent_where_nothing_varies(values):
    found = two_way(np.array(values))
    assert (found.interval(), found.p(), found.degrees) == (None, None, None)
    (compared,) = table([compare(np.zeros_like(values), values)])
    assert compared.verdict == "no interval" and compared.holm_p is None


@pytest.mark.parametrize(("questions", "seeds", "seed_sd"), [(20, 3, 0.1), (80, 3, 0.0), (80, 3, 0.3), (80, 5, 0.3)])
def test_the_two_way_interval_errs_in_three_to_eight_of_a_hundred_comparisons_without_a_difference(
    questions, seeds, seed_sd
):
    rng = stream(0, "judge", "type-I error", questions, seeds)
    trials, false = 1200, 0
    for _ in range(trials):  # scores in half points, as judges give them
        values = rng.normal(0, 1.3, questions) + rng.normal(0, 0.8, (seeds, questions))
        scored = np.round(2 * (values + rng.normal(0, seed_sd, (seeds, 1)))) / 2
        false += two_way(scored).p() < 0.05
    assert 0.03 <= false / trials <= 0.08


def test_questions_alone_err_far_more_often_where_seeds_differ():
    rng = stream(0, "judge", "type-I error", "questions only")
    false = 0
    for _ in range(400):
        values = rng.normal(0, 1.3, 80) + rng.normal(0, 0.8, (3, 80)) + rng.normal(0, 0.3, (3, 1))
        false += two_way(values.mean(axis=0, keepdims=True)).p() < 0.05
    assert false / 400 > 0.15  # two-way: 0.03 to 0.08


def test_exchanging_the_two_systems_exchanges_every_figure_exactly():
    rng = stream(1, "judge", "exchange")
    for seeds, questions in [(1, 80), (3, 12), (5, 40), (1, 2)]:
        a, b = np.round(2 * rng.uniform(1, 10, (2, seeds, questions))) / 2
        there, back = (table([compare(*pair, margin=0.5)])[0] for pair in ((a, b), (b, a)))
        turned = {"higher": "lower", "lower": "higher"}.get(there.verdict, there.verdict)
        assert back == dataclasses.replace(
            there,
            total_a=there.total_b,
            total_b=there.total_a,
            relative=there.inverse,
            inverse=there.relative,
            wins=there.losses,
            losses=there.wins,
            difference=dataclasses.replace(there.difference, value=-there.difference.value),
            verdict=turned,
        )
        low, high = there.difference.interval()
        assert back.difference.interval() == (-high, -low)


def test_the_relative_score_is_a_ratio_of_sums_with_the_error_of_the_delta_method():
    a, b = np.array([[2.0, 4.0]]), np.array([[3.0, 3.0]])
    found = relative_score(a, b)
    assert found.value == 1  # the mean of ratios is 1.125
    assert found.stderr == pytest.approx(math.sqrt(2 / 1 * (1 + 1)) / 6)  # √(n / (n − 1) Σ (b − R a)²) / Σ a
    assert relative_score(np.zeros((1, 2)), b) is None


def test_wins_and_totals_of_seeds_are_those_of_question_means():
    found = compare([[1, 2, 3], [3, 2, 3]], [[2, 2, 1], [3, 2, 4]])
    assert (found.total_a, found.total_b, found.seeds, found.questions) == (14, 14, 2, 3)
    assert (found.wins, found.losses, found.ties) == (1, 1, 1)
    assert found.scope == "over seeds" and compare([1, 2], [2, 2]).scope.startswith("for this training")


def test_a_question_without_points_under_one_seed_is_left_out():
    found = compare([[1, np.nan, 3], [3, 2, 3]], [[2, 2, 1], [3, 2, 4]])
    assert found.questions == 2 and found.total_a == 10
    with pytest.raises(ValueError, match="no question"):
        compare([np.nan], [1])
    with pytest.raises(ValueError, match="different questions"):
        compare([1, 2], [1])


def test_the_sign_test_leaves_ties_out():
    assert significance.sign(4, 0) == 2 / 2**4 and significance.sign(0, 0) == 1
    assert significance.sign(2, 1) == 1


def test_all_signs_of_few_differences_are_permuted():
    assert significance.permutation(np.array([1.0, 2.0, 3.0])) == 2 / 8  # +++ and −−−
    assert significance.permutation(np.array([1.0, 1.0, -1.0])) == 1
    assert significance.permutation(np.array([3.0, 1.0, -1.0])) == 6 / 8  # |sum| ≥ 3: all but ±(3 − 1 − 1)
    assert significance.permutation(np.zeros(5)) == 1
    with pytest.raises(ValueError, match="too many"):
        significance.permutation(np.ones(20))
    assert compare(np.zeros(19), np.ones(19)).permutation_p == 2 / 2**19
    assert compare(np.zeros(20), np.arange(20)).permutation_p is None


def test_pratts_ranks_include_the_ties():
    # |d| = 0, 1, 2, 3 have ranks 1, 2, 3, 4, of which the zero's is dropped; r₋ = 0, mean (20 − 2) / 4 = 4.5,
    # variance (4·5·9 − 1·2·3) / 24 = 7.25
    z = 4.5 / math.sqrt(7.25)
    assert significance.wilcoxon(np.array([0.0, 1.0, 2.0, 3.0])) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-9)
    assert significance.wilcoxon(np.zeros(4)) == 1


def test_holm_multiplies_by_the_comparisons_left_and_never_falls():
    assert significance.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert significance.holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert significance.holm([]) == []


def test_a_verdict_needs_holms_p_over_the_whole_table():
    rng = stream(3, "judge", "verdicts")
    shape = rng.normal(0, 1, 40)
    shape = (shape - shape.mean()) / shape.std(ddof=1)
    p_003 = compare(np.zeros(40), shape + 0.357)
    assert 0.025 < p_003.p < 0.035
    assert [c.verdict for c in table([p_003])] == ["higher"]
    assert [c.verdict for c in table([p_003, p_003])] == ["not distinguishable"] * 2
    assert [c.verdict for c in table([compare(shape + 0.357, np.zeros(40))])] == ["lower"]


def test_equal_needs_a_margin_that_contains_the_90_percent_interval():
    rng = stream(4, "judge", "equal")
    b = rng.normal(0, 1, 200)
    difference = compare(np.zeros(200), b).difference
    low, high = difference.interval(0.10)
    edge = max(-low, high)
    assert equivalence(difference, edge) == pytest.approx(0.05)
    for margin, verdict in ((1.01 * edge, "equal within the margin"), (0.99 * edge, "not distinguishable")):
        assert table([compare(np.zeros(200), b, margin)])[0].verdict == verdict
    assert table([compare(np.zeros(200), b)])[0].verdict == "not distinguishable"


def test_items_of_a_cluster_are_averaged_first():
    turns = np.array([[1.0, 3.0, 10.0], [2.0, 2.0, 20.0]])
    assert cluster_means(turns, ["q1", "q1", "q2"]).tolist() == [[2, 10], [2, 20]]
    assert cluster_means(turns[0], [5, 4, 5]).tolist() == [5.5, 3]


def test_bca_of_a_ratio_repeats_with_its_seed_and_is_absent_without_variation():
    rng = stream(5, "judge", "bca")
    a, b = rng.uniform(1, 10, (2, 30))
    low, high = significance.bca_ratio(a, b, stream(0, "x"), 999)
    assert low < b.sum() / a.sum() < high and (low, high) == significance.bca_ratio(a, b, stream(0, "x"), 999)
    assert significance.bca_ratio(a, 2 * a, stream(0, "x"), 999) is None
    assert significance.bca_ratio(np.zeros(3), np.ones(3), stream(0, "x"), 999) is None
    assert significance.bca_ratio(np.ones(1), np.ones(1), stream(0, "x"), 999) is None


def test_bca_is_the_interval_of_its_formula_not_that_of_percentiles():
    rng = stream(7, "judge", "bca")
    a, b = rng.uniform(0.2, 1, 15), rng.exponential(1, 15)
    ratio = b.sum() / a.sum()
    rows = rng.integers(0, 15, (40_000, 15))
    draws = b[rows].sum(axis=1) / a[rows].sum(axis=1)
    left = np.array([np.delete(b, i).sum() / np.delete(a, i).sum() for i in range(15)])
    skew = ((left.mean() - left) ** 3).sum() / (6 * ((left.mean() - left) ** 2).sum() ** 1.5)
    normal = NormalDist()
    bias = normal.inv_cdf((draws < ratio).mean())
    levels = [normal.cdf(bias + (bias + z) / (1 - skew * (bias + z))) for z in (-1.959964, 1.959964)]
    expected = np.quantile(draws, levels)
    assert significance.bca_ratio(a, b, stream(0, "x")) == pytest.approx(expected, abs=0.04)
    assert abs(expected - np.quantile(draws, [0.025, 0.975])).max() > 0.1


@pytest.mark.parametrize("degrees", [1, 2.5, 19, 804])
def test_the_smallest_difference_is_found_with_80_percent_power(degrees):
    size = smallest_difference(0.3, degrees)
    assert power(size, 0.3, degrees) == pytest.approx(0.8, abs=1e-5)
    assert power(0.9 * size, 0.3, degrees) < 0.8 < power(1.1 * size, 0.3, degrees)


def test_a_planned_design_has_the_power_that_a_simulation_of_it_has():
    stderr, degrees = planned(80, 3, 1.54, seed_sd=0.3)
    size = smallest_difference(stderr, degrees)
    rng = stream(6, "judge", "power")
    questions = rng.normal(0, 1.54 * math.sqrt(0.7), (1000, 1, 80)) + rng.normal(
        0, 1.54 * math.sqrt(0.3), (1000, 3, 80)
    )
    found = [two_way(size + one).p() < 0.05 for one in questions + rng.normal(0, 0.3, (1000, 3, 1))]
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)


def test_a_planned_error_divides_the_part_of_the_seeds_by_the_seeds():
    # 2² · (0.7 + 0.3 / 3) / 80 = 0.04 and 0.3² / 3 = 0.03; degrees 0.07² / (0.04² / 79 + 0.03² / 2)
    stderr, degrees = planned(80, 3, 2.0, seed_sd=0.3)
    assert stderr == pytest.approx(0.07**0.5) and degrees == pytest.approx(0.0049 / (0.0016 / 79 + 0.0009 / 2))
    assert planned(80, 1, 2.0, seed_sd=0.3) == pytest.approx((0.05**0.5, 79))


def test_more_questions_help_until_the_seeds_rule():
    def smallest(questions, seeds, seed_sd=0.0):
        return smallest_difference(*planned(questions, seeds, 1.54, seed_sd=seed_sd))

    assert smallest(160, 1) < smallest(80, 1) < smallest(20, 1)
    assert smallest(805, 3, 0.3) > 0.9 * smallest(160, 3, 0.3), "with three seeds that differ"
    assert smallest(80, 5, 0.3) < smallest(80, 3, 0.3)
    with pytest.raises(ValueError, match="at least two questions"):
        planned(1, 1, 1.0)


def test_the_level_of_power_is_that_of_the_intervals():
    from shepherd.evaluation.judge.power import LEVEL

    assert LEVEL == statistics.LEVEL
