"""The best of several models: chosen on other rows than it is compared on, so that chance does not favour it."""

from __future__ import annotations

import numpy as np
import pytest

from shepherd.evaluation.row_losses import RowLosses
from shepherd.evaluation.selection import FEWEST, best_of, halves
from shepherd.evaluation.statistics import paired_difference
from shepherd.rng import stream


def of(nll: np.ndarray) -> RowLosses:
    return RowLosses(nll, np.ones(len(nll), np.int64), np.zeros(len(nll), np.int64))


def test_each_half_is_compared_with_the_model_that_is_best_on_the_other():
    groups = ["a"] * 30 + ["b"] * 20
    first = halves(groups, stream(0, "test"))
    # anna is better on the first half and worse on the second, so she is what the second half is compared with.
    models = {"anna": of(np.where(first, 1.0, 3.0)), "bert": of(np.full(50, 2.0))}
    best = best_of(models, groups, stream(0, "test"))
    assert best.chosen == ("anna", "bert") and not best.same_rows
    assert best.losses.nll.tolist() == np.where(first, 2.0, 3.0).tolist()
    only = best_of({"bert": models["bert"], "cleo": of(np.full(50, 1.0))}, groups, stream(0, "test"))
    assert only.chosen == ("cleo",) and (only.losses.nll == 1.0).all()


def test_halves_have_half_of_every_group_and_of_all_rows():
    groups = ["a"] * 7 + ["b"] * 5 + ["c"] * 1 + ["d"] * 4
    first = halves(groups, stream(3, "test"))
    assert abs(first.sum() - (~first).sum()) == 1  # of 17 rows
    for group in "abcd":
        at = np.array(groups) == group
        assert abs(first[at].sum() - (~first)[at].sum()) <= 1
    assert (first == halves(groups, stream(3, "test"))).all() and (first != halves(groups, stream(4, "test"))).any()


def test_with_few_rows_the_best_is_chosen_on_the_same_rows_and_marked():
    for rows, same in ((FEWEST - 1, True), (FEWEST, False)):
        models = {"b": of(np.full(rows, 2.0)), "a": of(np.full(rows, 2.0)), "c": of(np.full(rows, 2.5))}
        best = best_of(models, ["x"] * rows, stream(0, "test"))
        assert best.chosen == ("a",) and best.same_rows == same, "equal ones by name"
    one = best_of({"a": of(np.full(4, 2.0))}, ["x"] * 4, stream(0, "test"))
    assert one.chosen == ("a",) and not one.same_rows, "nothing was chosen"


def test_the_choice_favours_the_best_on_its_own_rows_and_not_on_others():
    """Eight equal clients and an equal federated model: on the rows of the choice the best client seems better."""
    rng, rows, gaps = np.random.default_rng(5), 80, {True: [], False: []}
    for trial in range(300):
        models = {f"c{i}": of(rng.normal(2.0, 0.5, rows)) for i in range(8)}
        federated = of(rng.normal(2.0, 0.5, rows))
        flattered = min(models.values(), key=lambda m: m.stat.mean)
        for same, best in ((True, flattered), (False, best_of(models, ["x"] * rows, stream(trial, "test")).losses)):
            gaps[same].append(paired_difference(federated, best))
    mean = {same: np.mean([d["difference"] for d in found]) for same, found in gaps.items()}
    # The least of eight means of 80 rows lies 1.42 · 0.5 / √80 = 0.080 below the mean of all.
    assert mean[True] == pytest.approx(0.080, abs=0.015) and abs(mean[False]) < 0.015  # 4,000 trials: −0.0005
    errs = {same: np.mean([d["p"] < 0.05 for d in found]) for same, found in gaps.items()}
    assert 0.02 < errs[False] < 0.10 < errs[True]  # 4,000 trials: 0.073 and 0.126; halves share what was drawn
