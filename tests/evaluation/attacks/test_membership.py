"""Membership inference: AUC, the true positive rate at 1 % false positives, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from shepherd.evaluation.attacks.membership import auc, auc_within, clopper_pearson, true_positive_rate


def test_the_auc_is_the_share_of_pairs_that_are_in_order_ties_half():
    # pairs: 3 > 1, 3 > 2, 2 > 1, 2 = 2, 0 < 1, 0 < 2: 3 and a half of 6
    assert auc(np.array([3.0, 2.0, 0.0]), np.array([1.0, 2.0]))["auc"] == pytest.approx(3.5 / 6)


def test_exchanging_the_two_kinds_of_rows_mirrors_value_and_interval():
    rng = np.random.default_rng(1)
    inside, outside = rng.normal(0.7, 1, 83), rng.normal(0, 1, 120)
    there, back = auc(inside, outside), auc(outside, inside)
    assert there["auc"] > 0.6
    assert back["auc"] == pytest.approx(1 - there["auc"])
    assert back["ci95"] == pytest.approx([1 - bound for bound in reversed(there["ci95"])])


def test_the_order_of_the_rows_does_not_matter():
    rng = np.random.default_rng(2)
    inside, outside = rng.normal(0.3, 1, 60), rng.normal(0, 1, 150)
    again, once = auc(rng.permutation(inside), rng.permutation(outside)), auc(inside, outside)
    assert [again["auc"], *again["ci95"]] == pytest.approx([once["auc"], *once["ci95"]])
    assert true_positive_rate(rng.permutation(inside), rng.permutation(outside)) == true_positive_rate(inside, outside)


def test_the_interval_covers_one_half_where_nothing_was_learned():
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(400):
        low, high = auc(rng.normal(size=60), rng.normal(size=120))["ci95"]
        covered += low <= 0.5 <= high
    assert 0.91 <= covered / 400 <= 0.985  # 95 % and four standard errors


def test_the_interval_is_that_of_delong():
    # By hand: placements (1, 0.75, 0.5) of three rows and (2/3, 2/3, 1, 2/3) of four.
    found = auc(np.array([9.0, 5.0, 3.0]), np.array([1.0, 2.0, 7.0, 4.0]))
    above, below = np.array([1, 0.75, 0.5]), np.array([1, 1, 1 / 3, 2 / 3])
    assert found["auc"] == pytest.approx(above.mean()) == pytest.approx(below.mean())
    half = 1.959964 * np.sqrt(above.var(ddof=1) / 3 + below.var(ddof=1) / 4)
    assert found["ci95"] == pytest.approx([0.75 - half, 1.0])


def test_perfect_separation_has_an_interval_too():
    found = auc(np.arange(10.0) + 100, np.arange(40.0))
    assert found["auc"] == 1.0
    assert found["ci95"] == pytest.approx([0.025**0.1, 1.0])
    assert auc(np.arange(40.0), np.arange(10.0) + 100)["ci95"] == pytest.approx([0.0, 1 - 0.025**0.1])


def test_within_groups_a_difference_between_groups_does_not_count():
    groups_in, groups_out = np.array(["a"] * 50 + ["b"] * 10), np.array(["a"] * 10 + ["b"] * 50)
    inside, outside = (np.arange(60) % 5 + 10.0 * (groups == "a") for groups in (groups_in, groups_out))
    assert auc(inside, outside)["auc"] > 0.8
    assert auc_within(inside, outside, groups_in, groups_out) == {"auc": pytest.approx(0.5), "pairs": 1000}
    assert auc_within(inside, outside, groups_in, np.array(["c"] * 60)) is None


def test_the_true_positive_rate_is_taken_above_all_but_one_of_a_hundred():
    outside = np.arange(100.0)  # one false positive is allowed: the threshold is the second highest
    found = true_positive_rate(np.array([98.0, 98.5, 99.0, 3.0]), outside)
    assert (found["threshold"], found["false_positives"], found["tpr"]) == (98.0, 1, 0.5)
    assert found["ci95"] == pytest.approx(clopper_pearson(2, 4))


def test_rows_that_tie_with_outsiders_are_not_found():
    found = true_positive_rate(np.full(50, 1.0), np.full(200, 1.0))
    assert (found["tpr"], found["false_positives"]) == (0.0, 0)


@pytest.mark.parametrize("outsiders", [1, 99])
def test_a_rate_of_one_percent_needs_a_hundred_outsiders(outsiders):
    with pytest.raises(ValueError, match=f"{outsiders} rows outside"):
        true_positive_rate(np.arange(5.0), np.arange(float(outsiders)))


@pytest.mark.parametrize(
    "hits, trials, interval",
    [(0, 10, (0.0, 0.30850)), (10, 10, (0.69150, 1.0)), (5, 10, (0.18709, 0.81291)), (1, 100, (0.00025, 0.05446))],
)
def test_the_exact_interval_of_a_share_is_that_of_the_tables(hits, trials, interval):
    assert clopper_pearson(hits, trials) == pytest.approx(interval, abs=1e-5)
