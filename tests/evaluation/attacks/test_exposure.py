"""Exposure: ranks, ties, the mean under chance, and the mean by copies."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shepherd.evaluation.attacks.exposure import Exposure, by_copies, chance, exposure


def test_the_lowest_loss_has_all_bits_and_the_highest_none():
    losses = np.array([3.0, 1.0, 2.0, 4.0])
    assert [exposure(losses, place).rank for place in range(4)] == [3, 1, 2, 4]
    assert exposure(losses, 1).bits == 2.0
    assert exposure(losses, 3).bits == 0.0
    assert exposure(losses, 2).bits == pytest.approx(1.0)


def test_ties_count_against_the_attack():
    assert exposure(np.array([1.0, 1.0, 1.0, 2.0]), 0) == Exposure(3, 4)
    assert exposure(np.zeros(1000), 17).bits == 0.0, "a model that knows nothing exposes nothing"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_losses_that_are_not_finite_are_not_ranked(bad):
    with pytest.raises(ValueError, match="1 of 3 candidates have no finite loss"):
        exposure(np.array([1.0, bad, 2.0]), 0)


def test_chance_is_the_mean_over_all_ranks_and_near_one_over_ln_2():
    for candidates in (2, 50, 1000):
        bits = [Exposure(rank, candidates).bits for rank in range(1, candidates + 1)]
        assert chance(candidates) == pytest.approx(np.mean(bits), abs=1e-9)
    assert chance(1000) == pytest.approx(1 / math.log(2), abs=0.01)


def test_a_random_model_exposes_its_codes_by_chance():
    rng = np.random.default_rng(0)
    bits = [exposure(rng.random(200), 0).bits for _ in range(4000)]
    assert np.mean(bits) == pytest.approx(chance(200), abs=4 * 1.44 / math.sqrt(4000))


def test_a_row_by_copies_has_the_means_of_its_codes_under_both_models():
    tuned = [Exposure(1, 8), Exposure(8, 8), Exposure(1, 8), Exposure(2, 8)]
    base = [Exposure(8, 8), Exposure(4, 8), Exposure(2, 8), Exposure(8, 8)]
    assert by_copies([4, 0, 4, 0], tuned, base) == [
        {"copies": 0, "codes": 2, "tuned": 1.0, "base": 0.5, "most_exposed": 2.0, "first": 0},
        {"copies": 4, "codes": 2, "tuned": 3.0, "base": 1.0, "most_exposed": 3.0, "first": 2},
    ]
