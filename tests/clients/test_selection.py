"""Who is asked: how often, and with weights whose mean is right. Statistics with fixed seeds at p < 1e-6."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from shepherd.clients.pool import Draw, Pool, Selection, selections
from shepherd.clients.selection import _utility as utility_of
from shepherd.clients.selection import build_selection, cohort_size
from shepherd.clients.selection_conflicts import conflicts
from shepherd.errors import UsageError
from shepherd.rng import stream

N = 20
CLIENTS = tuple(f"c{k:02}" for k in range(N))
SIZES = {c: k + 1 for k, c in enumerate(CLIENTS)}  # 1 … 20, 210 together
P = np.array([SIZES[c] for c in CLIENTS]) / 210
BY = {"examples": P, "uniform": np.full(N, 1 / N)}


def pool(weights: str = "examples", number: int = 5, clients: tuple[str, ...] = CLIENTS, **known) -> Pool:
    shares = dict(zip(CLIENTS, BY.get(weights, ()), strict=False)) if weights in BY else {}
    return replace(Pool(number, CLIENTS, SIZES, shares, **known), clients=clients)


SEEN = {
    "rounds": dict.fromkeys(CLIENTS[:12], 3),
    "losses": {c: 1.0 + 0.1 * k for k, c in enumerate(CLIENTS[:12])},
    "seconds": {c: 1.0 + k for k, c in enumerate(CLIENTS[:12])},
}


@pytest.fixture(params=list(selections))
def selection(request, tmp_path) -> Selection:
    trace = tmp_path / "trace.json"
    trace.write_text('{"*": [[1, null]]}')
    return build_selection(request.param, {"trace": str(trace)} if request.param == "availability" else {})


def cohorts(selection: Selection, repeats: int, size: int, **known) -> tuple[np.ndarray, np.ndarray]:
    """(times drawn, weight) of each client in each round: [repeats, N]. The pool is that of every round."""
    times, weights = np.zeros((repeats, N)), np.zeros((repeats, N))
    asked = pool(**known)
    for number in range(repeats):
        draw = selection.draw(asked, size, stream(7, "select", number))
        parts = {c: asked.shares[c] for c in draw.clients} if draw.weights is None else draw.weights
        total = sum(parts.values()) if draw.weights is None else 1.0
        for client in draw.clients:
            times[number, CLIENTS.index(client)] = draw.times(client)
            weights[number, CLIENTS.index(client)] = parts[client] / total
    return times, weights


def most(freedom: int, z: float = 4.753) -> float:
    """What χ² exceeds with probability 1e-6 (Wilson & Hilferty)."""
    return freedom * (1 - 2 / (9 * freedom) + z * np.sqrt(2 / (9 * freedom))) ** 3


def test_the_limits_of_the_tests_are_right():
    # 100,000 draws of χ² with 19 degrees of freedom: of a limit at 1e-3 (z = 3.09), 100 are above it.
    values = stream(0, "chi").chisquare(19, 100_000)
    assert 60 < (values > most(19, 3.0902)).sum() < 145


# Every selection joins these


@pytest.mark.parametrize("size", [1, 7, 20])
def test_a_cohort_has_no_client_twice_is_sorted_and_never_larger_than_the_draws(selection, size):
    for number in range(20):
        draw = selection.draw(pool(**SEEN), size, stream(0, "select", number))
        assert len(draw.clients) == len(set(draw.clients)) and set(draw.clients) <= set(CLIENTS)
        assert list(draw.clients) == sorted(draw.clients)
        assert draw.weights is None or tuple(draw.weights) == draw.clients
        assert (draw.weights is not None) == selection.weighs and draw.fixed == selection.fixed
        if selection.refills:
            assert sum(map(draw.times, draw.clients)) == size
        if draw.weights is not None and not draw.fixed:
            assert sum(draw.weights.values()) == pytest.approx(1)


def test_a_draw_is_a_function_of_pool_and_stream_and_of_no_global_seed(selection):
    first = selection.draw(pool(**SEEN), 5, stream(0, "select", 3))
    np.random.seed(12345)
    before = np.random.get_state()[1].copy()
    assert selection.draw(pool(**SEEN), 5, stream(0, "select", 3)) == first
    assert (np.random.get_state()[1] == before).all(), "the global generator was used"
    drawn = {selection.draw(pool(**SEEN), 5, stream(s, "select", n)).clients for s in range(4) for n in range(4)}
    assert len(drawn) >= 14 if selection.random else len(drawn) == 1


def test_it_runs_with_one_client_and_without_any_memory(selection):
    only = Pool(1, ("a",), {"a": 3}, {"a": 1.0})
    assert selection.draw(only, 1, stream(0, "select", 1)).clients == ("a",)


# How often


def test_uniform_draws_every_client_and_every_pair_equally_often():
    # 2,000 rounds of 5 from 20. Each client: mean 500. Each of 190 pairs: 2000 · (5·4)/(20·19) = 105.3.
    rounds, _ = cohorts(build_selection("uniform"), 2000, 5)
    # Within a round draws are dependent: the variance of a count is n·p·(1 − p), its covariance −n·p·(1 − p)/19.
    assert ((rounds.sum(0) - 500) ** 2).sum() / (2000 * 0.25 * 0.75) * 19 / 20 < most(19)
    pairs = (rounds.T @ rounds)[np.triu_indices(N, 1)]
    assert 0.6 < pairs.var() / (105.26 * (1 - 105.26 / 2000)) < 1.6  # 1 ± 4.9 · √(2 / 190)
    neighbours = (rounds[:-1] * rounds[1:]).sum() / 1999  # clients that two rounds in turn share: 5 · 5 / 20
    assert neighbours == pytest.approx(1.25, abs=0.1)


def test_size_weighted_draws_in_proportion_to_size_with_replacement():
    times, weights = cohorts(build_selection("size_weighted"), 2000, 5)
    assert ((times.sum(0) - 10_000 * P) ** 2 / (10_000 * P)).sum() < most(N - 1)
    assert times.max() > 1, "with replacement"
    np.testing.assert_allclose(weights, times / 5)


def test_poisson_draws_each_client_by_itself():
    times, _ = cohorts(build_selection("poisson", {"q": 0.2}), 4000, 99)
    assert ((times.sum(0) - 800) ** 2 / (4000 * 0.2 * 0.8)).sum() < most(N)
    # The size is binomial(20, 0.2): its variance is 3.2, and the variance of that estimate is about 2 · 3.2² / 4000.
    assert times.sum(1).var() == pytest.approx(3.2, abs=4.9 * 3.2 * np.sqrt(2 / 4000))
    pairs = (times.T @ times)[np.triu_indices(N, 1)]  # 4000 · 0.04 = 160 each
    assert ((pairs - 160) ** 2 / (160 * 0.96)).mean() == pytest.approx(1.0, abs=0.6)
    assert (times.sum(1) == 0).sum() == pytest.approx(4000 * 0.8**20, abs=4.9 * np.sqrt(46)), "empty draws stay empty"


def test_poisson_takes_its_probability_from_the_cohort_where_none_is_given():
    times, weights = cohorts(build_selection("poisson"), 1000, 5, weights="uniform")
    assert times.mean() == pytest.approx(0.25, abs=4.9 * np.sqrt(0.25 * 0.75 / 20_000))
    assert set(np.unique(weights)) == {0.0, 1 / (0.25 * N)}, "1 / (qN), whoever was drawn"


def test_power_of_choice_takes_the_higher_loss_of_two_candidates_drawn_by_size():
    losses = {c: float((7 * k) % N) for k, c in enumerate(CLIENTS)}  # 7 and 20 have no common factor: all differ
    known = {"rounds": dict.fromkeys(CLIENTS, 1), "losses": losses}
    times, _ = cohorts(build_selection("power_of_choice", {"candidates": 2}), 4000, 1, **known)
    # k wins where it is drawn with somebody of lower loss: p_k p_j / (1 − p_k) first, p_j p_k / (1 − p_j) second.
    loss = np.array([losses[c] for c in CLIENTS])
    pair = P[:, None] * P[None, :] / (1 - P[:, None])
    wins = np.where(loss[:, None] > loss[None, :], pair + pair.T, 0).sum(1)
    assert wins.sum() == pytest.approx(1)
    expected = 4000 * wins
    often = expected > 5
    assert ((times.sum(0) - expected)[often] ** 2 / expected[often]).sum() < most(int(often.sum()))
    assert times[:, ~often].sum() < 40


def test_power_of_choice_asks_the_unknown_first_and_those_who_never_answer_last():
    known = {"rounds": dict.fromkeys(CLIENTS[2:], 1), "losses": {c: float(SIZES[c]) for c in CLIENTS[4:]}}
    choice = build_selection("power_of_choice", {"candidates": N})
    assert choice.draw(pool(**known), 4, stream(0, "s")).clients == ("c00", "c01", "c18", "c19")
    assert choice.draw(pool(**known), 18, stream(0, "s")).clients == tuple(sorted({*CLIENTS} - {"c02", "c03"}))


def test_power_of_choice_with_as_many_candidates_as_are_asked_draws_by_size_alone():
    times, _ = cohorts(build_selection("power_of_choice", {"candidates": 1}), 4000, 1, **SEEN)
    assert ((times.sum(0) - 4000 * P) ** 2 / (4000 * P)).sum() < most(N - 1)


def test_oort_explores_the_share_of_its_round_and_takes_what_promises_most():
    oort = build_selection("oort", {"exploration": 0.5, "decay": 1.0, "cutoff": 1.0, "penalty": 0.0})
    for number in range(50):
        clients = oort.draw(pool(**SEEN), 6, stream(1, "select", number)).clients
        assert len(clients) == 6 and sum(c in CLIENTS[12:] for c in clients) == 3
        # |S| · loss grows with k, so the best three of the known are c09, c10, c11.
        assert {c for c in clients if c in CLIENTS[:12]} == {"c09", "c10", "c11"}
    times, _ = cohorts(oort, 1000, 6, **SEEN)
    explored = times.sum(0)[12:]
    assert ((explored - 375) ** 2).sum() / (1000 * (3 / 8) * (5 / 8)) * 7 / 8 < most(7)


def test_oort_prefers_the_fast_the_long_unasked_and_explores_less_from_round_to_round():
    known = {
        "rounds": dict.fromkeys(CLIENTS, 4),
        "losses": {c: 1 / SIZES[c] for c in CLIENTS},  # |S| · loss is 1 for all
        "seconds": {c: 100.0 if c < "c10" else 1.0 for c in CLIENTS},
    }
    oort = build_selection("oort", {"cutoff": 1.0, "least": 0.0, "exploration": 0.0, "seconds": 1.0})
    assert set(oort.draw(pool(**known), 10, stream(0, "s")).clients) == set(CLIENTS[10:])
    known |= {"seconds": {}, "rounds": {c: 1 if c < "c10" else 4 for c in CLIENTS}}
    assert set(oort.draw(pool(**known), 10, stream(0, "s")).clients) == set(CLIENTS[:10])
    known = {"rounds": dict.fromkeys(CLIENTS[:10], 1), "losses": dict.fromkeys(CLIENTS[:10], 1.0)}
    fading = build_selection("oort", {"exploration": 1.0, "decay": 0.5, "least": 0.25})
    counts = [
        sum(c >= "c10" for c in fading.draw(pool(number=n, **known), 8, stream(0, "s", n)).clients)
        for n in (1, 2, 3, 9)
    ]
    assert counts == [8, 4, 2, 2]


def test_oort_draws_the_known_in_proportion_to_their_utility():
    known = {"rounds": dict.fromkeys(CLIENTS, 10**12), "losses": dict.fromkeys(CLIENTS, 1.0)}
    greedy = build_selection("oort", {"cutoff": 0.0, "least": 0.0, "exploration": 0.0})
    times, _ = cohorts(greedy, 4000, 1, **known)
    clipped = np.minimum([SIZES[c] for c in CLIENTS], 19)  # the 95th percentile of 1 … 20
    expected = 4000 * clipped / clipped.sum()
    assert ((times.sum(0) - expected) ** 2 / expected).sum() < most(N - 1)


@pytest.mark.parametrize("claim", [1e12, 1.7e308])
def test_one_claimed_loss_does_not_switch_oort_s_selection_off(claim):
    # Without the clip all others had a utility of next to nothing beside the claim, and were drawn as if equal.
    honest = {"rounds": dict.fromkeys(CLIENTS, 10**12), "losses": dict.fromkeys(CLIENTS, 1.0)}
    claimed = honest | {"losses": honest["losses"] | {"c00": claim}}
    utility = utility_of(pool(**claimed), list(CLIENTS), 0.0, 0.0)
    np.testing.assert_allclose(utility[1:], [SIZES[c] / 20 for c in CLIENTS[1:]], atol=1e-5)  # as it was, and
    assert utility[0] == pytest.approx(1.0, abs=1e-5)  # no more than the largest has
    greedy = build_selection("oort", {"cutoff": 1.0, "least": 0.0, "exploration": 0.0})
    assert set(greedy.draw(pool(**claimed), 5, stream(0, "s")).clients) == {"c00", *CLIENTS[16:]}


@pytest.mark.parametrize("losses", [{"c00": -1e9}, dict.fromkeys(CLIENTS, -1.0), dict.fromkeys(CLIENTS, 1e308)])
def test_losses_that_cannot_be_do_not_end_a_draw(losses):
    seen = {"rounds": dict.fromkeys(CLIENTS, 3), "losses": dict.fromkeys(CLIENTS, 1.0) | losses}
    assert len(build_selection("oort", {"cutoff": 0.0}).draw(pool(**seen), 5, stream(0, "s")).clients) == 5
    utility = utility_of(pool(**seen), list(CLIENTS), 0.0, 0.0)
    bonus = utility_of(pool(**seen | {"losses": dict.fromkeys(CLIENTS, 0.0)}), list(CLIENTS), 0.0, 0.0)
    assert ((utility >= bonus) & (utility <= bonus + 1)).all()  # less than nothing is nothing


def test_oort_s_utility_is_what_a_client_teaches_less_its_slowness_and_more_for_its_wait():
    # n · loss = 8, 4, 2, of which the 95th percentile is the second: 4, 4, 2, and shares of that 1, 1, 1/2. In round 9,
    # asked in rounds 1, 4 and 8, √(0.1 ln 9 / L) = 0.46875, half of it, 1/√8 of it. T is the median of 1, 2, 8 s; the
    # third is slower: (2/8)³ of it all.
    three = Pool(9, ("a", "b", "c"), {"a": 4, "b": 2, "c": 1}, {}, {"a": 1, "b": 4, "c": 8},
                 dict.fromkeys("abc", 2.0), {"a": 1.0, "b": 2.0, "c": 8.0})  # fmt: skip
    bonus = (0.1 * 2.1972245773362196) ** 0.5
    expected = [1 + bonus, 1 + bonus / 2, (0.5 + bonus / 8**0.5) / 64]
    np.testing.assert_allclose(utility_of(three, ["a", "b", "c"], 3.0, 0.0), expected, rtol=1e-12)


# The mean


VALUES = np.random.default_rng(3).normal(size=(N, 3)) + np.linspace(-1, 1, N)[:, None]  # correlated with size


def deviations(weights: np.ndarray, by: str) -> np.ndarray:
    """How many standard errors the mean of Σ w_k x_k over rounds is from Σ p_k x_k, for three x."""
    estimates = weights @ VALUES
    return (estimates.mean(0) - BY[by] @ VALUES) / (estimates.std(0, ddof=1) / np.sqrt(len(estimates)))


@pytest.mark.parametrize(
    "name, options, by",
    [
        ("uniform", {}, "uniform"),
        ("uniform", {"denominator": "all"}, "uniform"),
        ("uniform", {"denominator": "all"}, "examples"),
        ("size_weighted", {}, "examples"),
        ("poisson", {"q": 0.2}, "uniform"),
        ("poisson", {"q": 0.2}, "examples"),
        ("poisson", {}, "examples"),
    ],
)
def test_the_weighted_mean_over_many_draws_is_the_mean_over_all_clients(name, options, by):
    _, weights = cohorts(build_selection(name, options), 4000, 4, weights=by)
    assert np.abs(deviations(weights, by)).max() < 4.9


def test_the_tests_of_the_mean_would_see_sizes_that_count_twice_and_the_bias_of_a_ratio():
    times, _ = cohorts(build_selection("size_weighted"), 4000, 4)
    twice = times * P
    assert np.abs(deviations(twice / twice.sum(1, keepdims=True), "examples")).max() > 10
    _, ratio = cohorts(build_selection("uniform"), 4000, 2)
    assert np.abs(deviations(ratio, "examples")).max() > 4.9, "the ratio of FedAvg is biased in small cohorts"


# Availability


def trace(folder, text: str, name: str = "trace.json") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


JSON = '{"c00": [[1, 2], [4, null]], "c01": [], "c02": [[3, 3]]}'
CSV = "client,from,to\nc00,1,2\nc00,4,\nc02,3,3\nc01,9,9\n"


@pytest.mark.parametrize(
    "text, name", [(JSON, "t.json"), (CSV, "t.csv"), ("\ufeff" + CSV.replace("\n", "\r\n"), "t.CSV")]
)
def test_only_those_whose_interval_holds_the_round_are_drawn(text, name, tmp_path):
    select = build_selection("availability", {"trace": trace(tmp_path, text, name), "then": "everyone"})
    expected = {1: ("c00",), 2: ("c00",), 3: ("c02",), 4: ("c00",), 99: ("c00",)}
    for number, clients in expected.items():
        given = pool(number=number, clients=("c00", "c01", "c02"))
        assert select.draw(given, 3, stream(0, "select", number)).clients == clients


def test_the_star_stands_for_all_that_are_not_named(tmp_path):
    select = build_selection("availability", {"trace": trace(tmp_path, '{"c00": [[2, 2]], "*": [[1, 1]]}')})
    assert select.draw(pool(number=1), 20, stream(0, "s")).clients == CLIENTS[1:]
    assert select.draw(pool(number=2), 20, stream(0, "s")).clients == ("c00",)
    nobody = select.draw(pool(number=3), 20, stream(0, "s"))
    assert nobody == Draw(()) and select.may_be_empty
    select.check(CLIENTS, 5)


def test_those_that_are_there_share_the_mean_among_them(tmp_path):
    path = trace(tmp_path, json.dumps({c: [[1, None]] for c in CLIENTS[:10]} | {"*": []}))
    select = build_selection("availability", {"trace": path, "then": "poisson", "q": 0.5})
    assert select.fixed and select.weighs and select.goes_with == ("examples", "uniform")
    draw = select.draw(pool("uniform"), 5, stream(0, "s"))
    assert set(draw.clients) <= set(CLIENTS[:10])
    assert list(draw.weights.values()) == pytest.approx([1 / (0.5 * 10)] * len(draw.clients))


@pytest.mark.parametrize(
    "text, name, message",
    [
        ("{", "t.json", "t.json, line 1 column 2 is not valid JSON"),
        ("[1]", "t.json", "holds a list, not a table of clients"),
        ('{"a": 3}', "t.json", "client 'a': expected a list of [from, to], got a number"),
        ('{"a": [[1, 2, 3]]}', "t.json", "client 'a', interval 1: expected [from, to], got [1, 2, 3]"),
        ('{"a": [[1, 2], [3, 2]]}', "t.json", "interval 2: an interval goes from a round ≥ 1"),
        ('{"a": [[0, 2]]}', "t.json", "got 0 to 2"),
        ('{"a": [[1.5, 2]]}', "t.json", "rounds are whole numbers, got 1.5 to 2"),
        ('{"a": [[true, 2]]}', "t.json", "rounds are whole numbers, got True to 2"),
        ('{"a": [], "a": []}', "t.json", "names the client 'a' twice"),
        ("{}", "t.json", "names no client"),
        ("[" * 100_000, "t.json", "is not valid JSON"),
        ("client,start,end\n", "t.csv", "line 1: the columns are client, from, to, got client, start, end"),
        ("client,from,to\na,1,2\na,x,3\n", "t.csv", "line 3: rounds are whole numbers, got 'x' to 3"),
        ("client,from,to\na,1\n", "t.csv", "line 2: expected 3 columns, got 2"),
        ("client,from,to\na,,3\n", "t.csv", "line 2: rounds are whole numbers, got None to 3"),
        ("", "t.csv", "got nothing"),
    ],
)
def test_a_broken_trace_is_answered_with_the_place_and_what_it_should_be(text, name, message, tmp_path):
    with pytest.raises(UsageError) as caught:
        build_selection("availability", {"trace": trace(tmp_path, text, name)})
    assert message in caught.value.message and caught.value.hint


def test_a_trace_that_is_not_there_or_no_text_is_answered(tmp_path):
    trace(tmp_path, JSON, "phones.json")
    with pytest.raises(UsageError, match=r"not found: .*Did you mean 'phones.json'"):
        build_selection("availability", {"trace": str(tmp_path / "phone.json")})
    with pytest.raises(UsageError, match="cannot be read"):
        build_selection("availability", {"trace": str(tmp_path)})
    (tmp_path / "t.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        build_selection("availability", {"trace": str(tmp_path / "t.json")})


def test_a_trace_that_does_not_fit_the_clients_is_refused_with_the_names(tmp_path):
    select = build_selection("availability", {"trace": trace(tmp_path, '{"c000": [[1, 2]]}')})
    with pytest.raises(UsageError, match=r"names 'c000', which is no client. Did you mean 'c00'"):
        select.check(CLIENTS, 5)
    select = build_selection("availability", {"trace": trace(tmp_path, JSON)})
    with pytest.raises(UsageError, match="has no entry for 'c03' and 16 more") as caught:
        select.check(CLIENTS, 5)
    assert '"*": [[1, null]]' in caught.value.hint


# What does not fit


def test_unknown_names_and_options_are_answered_with_the_nearest_and_the_list(tmp_path):
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


def test_a_function_of_ones_own_is_a_selection_too():
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
def test_what_fits_is_let_through(name, options, settings):
    assert conflicts(build_selection(name, options), **settings) == []


@pytest.mark.parametrize("name, options, settings, part", BAD)
def test_what_does_not_fit_is_refused_with_both_names_and_what_would(name, options, settings, part):
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
def test_the_cohort_is_the_number_asked_for_or_the_fraction_rounded_up(clients, per_round, fraction, expected):
    size = cohort_size(clients, per_round, fraction)
    assert size == expected and type(size) is int
