"""Differences between models on the same rows: an interval of the stated coverage, or the reason for its absence."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from shepherd.evaluation.ratios import ratio
from shepherd.evaluation.statistics import bootstrap_interval, difference_of_sums
from shepherd.rng import stream


def difference(between, weights=None, rng=None):
    """`difference_of_sums` of rows that differ by `between`; default weights are 1."""
    between = np.array(between, float)
    weights = np.ones(len(between)) if weights is None else np.array(weights)
    return difference_of_sums(between, np.zeros(len(between)), weights, rng)


def test_the_interval_and_p_of_three_rows_match_a_hand_computed_t_test():
    found = difference([-1, -2, -3])
    # mean −2, s = 1, se = 1 / √3; t = −2√3; with 2 degrees p = 1 − |t| / √(t² + 2) = 1 − √(12 / 14), t₀.₉₇₅ = 4.302653
    assert found["difference"] == -2 and found["stderr"] == pytest.approx(3**-0.5)
    assert found["p"] == pytest.approx(1 - math.sqrt(12 / 14), rel=1e-9)
    assert found["ci95"] == pytest.approx([-2 - 4.302653 / 3**0.5, -2 + 4.302653 / 3**0.5], rel=1e-6)
    assert (found["rows"], found["effective_rows"], found["no_interval"]) == (3, 3, None)


def test_rows_of_unequal_length_are_weighted_by_their_tokens():
    found = difference([1, 6], [1, 3])
    # R = 7 / 4; residuals 1 − 1.75, 6 − 5.25 = ∓0.75; se = √(2 / 1 · 1.125) / 4 = 0.375; one degree: 1 − 2/π · atan t
    assert found["difference"] == 1.75 and found["stderr"] == pytest.approx(0.375)
    assert found["p"] == pytest.approx(1 - 2 / math.pi * math.atan(1.75 / 0.375), rel=1e-9)
    assert found["effective_rows"] == pytest.approx(1.6)  # (1 + 3)² / (1 + 9)


def test_eighty_recorded_judgements_have_their_hand_computed_t_and_p():
    shape = np.sin(np.arange(80.0))
    between = 2.2625 + 1.9920 * (shape - shape.mean()) / shape.std(ddof=1)
    found = difference(between)  # t = 2.2625 / (1.9920 / √80) = 10.159
    assert found["difference"] / found["stderr"] == pytest.approx(10.159, abs=5e-4)
    assert found["p"] == pytest.approx(5.44e-16, rel=0.01)


def test_p_has_no_floor_and_is_below_5_percent_exactly_where_the_interval_excludes_zero():
    rng = np.random.default_rng(0)
    assert difference(rng.normal(1, 0.01, 50))["p"] < 1e-60
    for _ in range(300):
        found = difference(rng.normal(0.3, 1, 30), rng.integers(1, 40, 30))
        low, high = found["ci95"]
        assert (found["p"] < 0.05) == (not low <= 0 <= high)


def test_exchanging_the_models_changes_the_sign_alone():
    rng = np.random.default_rng(0)
    a, b, weights = rng.normal(3, 1, 40), rng.normal(3, 1, 40), rng.integers(1, 20, 40)
    one, other = difference_of_sums(a, b, weights), difference_of_sums(b, a, weights)
    assert other["difference"] == pytest.approx(-one["difference"])
    assert other["ci95"] == pytest.approx([-one["ci95"][1], -one["ci95"][0]])
    assert other["p"] == pytest.approx(one["p"])


DRAWS = {"normal": lambda rng, size: rng.normal(0, 1, size), "t3": lambda rng, size: rng.standard_t(3, size)}


@pytest.mark.parametrize("rows", [10, 20, 50, 200])
@pytest.mark.parametrize("draw", list(DRAWS))
@pytest.mark.parametrize("shortest", [40, 10])
def test_the_interval_covers_no_difference_in_93_to_97_of_a_hundred_samples(draw, rows, shortest):
    rng, trials = np.random.default_rng(rows), 2000
    covered = small = 0
    for _ in range(trials):
        tokens = rng.integers(shortest, 41, rows)
        found = difference(tokens * DRAWS[draw](rng, rows), tokens)
        covered += found["ci95"][0] <= 0 <= found["ci95"][1]
        small += found["p"] < 0.05
    # 95 % and four standard errors of 2,000 trials, √(0.05 · 0.95 / 2000) = 0.5 %
    assert 0.93 < covered / trials < 0.97
    assert covered + small == trials


@pytest.mark.parametrize(
    "between, weights, value, reason",
    [
        ([-0.5], [2], -0.25, "a single row has no spread"),
        ([-0.5, 0.0], [2, 0], -0.25, "a single row has no spread"),  # a row of weight 0 is none
        ([], [], None, "nothing to compare on"),
        ([1.0, 2.0], [0, 0], None, "nothing to compare on"),
        ([-9.0] * 9, [1] * 9, -9.0, "the same on every row"),
        ([-0.1 * 3, -0.1 * 7, -0.1 * 11], [3, 7, 11], -0.1, "the same on every row"),  # but for rounding
        ([0.0] * 4, [1, 3, 2, 5], 0.0, "equal on every row"),
        ([1.0, math.nan, math.inf], [1, 1, 1], None, "2 of 3 rows have no finite value"),
    ],
)
def test_a_missing_interval_has_a_reason(between, weights, value, reason):
    found = difference(between, weights, stream(0, "bootstrap"))
    assert found["difference"] == pytest.approx(value)
    assert (found["ci95"], found["p"], found["stderr"]) == ([None, None], None, None)
    assert found["bootstrap95"] == [None, None] and reason in found["no_interval"]
    json.dumps(found, allow_nan=False)


def test_rounding_of_equal_differences_is_not_variance():
    a, b = np.array([0.1 * 3, 0.2 * 3, 0.7 * 7]), np.array([0.2 * 3, 0.3 * 3, 0.8 * 7])
    assert np.ptp((a - b) / [3, 3, 7]) > 0  # −0.1 on each row, but for the last bits
    assert difference_of_sums(a, b, np.array([3, 3, 7]))["no_interval"] == "the difference is the same on every row"


def test_a_relative_variance_of_a_billionth_is_variance():
    found = difference_of_sums(np.array([1 + 1e-9, 1 + 2e-9, 1 + 3e-9]), np.ones(3), np.ones(3))
    assert found["difference"] == pytest.approx(2e-9, rel=1e-6) and found["no_interval"] is None


def test_a_row_of_weight_zero_is_ignored():
    assert difference([1.0, 2.0, 5.0], [1, 1, 0]) == difference([1.0, 2.0], [1, 1])


def test_infinite_losses_on_both_sides_have_no_difference():
    found = difference_of_sums([math.inf, 1.0], [math.inf, 2.0], [1, 1])
    assert found["difference"] is None and "1 of 2 rows" in found["no_interval"]


def test_results_are_plain_numbers():
    found = difference([1.0, 2.0, 4.0], [1, 2, 2], stream(0, "bootstrap"))
    assert json.loads(json.dumps(found)) == found


def test_the_bootstrap_agrees_with_the_interval_where_rows_are_many():
    rng = np.random.default_rng(2)
    tokens = rng.integers(10, 40, 400)
    values = tokens * rng.normal(-0.1, 1, 400)
    found = difference(values, tokens, stream(0, "bootstrap"))
    low, high = found["ci95"]
    assert found["bootstrap95"] == pytest.approx([low, high], abs=0.06 * (high - low))
    assert found["bootstrap95"] == bootstrap_interval(values, tokens, stream(0, "bootstrap"))
    assert found["bootstrap95"] != bootstrap_interval(values, tokens, stream(1, "bootstrap"))


def test_the_error_of_a_ratio_is_that_of_a_mean_where_weights_are_equal():
    values = np.random.default_rng(0).normal(3, 1, 40)
    assert ratio(values, np.ones(40)).stderr == pytest.approx(values.std(ddof=1) / 40**0.5)
    assert math.isnan(ratio(values[:1], np.ones(1)).stderr) and math.isnan(ratio(values, np.zeros(40)).value)


def test_the_distributions_are_loaded_only_when_they_are_needed():
    code = "import sys, shepherd.evaluation.statistics; assert not any(m.startswith('scipy') for m in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
