"""The privacy ledger: ε from its lines alone, and what is refused when lines are missing."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest

from shepherd.errors import DataError
from shepherd.store.disk import DISK
from shepherd.store.lines import append, line_of
from shepherd.updates.privacy.accountant import Rounds, epsilons
from shepherd.updates.privacy.ledger import Ledger, Release, read_releases

SMALL, MIDDLE, LARGE = (100, 0.05, 20, 1e-3), (1000, 0.05, 200, 1e-4), (10_000, 0.01, 500, 1e-5)
"""(N, q, T, δ)."""
GOLDEN = [
    (SMALL, 1.0, 1.02734, 1.45441),
    (SMALL, 2.0, 0.27922, 0.35342),
    (MIDDLE, 2.0, 1.30382, 1.46875),
    (LARGE, 2.0, 0.43199, 0.47919),
]
DEARER = [
    (SMALL, 0.5, 6.09147, 8.03640), (SMALL, 0.7, 2.54601, 3.49383), (SMALL, 0.8, 1.79347, 2.50968),
    (SMALL, 1.5, 0.44827, 0.59064), (MIDDLE, 0.5, 21.19843, 24.84900), (MIDDLE, 0.7, 8.89576, 10.35112),
    (MIDDLE, 0.8, 6.47259, 7.51001), (MIDDLE, 1.0, 3.99931, 4.59501), (MIDDLE, 1.5, 1.96996, 2.22717),
    (LARGE, 0.5, 10.28301, 12.13017), (LARGE, 0.7, 3.59694, 4.37585), (LARGE, 0.8, 2.39944, 2.97903),
    (LARGE, 1.0, 1.32605, 1.65288), (LARGE, 1.5, 0.64166, 0.72454),
]  # fmt: skip


def release(number: int = 1, z: float = 2.0, clients: int = 100, q: float = 0.05, **changes) -> Release:
    return Release(1, number, clients, q, z, **{"clip": 0.5} | changes)


@pytest.mark.parametrize(
    ("setting", "z", "pld", "rdp"), [*GOLDEN, *(pytest.param(*case, marks=pytest.mark.slow) for case in DEARER)]
)
def test_the_epsilon_of_the_lines_is_that_of_the_reference(setting, z, pld, rdp):
    clients, q, rounds, delta = setting
    found = Ledger(release(t, z, clients, q) for t in range(1, rounds + 1)).epsilon(delta)
    assert found.pld == pytest.approx(pld, abs=1e-3) and found.rdp == pytest.approx(rdp, abs=1e-3)


@pytest.mark.slow
def test_one_more_attempt_costs_what_the_reference_says():
    ledger = Ledger(release(t, 1.0, 1000) for t in range(1, 201))
    assert ledger.epsilon(1e-4, [release(200, 1.0, 1000)]).pld == pytest.approx(4.00930, abs=1e-3)


def test_epsilon_rises_with_every_line_of_any_kind_and_does_not_depend_on_their_order():
    lines = [release(1, 3.0), release(1, 2.0), release(2, 3.0)]
    spent = [Ledger(lines[:count]).epsilon(1e-3).least for count in range(4)]
    assert spent[0] == 0 and spent == sorted(spent) and len(set(spent)) == 4
    assert Ledger(reversed(lines)).epsilon(1e-3) == Ledger(lines).epsilon(1e-3)
    assert Ledger(lines[:2]).epsilon(1e-3, lines[2:]) == Ledger(lines).epsilon(1e-3)
    assert Ledger([*lines, release(z=0.0)]).epsilon(1e-3).least == math.inf


def test_lines_of_one_noise_and_other_rates_each_count_with_their_own():
    rare, often = (release(1, 3.0, q=q) for q in (0.05, 0.3))
    spent = {name: Ledger(lines).epsilon(1e-3).least for name, lines in (
        ("rare", [rare, rare]), ("both", [rare, often]), ("often", [often, often]),
    )}  # fmt: skip
    assert spent["rare"] < spent["both"] < spent["often"]
    assert Ledger([rare, often]).epsilon(1e-3) == epsilons([Rounds(0.05, 3.0), Rounds(0.3, 3.0)], 1e-3)


def test_attempts_at_a_round_are_numbered():
    ledger = Ledger([release(1), release(2), release(2)])
    assert [ledger.attempt(number) for number in (1, 2, 3)] == [2, 3, 1]


def test_a_line_that_is_not_durable_is_not_in_the_ledger():
    def full(line):
        raise OSError("no space")

    ledger = Ledger(write=full)
    with pytest.raises(OSError, match="no space"):
        ledger.enter(release())
    assert ledger.releases == ()


def test_it_is_private_where_every_release_has_secret_noise():
    assert Ledger([release()]).private
    assert not Ledger([release(), release(noise="repeatable")]).private
    assert not Ledger([release(), release(z=0.0)]).private


# On disk


def written(path, *releases: Release) -> Ledger:
    def write(line):
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    ledger = Ledger(write=write)
    for one in releases:
        ledger.enter(one)
    return ledger


def test_what_is_read_is_what_was_entered(tmp_path):
    path = tmp_path / "privacy.jsonl"
    ledger = written(path, release(1), release(2, clip=1.25, count_noise=0.7, noise="repeatable"))
    assert tuple(read_releases(path)) == ledger.releases
    assert Ledger(read_releases(path)).mark() == ledger.mark()
    assert read_releases(tmp_path / "absent.jsonl") == []
    line = json.loads(path.read_text().splitlines()[0])
    assert line == {
        "attempt": 1, "round": 1, "clients": 100, "sampling_rate": 0.05, "noise_multiplier": 2.0, "clip": 0.5,
        "count_noise": 0.0, "noise": "secret", "unit": "client", "relation": "zero-out",
        "mechanism": "poisson-gaussian", "version": 1,
    }  # fmt: skip


def test_a_last_line_without_its_end_was_not_durable_and_does_not_count(tmp_path):
    path = tmp_path / "privacy.jsonl"
    written(path, release(1), release(2))
    path.write_bytes(path.read_bytes()[:-1])
    assert read_releases(path) == [release(1)]


@pytest.mark.parametrize("torn", [bytes(99), bytes(99) + b"\n", bytes(50) + b'"version": 1}\n', b'{"attempt": 1\0\0\n'])
def test_a_last_line_that_a_power_cut_tore_does_not_count_and_the_next_takes_its_place(tmp_path, torn):
    path = tmp_path / "privacy.jsonl"
    ledger = written(path, release(1), release(2))
    path.write_bytes(path.read_bytes() + torn)
    assert read_releases(path) == [release(1), release(2)]
    append(DISK, path, line_of(asdict(release(3))))
    assert read_releases(path) == [release(1), release(2), release(3)]
    path.write_bytes(path.read_bytes().replace(b'{"attempt"', b"\0" * 10))  # all of them, and not the last alone
    with pytest.raises(DataError, match="line 1 is not a release"):
        read_releases(path)
    path.write_bytes(bytes(99) + b"\n")
    with pytest.raises(DataError, match="has 0 of the 2 lines"):
        Ledger(read_releases(path)).check(ledger.mark())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"round": 1', '"turn": 1'),
        ('"noise_multiplier": 2.0', '"noise_multiplier": -2.0'),
        ('"sampling_rate": 0.05', '"sampling_rate": "0.05"'),
        ('"version": 1', '"version": 2'),
        ('"relation": "zero-out"', '"relation": "replace-one"'),
        ('"noise": "secret"', '"noise": "none"'),
        ("{", "["),
    ],
)
def test_a_line_of_another_version_or_without_meaning_is_refused(tmp_path, old, new):
    path = tmp_path / "privacy.jsonl"
    written(path, release(1))
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=r"line 1 is not a release .* cannot go on as private"):
        read_releases(path)


def test_fewer_lines_than_the_manifest_has_are_refused_and_more_count():
    whole = Ledger([release(1), release(2)])
    whole.check(whole.mark())
    whole.check(Ledger([release(1)]).mark())
    whole.check(None)
    with pytest.raises(DataError) as caught:
        Ledger([release(1)]).check(whole.mark())
    assert caught.value.message == (
        "privacy.jsonl has 1 of the 2 lines that the last round was committed with: the privacy account was cut; this "
        "run cannot go on as private"
    )


def test_lines_that_were_changed_after_a_round_was_committed_are_refused():
    mark = Ledger([release(1), release(2)]).mark()
    with pytest.raises(DataError, match="was changed after the last round"):
        Ledger([release(1, 3.0), release(2), release(3)]).check(mark)
