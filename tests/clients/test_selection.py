"""Client selections: properties of every rule, and settings that are refused."""

from __future__ import annotations

import pytest

from pools import CLIENTS, JSON, pool, trace
from shepherd.clients.pool import Draw, Pool, Selection, selections
from shepherd.clients.selection import build_selection, cohort_size
from shepherd.clients.selection_conflicts import conflicts
from shepherd.errors import UsageError
from shepherd.rng import stream
from shepherd.testing import check_selection

EVERYBODY = '{"*": [[1, null]]}'


def options_of(name: str, folder) -> dict[str, str]:
    return {"trace": trace(folder, EVERYBODY)} if name == "availability" else {}


# Properties of every selection


@pytest.mark.parametrize("name", list(selections))
def test_a_selection_keeps_the_promises_of_client_selection(name, tmp_path):
    check_selection(name, **options_of(name, tmp_path))


@pytest.mark.parametrize("name", list(selections))
def test_a_selection_draws_from_one_client_without_history(name, tmp_path):
    only = Pool(1, ("a",), {"a": 3}, {"a": 1.0})
    selection = build_selection(name, options_of(name, tmp_path))
    assert selection.draw(only, 1, stream(0, "select", 1)).clients == ("a",)


# Refused settings


def test_unknown_selections_and_options_are_refused_with_a_suggestion(tmp_path):
    with pytest.raises(
        UsageError, match=r"unknown selection: 'posson'\. Did you mean 'poisson'\? Known: availability, "
    ):
        build_selection("posson")
    with pytest.raises(UsageError, match=r"'power_of_choice' has no option 'candidate'\. Did you mean 'candidates'"):
        build_selection("power_of_choice", {"candidate": 4})
    with pytest.raises(UsageError, match="q must be a number"):
        build_selection("poisson", {"q": "often"})
    with pytest.raises(UsageError, match=r"q is a probability, got 1\.5"):
        build_selection("poisson", {"q": 1.5})
    with pytest.raises(UsageError, match="exploration lies between 0 and 1, got 2"):
        build_selection("oort", {"exploration": 2.0})
    with pytest.raises(UsageError, match="candidates is 0 or the number"):
        build_selection("power_of_choice", {"candidates": -1})
    path = trace(tmp_path, JSON)
    with pytest.raises(UsageError, match=r"'uniform' has no option 'q'"):
        build_selection("availability", {"trace": path, "q": 0.1})
    with pytest.raises(UsageError, match="then names what draws among the available"):
        build_selection("availability", {"trace": path, "then": "availability"})
    with pytest.raises(UsageError, match="missing a required argument: 'trace'"):
        build_selection("availability")


def test_a_registered_function_is_a_selection():
    assert build_selection("test_selection:first").draw(pool(), 2, stream(0, "s")).clients == ("c00", "c01")
    with pytest.raises(UsageError, match="gives 3, not a Selection"):
        build_selection("test_selection:three")


def first() -> Selection:
    """The first by name."""
    return Selection(lambda pool, size, rng: Draw(pool.clients[:size]))


def three() -> int:
    return 3


def test_fewer_candidates_than_a_cohort_are_refused():
    with pytest.raises(UsageError, match="candidates = 3 is less than the 4 clients of a cohort"):
        build_selection("power_of_choice", {"candidates": 3}).check(CLIENTS, 4)


GOOD: list[tuple[str, dict, dict]] = [
    ("uniform", {}, dict(weights="tokens", over_select=0.5, on_too_few="wait", max_weight=0.5)),
    ("uniform", {}, dict(own_weighing="product_norm")),
    ("size_weighted", {}, dict(over_select=0.5, on_too_few="wait", max_weight=0.5, min_updates=3)),
    ("poisson", {"q": 0.1}, dict(weights="uniform", on_too_few="skip", min_updates=3)),
    ("poisson", {}, dict(clients_per_round=3)),
    ("everyone", {}, dict(weights="tokens", min_updates=3, max_weight=0.5)),
    ("power_of_choice", {}, dict(on_too_few="wait", over_select=0.2, clients_per_round=3)),
    ("oort", {}, dict(weights="tokens", on_too_few="wait", over_select=0.3)),
]  # fmt: skip
BAD = [
    ("size_weighted", {}, dict(weights="uniform"), "by examples already"),
    ("size_weighted", {}, dict(weights="tokens"), 'set federation.weights = "examples"'),
    ("power_of_choice", {}, dict(weights="uniform"), "by examples already"),
    ("poisson", {}, dict(weights="tokens"), 'set federation.weights = "examples" or "uniform"'),
    ("uniform", {"denominator": "all"}, dict(weights="tokens"), "known only after a round"),
    ("poisson", {"q": 0.1}, dict(clients_per_round=3), "determines the size of the cohort"),
    ("poisson", {"q": 0.1}, dict(fraction=0.5), "federation.fraction = 0.5"),
    ("everyone", {}, dict(clients_per_round=3), "federation.clients_per_round = 3"),
    ("poisson", {}, dict(over_select=0.3), "federation.over_select = 0.3"),
    ("everyone", {}, dict(over_select=0.3), "federation.over_select = 0.3"),
    ("uniform", {"denominator": "all"}, dict(over_select=0.3), "federation.over_select = 0.3"),
    ("poisson", {}, dict(on_too_few="wait"), "one draw in a round"),
    ("everyone", {}, dict(on_too_few="wait"), "it has sampled all"),
    ("poisson", {}, dict(min_updates=2), 'set federation.on_too_few = "skip"'),
    ("poisson", {}, dict(max_weight=0.5), "its denominator is fixed"),
    ("size_weighted", {}, dict(own_weighing="product_norm"), 'method.weigh = "product_norm"'),
]  # fmt: skip


@pytest.mark.parametrize("name, options, settings", GOOD)
def test_compatible_settings_have_no_conflicts(name, options, settings):
    assert conflicts(build_selection(name, options), **settings) == []


@pytest.mark.parametrize("name, options, settings, part", BAD)
def test_conflicting_settings_are_refused_with_both_names_and_an_alternative(name, options, settings, part):
    (problem,) = conflicts(build_selection(name, options), **settings)
    assert f'selection.name = "{name}"' in problem and part in problem and " do not fit: " in problem


@pytest.mark.parametrize(
    "clients, per_round, fraction, expected",
    [
        (30, 0, 0.1, 3),  # 0.1 · 30 is 3.0000000000000004 in floating point
        (100, 0, 0.07, 7),  # 0.07 · 100 is 7.000000000000001
        (100, 0, 0.29, 29),  # 0.29 · 100 is 28.999999999999996
        (30, 0, 0.11, 4),  # 3.3, rounded up
        (10, 0, 0.01, 1),
        (1, 0, 0.5, 1),
        (3, 0, 1.0, 3),
        (7, 0, 1 / 7, 1),
        (8, 5, 1.0, 5),
        (8, 5, 0.1, 5),  # the number wins over the fraction
        (8, 9, 0.1, 8),
        (8, 8, 0.1, 8),
    ],
)
def test_the_cohort_size_is_the_given_number_or_the_fraction_rounded_up(clients, per_round, fraction, expected):
    size = cohort_size(clients, per_round, fraction)
    assert size == expected and type(size) is int
