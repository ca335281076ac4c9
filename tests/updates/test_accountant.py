"""The privacy account: ε as the design has measured it, the noise for an ε, and what must hold for any account."""

from __future__ import annotations

import logging
import math
import sys
from pathlib import Path

import pytest

import shepherd
from shepherd.errors import UsageError
from shepherd.updates.privacy import accountant
from shepherd.updates.privacy.accountant import Rounds, epsilons, least_noise

SMALL, MIDDLE, LARGE = (0.05, 20, 1e-3), (0.05, 200, 1e-4), (0.01, 500, 1e-5)
"""(q, T, δ): 100 clients and 5 a round, 1,000 and 50, 10,000 and 100."""

EPSILONS = [
    (SMALL, 2.0, 0.27922, 0.35342),
    (MIDDLE, 2.0, 1.30382, 1.46875),
    (LARGE, 2.0, 0.43199, 0.47919),
]
DEARER = [
    (SMALL, 0.7, 2.54601, 3.49383),
    (SMALL, 1.0, 1.02734, 1.45441),
    (MIDDLE, 1.5, 1.96996, 2.22717),
    (LARGE, 1.5, 0.64166, 0.72454),
    (SMALL, 0.5, 6.09147, 8.03640),
    (SMALL, 0.8, 1.79347, 2.50968),
    (SMALL, 1.5, 0.44827, 0.59064),
    (MIDDLE, 0.5, 21.19843, 24.84900),
    (MIDDLE, 0.7, 8.89576, 10.35112),
    (MIDDLE, 0.8, 6.47259, 7.51001),
    (MIDDLE, 1.0, 3.99931, 4.59501),
    (LARGE, 0.5, 10.28301, 12.13017),
    (LARGE, 0.7, 3.59694, 4.37585),
    (LARGE, 0.8, 2.39944, 2.97903),
    (LARGE, 1.0, 1.32605, 1.65288),
]
"""(setting, noise multiplier, ε by PLD, ε by RDP) of dp-accounting 0.6.0, with intervals of 1e-4."""
NOISES = [(MIDDLE, 1.0, 2.4474)]
DEARER_NOISES = [
    (SMALL, 1.0, 1.0116),
    (MIDDLE, 2.0, 1.4853),
    (SMALL, 2.0, 0.7673),
    (SMALL, 4.0, 0.5889),
    (SMALL, 8.0, 0.4492),
    (MIDDLE, 4.0, 1.0000),
    (MIDDLE, 8.0, 0.7312),
    (LARGE, 1.0, 1.1464),
    (LARGE, 2.0, 0.8520),
    (LARGE, 4.0, 0.6763),
    (LARGE, 8.0, 0.5416),
]
"""(setting, ε, the least noise multiplier)."""


def slow(cases):
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


def of(setting, noise, times=1):
    q, rounds, delta = setting
    return epsilons([Rounds(q, noise, rounds * times)], delta)


@pytest.mark.parametrize(("setting", "noise", "pld", "rdp"), [*EPSILONS, *slow(DEARER)])
def test_epsilon_is_that_of_the_reference(setting, noise, pld, rdp):
    found = of(setting, noise)
    assert found.pld == pytest.approx(pld, abs=1e-4) and found.rdp == pytest.approx(rdp, abs=1e-4)
    assert found.least == found.pld


@pytest.mark.parametrize(("setting", "epsilon", "noise"), [*NOISES, *slow(DEARER_NOISES)])
def test_the_least_noise_keeps_within_its_epsilon_and_is_the_inverse(setting, epsilon, noise):
    q, rounds, delta = setting
    found = least_noise(epsilon, sampling_rate=q, rounds=rounds, delta=delta)
    assert found == pytest.approx(noise, abs=1e-3)
    assert epsilon - 1e-3 < of(setting, found).least <= epsilon


def test_rounds_of_several_kinds_add_up_to_one_account():
    """A cohort that is noised twice has the noise of one release at z/√2."""
    parts = [Rounds(0.05, 3.0, 19), Rounds(0.05, 3.0), Rounds(0.05, 1.0, 0)]
    assert epsilons(parts, 1e-3).pld == pytest.approx(of(SMALL, 3.0).pld, abs=1e-6)
    fresh = epsilons([Rounds(0.05, 3.0, 21)], 1e-3).pld
    again = epsilons([Rounds(0.05, 3.0, 19), Rounds(0.05, 3.0 / math.sqrt(2))], 1e-3).pld
    assert of(SMALL, 3.0).pld < fresh < again


@pytest.mark.slow
def test_a_round_again_with_the_same_cohort_is_dearer_than_one_more():
    assert epsilons([Rounds(0.05, 1.0, 201)], 1e-4).pld == pytest.approx(4.00930, abs=1e-4)
    again = epsilons([Rounds(0.05, 1.0, 199), Rounds(0.05, 1.0 / math.sqrt(2))], 1e-4).pld
    assert again == pytest.approx(4.06173, abs=1e-4)


def test_epsilon_rises_with_rounds_and_rate_and_falls_with_noise_and_delta():
    usual = of(SMALL, 3.0)
    for more in (of(SMALL, 3.0, times=2), of((0.06, 20, 1e-3), 3.0), of(SMALL, 2.9), of((0.05, 20, 9e-4), 3.0)):
        assert more.pld > usual.pld and more.rdp > usual.rdp


def test_without_noise_epsilon_is_infinite_with_much_noise_zero_and_without_rounds_zero():
    assert [of(SMALL, noise).least for noise in (0.0, 1e-300, 0.009)] == [math.inf] * 3
    assert math.inf > of(SMALL, 0.01).least > 2e4
    assert of(SMALL, 1e6).least == of(SMALL, 1e300).least == 0
    assert epsilons([], 1e-3).least == epsilons([Rounds(0.5, 1.0, 0)], 1e-3).least == 0
    assert epsilons([Rounds(0.05, 1e6, 20), Rounds(0.05, 0.0)], 1e-3).least == math.inf, "one round without noise"


def test_where_pld_finds_no_bound_that_of_rdp_holds():
    found = epsilons([Rounds(0.05, 10.0, 20)], 1e-15)
    assert found.pld == math.inf and 0 < found.rdp == found.least < 1


def test_everyone_in_every_round_is_the_gaussian_mechanism():
    """z = 3.7306 gives ε = 1 at δ = 1e-5 (Balle and Wang, 2018, theorem 8: Φ(½/z − εz) − e^ε Φ(−½/z − εz) = δ)."""
    z, normal = 3.730632, lambda x: 0.5 * math.erfc(-x / math.sqrt(2))
    assert normal(0.5 / z - z) - math.e * normal(-0.5 / z - z) == pytest.approx(1e-5, rel=1e-4)
    assert epsilons([Rounds(1.0, z)], 1e-5).pld == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("wrong", [(0.0, 1.0, 1), (1.1, 1.0, 1), (0.5, -1.0, 1), (0.5, math.inf, 1), (0.5, math.nan, 1),
                                   (math.nan, 1.0, 1), (0.5, 1.0, -1)])  # fmt: skip
def test_rounds_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match="no rounds of a subsampled Gaussian mechanism"):
        Rounds(*wrong)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-3, math.nan])
def test_a_delta_that_is_none_is_refused(delta):
    with pytest.raises(ValueError, match="is not between 0 and 1"):
        epsilons([Rounds(0.5, 1.0)], delta)


def test_an_epsilon_that_no_noise_reaches_or_that_needs_none_is_refused():
    with pytest.raises(UsageError, match="epsilon = 1e-09 is reached by no noise: with a noise multiplier of 8,192"):
        least_noise(1e-9, sampling_rate=1.0, rounds=1000, delta=1e-15)
    with pytest.raises(UsageError, match=r"epsilon = 100000 asks for almost no noise: a noise multiplier of 0\.0156"):
        least_noise(1e5, sampling_rate=0.05, rounds=1, delta=1e-3)


def test_orders_that_the_library_leaves_out_are_not_logged(caplog):
    accountant._epsilons((Rounds(0.05, 0.5, 3),), 1e-3, 100.0)
    assert caplog.records == [] and logging.getLogger("absl").level != logging.ERROR


def test_a_missing_extra_is_answered_with_its_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(UsageError, match="needs the optional package 'dp-accounting'") as caught:
        epsilons([Rounds(0.123, 1.234)], 1e-3)
    assert caught.value.hint == "pip install 'shepherd-fedit[dp]'"


def test_one_module_imports_the_accounting_library():
    folder = Path(shepherd.__file__).parent
    found = [path for path in folder.rglob("*.py") if "import dp_accounting" in path.read_text(encoding="utf-8")]
    assert found == [folder / "updates" / "privacy" / "accountant.py"]
