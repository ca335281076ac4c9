"""Losses that add up, differences with honest intervals, and how near an answer is to the reference."""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from shepherd.evaluation.losses import RowLosses, paired_difference, row_losses
from shepherd.evaluation.text import metrics, score, words
from shepherd.model.base import load_base
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.model.targets import pick_targets
from shepherd.results import generation_scores, sample_rows
from shepherd.rng import stream
from shepherd.types import Stat, Tokens
from tiny import random_adapters


def losses(nll, tokens, hits=None) -> RowLosses:
    hits = np.zeros(len(nll), int) if hits is None else np.array(hits)
    return RowLosses(np.array(nll, float), np.array(tokens), hits)


class OnMps:
    """A tensor on a device without float64, as Apple's are."""

    def __init__(self, values) -> None:
        self.values = torch.tensor(values)

    def cpu(self) -> torch.Tensor:
        return self.values

    def double(self) -> None:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")


def test_losses_are_summed_in_float64_though_the_device_has_none():
    packed = SimpleNamespace(
        packing=nullcontext, device="cpu", token_losses=lambda batch: (OnMps([1.0, 2.0**-30]), OnMps([True, False]))
    )
    row = Tokens("a", np.array([5, 6, 7], np.int32), np.array([False, True, True]))
    (found,) = row_losses(packed, [row])
    assert found.nll.tolist() == [1.0 + 2.0**-30] and found.hits.tolist() == [1]


# Sums and means


def test_the_loss_is_per_token_not_per_row():
    summary = losses([2.0, 12.0], [1, 3], [1, 1]).summary()  # 14 nats over 4 tokens
    assert summary["loss"] == 3.5 and summary["perplexity"] == pytest.approx(math.exp(3.5))
    assert (summary["token_accuracy"], summary["rows"], summary["tokens"]) == (0.5, 2, 4)


def test_stats_of_parts_add_up_to_the_stat_of_the_whole():
    whole = losses([2.0, 12.0, 5.0, 1.0], [1, 3, 2, 7])
    halves = [whole.select(np.array(rows)) for rows in ([0, 2], [1, 3])]
    assert halves[0].stat + halves[1].stat == whole.stat
    assert whole.select(np.array([True, False, True, False])).stat == halves[0].stat
    assert sum((h.stat for h in halves), Stat()).mean == whole.stat.mean
    assert math.isnan(Stat().mean)


def test_the_standard_error_of_a_hand_worked_ratio():
    # loss 8 / 4 = 2; residuals 1 − 2·1, 7 − 2·3 = −1, 1; √(2/1 · 2) / 4 = 1/2
    assert losses([1.0, 7.0], [1, 3]).stderr == pytest.approx(0.5)


def test_with_rows_of_one_length_the_standard_error_is_that_of_a_mean():
    values = np.random.default_rng(0).normal(3, 1, 40)
    assert losses(values * 5, np.full(40, 5)).stderr == pytest.approx(values.std(ddof=1) / 40**0.5)


def test_the_standard_error_is_the_spread_of_the_loss_over_samples_of_rows():
    rng = np.random.default_rng(1)
    means, errors = [], []
    for _ in range(600):
        tokens = rng.integers(1, 30, 60)
        nll = tokens * rng.normal(2.0, 0.7, 60)
        means.append(losses(nll, tokens).stat.mean)
        errors.append(losses(nll, tokens).stderr)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.08)


def test_one_row_has_no_standard_error_and_a_hopeless_loss_still_has_a_perplexity():
    assert math.isnan(losses([1.0], [1]).stderr)
    assert math.isfinite(losses([1e6, 1e6], [1, 1]).summary()["perplexity"])


# Differences


def test_a_difference_has_the_sign_of_a_minus_b_and_lies_in_its_interval():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 20, 50)
    b = tokens * rng.normal(3, 0.5, 50)
    a = b - tokens * rng.normal(0.2, 0.1, 50)
    result = paired_difference(losses(a, tokens), losses(b, tokens), stream(0, "bootstrap"))
    assert result["difference"] == pytest.approx((a.sum() - b.sum()) / tokens.sum())
    low, high = result["ci95"]
    assert low < result["difference"] < high < 0 and result["p"] <= 0.001
    back = paired_difference(losses(b, tokens), losses(a, tokens), stream(0, "bootstrap"))
    assert back["ci95"] == pytest.approx([-high, -low]) and back["p"] == result["p"]


def test_pairing_finds_a_small_difference_that_the_spread_of_rows_would_hide():
    rng = np.random.default_rng(0)
    tokens = np.full(40, 10)
    b = tokens * rng.normal(3, 1.0, 40)  # the rows differ by 1, the arms by 0.05
    a = b - tokens * rng.normal(0.05, 0.02, 40)
    assert losses(b, tokens).stderr > 0.1
    assert paired_difference(losses(a, tokens), losses(b, tokens), stream(0, "x"))["p"] < 0.01


def test_equal_arms_have_no_difference_and_p_one():
    a = losses([1.0, 7.0, 3.0], [1, 3, 2])
    assert paired_difference(a, a, stream(0, "x")) == {"difference": 0.0, "ci95": [0.0, 0.0], "p": 1.0}


def test_p_is_never_zero_and_one_row_has_neither_interval_nor_p():
    a, b = losses([0.0] * 9, [1] * 9), losses([9.0] * 9, [1] * 9)
    assert 0 < paired_difference(a, b, stream(0, "x"))["p"] <= 0.001
    alone = paired_difference(losses([1.0], [2]), losses([2.0], [2]), stream(0, "x"))
    assert alone == {"difference": -0.5, "ci95": [None, None], "p": None}


def test_without_a_difference_p_is_below_five_hundredths_in_about_five_of_a_hundred():
    rng = np.random.default_rng(3)
    small = covered = 0
    trials = 800
    for trial in range(trials):
        tokens = rng.integers(1, 40, 80)
        a, b = (tokens * (rng.normal(2.5, 0.5, 80)) for _ in "ab")
        result = paired_difference(losses(a, tokens), losses(b, tokens), stream(trial, "null"), resamples=400)
        small += result["p"] < 0.05
        covered += result["ci95"][0] <= 0 <= result["ci95"][1]
    # 5 % and 3 standard errors (0.8 %) each way, and the bootstrap's own excess of about 1 % at 80 rows
    assert 0.025 < small / trials < 0.085
    assert 0.915 < covered / trials < 0.975


# Measured on a model


@pytest.fixture(scope="module")
def measured(model_folder):
    base = load_base(str(model_folder("llama")), device="cpu", dtype="float32")
    rng = np.random.default_rng(4)
    rows = []
    for i in range(9):
        n = int(rng.integers(3, 30))
        mask = rng.random(n) < 0.5
        mask[-1] = True
        rows.append(Tokens(str(i), rng.integers(3, 380, n).astype(np.int32), mask))
    modules = {name: base.model.get_submodule(name) for name in pick_targets(base.model, "all-linear")}
    return base.model, PackedModel(base.model), rows, modules


def test_row_losses_do_not_depend_on_how_passes_are_cut_or_rows_ordered(measured):
    _, packed, rows, _ = measured
    (whole,) = row_losses(packed, rows, tokens_per_pass=10_000)
    for limit in (1, 17, 64):
        (cut,) = row_losses(packed, rows, tokens_per_pass=limit)
        np.testing.assert_allclose(cut.nll, whole.nll, rtol=1e-5)
        assert (cut.hits == whole.hits).all() and (cut.tokens == whole.tokens).all()
    (backwards,) = row_losses(packed, rows[::-1], tokens_per_pass=64)
    np.testing.assert_allclose(backwards.nll[::-1], whole.nll, rtol=1e-5)
    assert (whole.tokens == [row.targets for row in rows]).all()


def test_every_slot_meets_every_row_and_an_empty_one_is_the_base(measured):
    _, packed, rows, modules = measured
    adapters = [replace(a, alpha=2.0 * (slot > 0)) for slot, a in enumerate(random_adapters(modules, 3))]
    lora = CohortLora(modules).hold(adapters)
    (base,) = row_losses(packed, rows)
    slots = row_losses(packed, rows, lora, tokens_per_pass=50)
    np.testing.assert_allclose(slots[0].nll, base.nll, rtol=1e-5)
    for slot in (1, 2):
        own = CohortLora(modules).hold([adapters[slot]])
        np.testing.assert_allclose(slots[slot].nll, row_losses(packed, rows, own)[0].nll, rtol=1e-5)
        assert abs(slots[slot].stat.mean - base.stat.mean) > 1e-3


# Text


def test_words_are_lower_case_and_keep_letters_of_every_script():
    assert words("Ça va? Don't  STOP—now_1 你好") == ["ça", "va", "don", "t", "stop", "now_1", "你好"]


@pytest.mark.parametrize(
    "name, prediction, reference, expected",
    [
        ("exact_match", "The cat.", "the CAT", 1.0),
        ("exact_match", "the cat sat", "the cat", 0.0),
        ("exact_match", "cat the", "the cat", 0.0),
        ("token_f1", "the cat sat", "the cat", 0.8),  # common 2, 2 · 2 / (3 + 2)
        ("token_f1", "cat the", "the cat", 1.0),  # order is no matter
        ("token_f1", "the the the", "the cat", 0.4),  # "the" counts once: 2 · 1 / (3 + 2)
        ("token_f1", "the the cat", "the the dog", 2 / 3),  # and twice where both have it twice: 2 · 2 / (3 + 3)
        ("token_f1", "dog", "the cat", 0.0),
        ("rouge_l", "police kill the gunman", "police killed the gunman", 0.75),  # Lin (2004): LCS 3 of 4
        ("rouge_l", "the gunman kill police", "police killed the gunman", 0.5),  # the same words, LCS 2
        ("rouge_l", "gunman the killed police", "police killed the gunman", 0.25),
        ("rouge_l", "a b c d e", "a x b y c", 0.6),  # a b c: 2 · 3 / 10
        ("rouge_l", "a b", "a b c d", 2 / 3),  # 2 · 2 / 6
        ("rouge_l", "", "a b", 0.0),
        ("token_f1", "a", "", 0.0),
    ],
)
def test_a_hand_worked_score(name, prediction, reference, expected):
    assert metrics.build(name)(prediction, reference) == pytest.approx(expected)


@pytest.mark.parametrize("name", list(metrics))
def test_every_metric_is_one_for_equal_texts_symmetric_and_between_zero_and_one(name):
    metric = metrics.build(name)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcd"), rng.integers(0, 7))) for _ in range(40)]
    for a, b in itertools.pairwise(texts):
        assert metric(a, a) == 1.0
        assert metric(a, b) == metric(b, a)
        assert 0.0 <= metric(a, b) <= 1.0
    assert metrics.describe(name)


def test_the_longest_common_subsequence_is_the_longest_there_is():
    rouge = metrics.build("rouge_l")
    rng = np.random.default_rng(5)
    for _ in range(60):
        a, b = (list(rng.choice(list("abc"), rng.integers(1, 7))) for _ in "ab")
        common = {s for n in range(1, 7) for s in itertools.combinations(a, n)} & {
            s for n in range(1, 7) for s in itertools.combinations(b, n)
        }
        longest = max(map(len, common), default=0)
        assert rouge(" ".join(a), " ".join(b)) == pytest.approx(2 * longest / (len(a) + len(b)))


def test_a_score_is_the_mean_of_every_metric_over_rows():
    result = score(["the cat sat", "dog"], ["the cat", "dog"])
    assert set(result) == {*metrics, "rows"}
    assert (result["rows"], result["exact_match"]) == (2, 0.5) and result["token_f1"] == pytest.approx(0.9)
    with pytest.raises(ValueError):
        score(["a"], ["a", "b"])


def test_every_arm_is_scored_by_its_own_answers_against_the_reference():
    records = [
        {"reference": "the cat", "answers": {"base": "dog", "federated": "The cat."}},
        {"reference": "a b", "answers": {"base": "a b", "federated": "b a"}},
    ]
    scores = generation_scores(records)
    assert list(scores) == ["base", "federated"]
    assert scores["base"] == {"exact_match": 0.5, "token_f1": 0.5, "rouge_l": 0.5, "rows": 2}
    assert scores["federated"] == {"exact_match": 0.5, "token_f1": 1.0, "rouge_l": 0.75, "rows": 2}


def test_rows_to_answer_are_taken_in_turn_from_each_category_and_none_that_was_cut():
    def row(number: int, category: str, cut: int = 0) -> Tokens:
        return Tokens(str(number), np.zeros(2, np.int32), np.ones(2, bool), category, cut=cut)

    rows = [row(0, "a", cut=3), row(1, "a"), row(2, "a"), row(3, "a"), row(4, "b"), row(5, "c"), row(6, "c")]
    whole = lambda index: not rows[index].cut  # noqa: E731
    assert sample_rows(rows, 4, whole) == [1, 2, 4, 5]  # of a, b, c, then of a again
    assert sample_rows(rows, 99, whole) == [1, 2, 3, 4, 5, 6] and sample_rows(rows, 0, whole) == []
