"""Adaptive clipping: how one noise multiplier pays for two releases, and where the clip goes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shepherd.updates.privacy.adaptive_clip import LEAST_CLIP, MOST_CLIP, count_noise, next_clip, update_noise


def test_the_noise_of_the_updates_is_that_of_the_paper():
    assert update_noise(1.0, count_noise(50)) == pytest.approx(1.02062, abs=1e-5)
    assert update_noise(1.0, count_noise(100)) == pytest.approx(1.00504, abs=1e-5)
    assert count_noise(50) == 2.5 and update_noise(0.0, count_noise(50)) == 0


@pytest.mark.parametrize("z", [0.5, 1.0, 2.0])
def test_five_clients_are_too_few_to_count(z):
    with pytest.raises(ValueError, match=r"a count with noise of 0\.25 spends more"):
        update_noise(z, count_noise(5))


@pytest.mark.parametrize(("z", "count"), [(0.5, 1.0), (1.0, 2.5), (2.0, 1.5)])
def test_both_releases_together_spend_what_one_of_the_noise_multiplier_does(z, count):
    both = math.hypot(1 / update_noise(z, count), 1 / (2 * count))
    assert 1 / both == pytest.approx(z, rel=1e-12)


def test_without_noise_the_clip_moves_to_the_median_norm():
    norms, clip = np.random.default_rng(0).lognormal(0.0, 0.5, 1001), 20.0
    for _ in range(200):
        clip, share = next_clip(clip, float(np.where(norms <= clip, 0.5, -0.5).sum()), 0.0, 1001)
    assert clip == pytest.approx(np.median(norms), rel=0.01) and share == pytest.approx(0.5, abs=0.01)


def test_the_clip_falls_where_all_are_below_it_and_rises_where_none_is():
    assert next_clip(1.0, 5.0, 0.0, 10) == (pytest.approx(math.exp(-0.1)), 1.0)
    assert next_clip(1.0, -5.0, 0.0, 10) == (pytest.approx(math.exp(0.1)), 0.0)
    assert next_clip(1.0, 0.0, 0.0, 10) == (1.0, 0.5), "nobody in the round"


def test_the_clip_reaches_neither_zero_nor_infinity():
    low = high = 1.0
    for _ in range(500):
        low, high = next_clip(low, 5.0, 0.0, 10)[0], next_clip(high, -5.0, 0.0, 10)[0]
    assert (low, high) == (LEAST_CLIP, MOST_CLIP)
    assert next_clip(1.0, -0.5, 0.0, 1e-5)[0] == MOST_CLIP, "one client where hardly any was expected"


def test_a_noise_multiplier_whose_inverse_square_overflows_is_that_of_the_updates():
    assert update_noise(1e-200, count_noise(50)) == 1e-200
