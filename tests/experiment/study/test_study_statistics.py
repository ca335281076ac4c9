"""The table of a study: intervals, exchange of sides, adjustment, margins, own rows, and what a design can see."""

from __future__ import annotations

import json

import numpy as np
import pytest

from shepherd.evaluation.judge.statistics import two_way
from shepherd.experiment.study.comparisons import compare_all, measure
from shepherd.experiment.study.forecast import smallest_visible
from shepherd.experiment.study.losses import losses_of
from shepherd.experiment.study.sides import Pair, Side
from study_runs import held_out, record, study_of
from study_runs import losses_of as made_up

FEDERATED, FLORA = Side("fedit", "federated"), Side("flora", "federated")


@pytest.fixture
def records(tmp_path):
    """records(rows) -> RUN.json of every run of a study, of what `rows(planned)` gives."""
    study = study_of(tmp_path)

    def made(rows, only=None):
        found = {}
        for planned in study.runs:
            if only is None or planned.name in only:
                text = record(planned, rows(planned), tmp_path)
                found.setdefault(planned.variant.name, {})[planned.seed] = json.loads(text)
        return found

    return made


def table_of(per_arm, tokens, ids=()):
    """Losses of arms by nll; local: the client north has what is given, south 1 more per token."""
    tokens = np.asarray(tokens)
    local = per_arm.pop("local", per_arm["base"])
    pooled = {**per_arm, "centralised": per_arm["base"]}
    return held_out(tokens, pooled, {"north": local, "south": local + tokens}, ids)


def test_the_difference_is_a_ratio_of_sums_and_its_interval_is_two_way(records):
    rng = np.random.default_rng(0)
    tokens = np.array([10, 20, 30, 40])
    per_token = {(arm, seed): rng.normal(2, 0.3, 4) for arm in ("base", "federated") for seed in range(3)}
    arms = ("base", "federated")
    found = records(
        lambda planned: table_of({arm: np.round(tokens * per_token[arm, planned.seed], 3) for arm in arms}, tokens)
    )
    (entry,) = compare_all([Pair(FEDERATED, Side("fedit", "base"))], found)
    between = np.array([
        np.round(tokens * per_token["federated", s], 3) - np.round(tokens * per_token["base", s], 3) for s in range(3)
    ])  # fmt: skip
    ratio = between.sum() / (3 * tokens.sum())  # Σ (a − b) / Σ tokens over all seeds and rows
    expected = two_way((between - ratio * tokens) / tokens.mean())
    assert entry["difference"] == pytest.approx(ratio, abs=1e-12)
    assert (entry["stderr"], entry["degrees"]) == pytest.approx((expected.stderr, expected.degrees))
    assert entry["per_seed"] == pytest.approx(between.sum(axis=1) / tokens.sum())
    assert entry["interval"] == "two-way" and entry["units"] == 4 and entry["seeds"] == [0, 1, 2]


def test_a_row_counts_as_lower_by_its_own_difference_however_long_it_is(records):
    tokens = np.array([10] * 19 + [2000])
    better = tokens * np.array([0.5] * 19 + [0.1])
    found = records(lambda planned: table_of({"base": tokens * 3.0, "federated": tokens * 3.0 - better}, tokens))
    (entry,) = compare_all([Pair(FEDERATED, Side("fedit", "base"))], found)
    assert (entry["lower"], entry["higher"], entry["ties"]) == (20, 0, 0)
    assert entry["sign_p"] == pytest.approx(2 / 2**20) and entry["wilcoxon_p"] < 1e-4


def test_a_client_with_a_model_in_some_seeds_only_is_left_out_and_named(records):
    def losses(planned):
        found = made_up(planned)
        if planned.seed == 1:
            del found.models["local/north"]
        return found

    pair = Pair(FEDERATED, Side("fedit", "local:mean"), rows="own")
    (entry,) = compare_all([pair], records(losses))
    assert entry["units"] == 1 and "left out, with a model in some seeds only: north" in entry["notes"]


def test_exchanging_the_sides_exchanges_every_figure_exactly(records):
    from study_runs import losses_of as losses

    found = records(losses)
    one, other = compare_all([Pair(FEDERATED, FLORA, 0.2), Pair(FLORA, FEDERATED, 0.2)], found)
    assert one["difference"] == -other["difference"] and one["ci95"] == [-end for end in other["ci95"][::-1]]
    assert one["per_seed"] == [-value for value in other["per_seed"]]
    for key in ("stderr", "degrees", "p", "sign_p", "wilcoxon_p", "equal_p", "smallest_difference", "holm_p"):
        assert one[key] == other[key], key
    assert (one["verdict"], other["verdict"]) == ("higher", "lower")
    assert (one["lower"], one["higher"]) == (other["higher"], other["lower"])


def test_p_values_are_adjusted_over_all_comparisons_of_the_file(records):
    from study_runs import losses_of as losses

    others = [Side("fedit", arm) for arm in ("base", "centralised", "local:mean", "local/north")]
    entries = compare_all([Pair(FEDERATED, other) for other in others], records(losses))
    ps = sorted(entry["p"] for entry in entries)
    assert min(entry["holm_p"] for entry in entries) == pytest.approx(4 * ps[0], rel=1e-9, abs=0)
    alone = compare_all([Pair(FEDERATED, others[0])], records(losses))[0]
    assert alone["holm_p"] == alone["p"]


def test_equal_within_a_margin_needs_the_margin(records):
    tokens = np.full(40, 50)
    base = tokens * np.random.default_rng(1).normal(2, 0.3, 40)

    def rows(planned):
        noise = np.random.default_rng([5, planned.seed]).normal(0, 0.5, 40)
        return table_of({"base": base, "federated": base + noise - noise.mean() + 0.05}, tokens)

    pairs = [Pair(FEDERATED, Side("fedit", "base"), margin) for margin in (None, 0.0001, 0.01)]
    verdicts = [compare_all([pair], records(rows))[0]["verdict"] for pair in pairs]
    assert verdicts == ["not distinguishable", "not distinguishable", "equal within the margin"]
    beyond = compare_all([Pair(FEDERATED, Side("fedit", "base"), 1e-9)], records(rows))[0]["equal_p"]
    assert beyond > 0.4, "nothing is within a margin of nothing"


def test_with_other_rows_in_each_seed_the_interval_is_over_seeds(records):
    tokens = np.array([10, 10])
    gaps = {0: 0.1, 1: 0.2, 2: 0.3}

    def rows(planned):
        base = np.array([20.0, 30.0])
        ids = [f"{planned.seed}:{i}" for i in range(2)]
        return table_of({"base": base, "federated": base - 10 * gaps[planned.seed]}, tokens, ids)

    (entry,) = compare_all([Pair(FEDERATED, Side("fedit", "base"))], records(rows))
    # mean −0.2, sd 0.1, so se = 0.1 / √3 with 2 degrees of freedom: t = 4.303
    assert entry["difference"] == pytest.approx(-0.2) and entry["stderr"] == pytest.approx(0.1 / 3**0.5)
    assert entry["ci95"] == pytest.approx([-0.2 - 4.30265 * 0.0577350, -0.2 + 4.30265 * 0.0577350], abs=1e-5)
    assert entry["interval"] == "seeds" and "each seed has other test rows" in entry["notes"][0]


def test_one_seed_counts_rows_alone_and_the_entry_says_so(records):
    from study_runs import losses_of as losses

    (entry,) = compare_all([Pair(FEDERATED, Side("fedit", "base"))], records(losses, only={"fedit.1"}))
    assert entry["interval"] == "rows" and entry["degrees"] == 11
    assert entry["notes"] == ["one seed: the verdict holds for this training, other seeds may turn it"]


def test_runs_that_were_measured_on_other_rows_are_not_compared(records):
    def rows(planned):
        tokens = np.array([10, 10 if planned.variant.name == "fedit" else 11])
        return table_of({"base": tokens * 2.0, "federated": tokens * 1.0}, tokens)

    (entry,) = compare_all([Pair(FEDERATED, FLORA)], records(rows))
    assert "were not measured on the same tokens of the same held-out rows" in entry["reason"]


def test_seeds_of_which_only_some_share_their_rows_are_not_compared(records):
    def rows(planned):
        tokens = np.array([10, 20, 11 if planned.seed == 2 else 12])
        return table_of({"base": tokens * 2.0, "federated": tokens * 1.5}, tokens)

    (entry,) = compare_all([Pair(FEDERATED, Side("fedit", "base"))], records(rows))
    assert entry["reason"] == "seeds 0 and 1 have the same held-out rows, and other seeds have others"


def test_own_rows_compare_each_client_on_its_rows_with_its_own_model(records):
    tokens = np.array([10, 20, 30, 40])
    base = tokens * 2.0

    def rows(planned):  # federated: 0.1 below north on its rows (0 and 2), 1.1 below south on 1 and 3
        return table_of({"base": base, "federated": base - 0.1 * tokens, "local": base}, tokens)

    pair = Pair(FEDERATED, Side("fedit", "local:mean"), rows="own")
    found = measure(pair, records(rows))
    np.testing.assert_allclose(found.values, [[-0.1, -1.1]] * 3, atol=1e-9)
    assert (found.unit, found.units, found.rows) == ("client", 2, 4)
    one = measure(Pair(FEDERATED, Side("fedit", "local/the south"), rows="own"), records(rows))
    assert (one.unit, one.units) == ("row", 2) and one.per_seed == pytest.approx([-1.1] * 3)


def test_a_comparison_with_a_client_that_is_not_there_names_the_nearest(records):
    from study_runs import losses_of as losses

    (entry,) = compare_all([Pair(FEDERATED, Side("fedit", "local/nort"))], records(losses))
    assert entry["reason"].endswith("'nort' has no model in the local arm. Did you mean 'north'?")


@pytest.mark.parametrize("rows", [20, 60])
def test_the_best_client_is_chosen_on_other_rows_than_it_is_compared_on(rows, records):
    """Two clients that are equal but for noise: chosen on the same rows the best one looks better than their mean."""
    tokens = np.full(rows, 50)

    def made(planned):
        rng = np.random.default_rng([planned.seed, rows])
        models = {client: tokens * (2 + rng.normal(0, 0.2, rows)) for client in ("north", "south")}
        return held_out(tokens, dict.fromkeys(("base", "federated", "centralised"), tokens * 2.0), models)

    found = records(made)
    gaps = compare_all([Pair(Side("fedit", "local:best"), Side("fedit", "local:mean"))], found)[0]
    assert rows >= 40 or max(gaps["per_seed"]) < 0
    assert found["fedit"][0]["arms"]["local"]["best_on_same_rows"] is (rows < 40)
    words = (
        "on the 20 rows that it is compared on" if rows < 40 else "on one half of the rows and compared on the other"
    )
    assert words in gaps["notes"][0]
    if rows >= 40:
        best = losses_of(found["fedit"][0], "local:best")
        each = np.stack([losses_of(found["fedit"][0], f"local/{client}") for client in ("north", "south")])
        assert (np.isclose(best, each).any(axis=0)).all(), "on each row it is one of the two"


def test_losses_of_rows_are_rounded_and_means_are_not(records):
    from study_runs import losses_of as losses

    found = records(losses)["fedit"][0]
    kept = losses_of(found, "federated")
    assert np.array_equal(kept, np.round(kept, 3)) and found["rounded_to"] == 0.001
    total = sum(found["rows"]["tokens"])
    assert 0 < abs(kept.sum() / total - found["arms"]["federated"]["loss"]) < 12 * 0.0005 / total


@pytest.mark.parametrize("seeds, low, high", [(3, 0.03, 0.08), (5, 0.03, 0.08)])
def test_without_a_difference_five_in_a_hundred_intervals_exclude_zero(seeds, low, high):
    """Rows differ by 0.02 in a mean over seeds, by as much again within a seed, and seeds by 0.003: 600 trials."""
    from scipy.special import stdtrit

    rng = np.random.default_rng(seeds)
    wrong = 0
    for _ in range(600):
        rows, noise = rng.normal(0, 0.02, (1, 60)), rng.normal(0, 0.02, (seeds, 60))
        found = two_way(rows + noise + rng.normal(0, 0.003, (seeds, 1)))
        wrong += abs(found.value) > stdtrit(found.degrees, 0.975) * found.stderr
    assert low <= wrong / 600 <= high


VISIBLE = {
    # (sd over rows, sd over seeds): 80 rows with 1, 3, 5 seeds, 480 rows with 1, 3, 5 seeds, other rows in each seed.
    # Computed elsewhere with sds of more digits than these.
    (0.022, 0.006): (0.007, 0.020, 0.010, 0.003, 0.018, 0.009),
    (0.048, 0.0): (0.015, 0.018, 0.009, 0.006, 0.007, 0.004),
    (0.10, 0.007): (0.032, 0.045, 0.023, 0.013, 0.030, 0.016),
}


@pytest.mark.parametrize("spread", VISIBLE)
def test_the_smallest_visible_difference_is_that_of_the_noncentral_t(spread):
    designs = [(rows, seeds) for rows in (80, 480) for seeds in (1, 3, 5)]
    found = [smallest_visible(rows, 1 if s == 1 else s, *spread, fixed=False) for rows, s in designs]
    with_rows_alone = [smallest_visible(rows, 1, spread[0], 0.0, fixed=True) for rows in (80, 480)]
    assert [found[0], found[3]] == pytest.approx(with_rows_alone)
    assert [round(value, 3) for value in found] == pytest.approx(VISIBLE[spread], rel=0.15)


def test_nothing_is_visible_without_a_seed_or_with_one_unit():
    assert smallest_visible(80, 0, 0.1, 0.0, True) is None and smallest_visible(1, 3, 0.1, 0.0, True) is None
