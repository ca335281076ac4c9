"""The noise of privacy: the distribution, the golden vector, and that no key is used twice."""

from __future__ import annotations

import math
import os
import sys

import numpy as np
import pytest
from scipy import stats

from shepherd.errors import UsageError
from shepherd.updates.privacy.noise import Noise, repeatable_key
from shepherd.updates.privacy.sampling import poisson_sample

KEY = bytes(range(32))
VECTOR = [-0.039036771, -0.950604226, 0.185026049, -0.882711358, -0.638577325, -0.68948155, 0.428059062, 1.443061643]
"""Eight numbers of the key 00 … 1f from counter 0: cosines, then sines."""


def test_the_noise_of_a_known_key_is_the_golden_vector():
    np.testing.assert_allclose(Noise(KEY).normal(8), VECTOR, atol=1e-9)


def test_an_odd_count_leaves_out_the_last_sine_and_the_next_numbers_are_new():
    source = Noise(KEY)
    np.testing.assert_allclose(source.normal(7), VECTOR[:7], atol=1e-9)
    assert not np.isin(source.normal(8), VECTOR).any()
    assert source.normal(0).shape == (0,)


def test_a_million_numbers_are_normal():
    drawn = Noise(KEY).normal(10**6)
    assert drawn.dtype == np.float64
    assert abs(drawn.std() - 1) < 4.9 / math.sqrt(2e6) and abs(drawn.mean()) < 4.9e-3
    assert stats.kstest(drawn, "norm").pvalue > 1e-4
    assert 4.5 < np.abs(drawn).max() < 6.5


def test_uniform_numbers_are_above_zero_and_have_their_quantiles():
    drawn = Noise(KEY).uniform(10**5)
    assert drawn.min() > 0 and drawn.max() <= 1
    assert stats.kstest(drawn, "uniform").pvalue > 1e-4


def test_each_source_has_a_fresh_key_of_the_system(monkeypatch):
    given = []

    def urandom(count):
        given.append(bytes([len(given)]) * count)
        return given[-1]

    monkeypatch.setattr(os, "urandom", urandom)
    first, second = Noise().normal(1000), Noise().normal(1000)
    assert [len(key) for key in given] == [32, 32]
    assert abs(np.corrcoef(first, second)[0, 1]) < 4.9 / math.sqrt(1000)
    np.testing.assert_array_equal(first, Noise(bytes(32)).normal(1000))


def test_a_key_has_32_bytes():
    with pytest.raises(ValueError, match="a key has 32 bytes, got 16"):
        Noise(bytes(16))


def test_repeatable_keys_depend_on_seed_round_and_purpose():
    keys = {repeatable_key(s, r, p) for s in (0, 1) for r in (1, 11) for p in ("noise", "cohort")}
    assert len(keys) == 8 and all(len(key) == 32 for key in keys)
    assert repeatable_key(0, 1, "noise") in keys


def test_a_missing_extra_is_answered_with_its_install_line(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("cryptography.hazmat.primitives.ciphers")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match="needs the optional package 'cryptography'") as caught:
        Noise()
    assert caught.value.hint == "pip install 'shepherd-fedit[dp]'"


# The cohort

CLIENTS = tuple(f"c{k:03}" for k in range(200))


def test_each_client_is_drawn_independently_with_the_sampling_rate():
    source = Noise(KEY)
    drawn = [poisson_sample(CLIENTS, 0.3, source) for _ in range(500)]
    times = np.array([[client in cohort for client in CLIENTS] for cohort in map(set, drawn)])
    assert abs(times.mean() - 0.3) < 4.9 * math.sqrt(0.21 / times.size)
    assert abs(times.sum(1).var() - 200 * 0.21) < 4.9 * 200 * 0.21 * math.sqrt(2 / 500), "sizes vary: no fixed size"
    assert times.mean(0).min() > 0.18 and times.mean(0).max() < 0.42
    assert all(list(cohort) == sorted(cohort) for cohort in drawn)


def test_everyone_is_drawn_at_a_rate_of_one_and_nobody_at_almost_none():
    class Last(Noise):
        def uniform(self, count):
            return np.ones(count)

    assert poisson_sample(CLIENTS, 1.0, Last(KEY)) == CLIENTS
    assert poisson_sample(CLIENTS, 0.5, Last(KEY)) == ()
