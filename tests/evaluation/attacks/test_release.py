"""The lower bound of ε from releases: below the truth for honest noise, above the claim for a fault."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shepherd.evaluation.attacks.release import fitted, gaussian_epsilon, lower_bound

DELTA = 1e-5


def releases(shift=1.0, noise=1.0, seed=0, count=20_000):
    draw = np.random.default_rng(seed)
    return shift + noise * draw.normal(size=count), noise * draw.normal(size=count)


@pytest.mark.parametrize("noise, epsilon", [(1.0, 4.3772), (2.0, 1.9930)])
def test_epsilon_of_one_release_is_that_of_the_gaussian_mechanism(noise, epsilon):
    found = gaussian_epsilon(1 / noise, DELTA)
    assert found == pytest.approx(epsilon, abs=1e-3)
    mu = 1 / noise
    normal = lambda x: 0.5 * math.erfc(-x / math.sqrt(2))  # noqa: E731
    spent = normal(mu / 2 - found / mu) - math.exp(found) * normal(-mu / 2 - found / mu)
    assert spent == pytest.approx(DELTA, rel=1e-6)


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_the_bound_stays_below_the_epsilon_of_honest_noise_and_is_not_empty(noise):
    true = gaussian_epsilon(1 / noise, DELTA)
    bounds = [lower_bound(*releases(noise=noise, seed=seed), DELTA)["epsilon"] for seed in range(10)]
    assert 0.2 * true < min(bounds) and max(bounds) <= true
    assert fitted(*releases(noise=noise), DELTA) == pytest.approx(true, rel=0.05)


def test_a_release_without_a_clip_or_with_less_noise_passes_the_epsilon_that_is_claimed():
    claimed = gaussian_epsilon(1.0, DELTA)
    assert lower_bound(*releases(shift=10.0), DELTA)["epsilon"] > claimed
    assert lower_bound(*releases(noise=0.2), DELTA)["epsilon"] > claimed


def test_releases_that_say_nothing_have_a_bound_of_zero():
    assert lower_bound(*releases(shift=0.0), DELTA)["epsilon"] == 0.0
    assert gaussian_epsilon(0.0, DELTA) == 0.0
    assert fitted(np.ones(10), np.zeros(10), DELTA) == math.inf
