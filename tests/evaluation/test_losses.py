"""Sums and differences of held-out losses, and the sampling and scoring of generated answers."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from shepherd.config import EvaluationTable
from shepherd.evaluation.answers import generation_differences, generation_scores, sample_rows
from shepherd.evaluation.losses import row_losses
from shepherd.evaluation.row_losses import RowLosses
from shepherd.evaluation.scoring import build_metrics, score_answers
from shepherd.evaluation.statistics import paired_difference
from shepherd.model.base import load_base
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.model.targets import pick_targets
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


def test_losses_are_summed_in_float64_on_devices_without_float64():
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


def test_stats_of_parts_add_up_to_that_of_the_whole():
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


def test_one_row_has_no_standard_error_and_a_huge_loss_has_a_perplexity():
    assert math.isnan(losses([1.0], [1]).stderr)
    assert math.isfinite(losses([1e6, 1e6], [1, 1]).summary()["perplexity"])


# Differences


def test_a_difference_of_losses_is_per_token_and_has_the_sign_of_a_minus_b():
    a, b = losses([1.0, 7.0], [1, 3]), losses([2.0, 1.0], [1, 3])
    found = paired_difference(a, b)  # a − b = −1, 6 over 1, 3 tokens: 5 / 4
    assert found["difference"] == 1.25 and found["rows"] == 2 and "bootstrap95" not in found
    low, high = paired_difference(a, b, stream(0, "bootstrap"))["bootstrap95"]
    assert (low, high) == (-1.0, 2.0)  # of one row alone: −1 / 1 and 6 / 3


def test_pairing_detects_a_difference_smaller_than_the_variance_of_rows():
    rng = np.random.default_rng(0)
    tokens = np.full(40, 10)
    b = tokens * rng.normal(3, 1.0, 40)  # the rows differ by 1, the arms by 0.05
    a = b - tokens * rng.normal(0.05, 0.02, 40)
    assert losses(b, tokens).stderr > 0.1
    assert paired_difference(losses(a, tokens), losses(b, tokens))["p"] < 0.01


def test_losses_of_other_rows_are_refused():
    with pytest.raises(ValueError, match="not of the same rows"):
        paired_difference(losses([1.0, 7.0], [1, 3]), losses([1.0, 7.0], [3, 1]))


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


def test_row_losses_do_not_depend_on_the_division_into_passes_or_the_order_of_rows(measured):
    _, packed, rows, _ = measured
    (whole,) = row_losses(packed, rows, tokens_per_pass=10_000)
    for limit in (1, 17, 64):
        (cut,) = row_losses(packed, rows, tokens_per_pass=limit)
        np.testing.assert_allclose(cut.nll, whole.nll, rtol=1e-5)
        assert (cut.hits == whole.hits).all() and (cut.tokens == whole.tokens).all()
    (backwards,) = row_losses(packed, rows[::-1], tokens_per_pass=64)
    np.testing.assert_allclose(backwards.nll[::-1], whole.nll, rtol=1e-5)
    assert (whole.tokens == [row.targets for row in rows]).all()


def test_every_slot_is_evaluated_on_every_row_and_an_empty_one_is_the_base(measured):
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


# Answers


DEFAULT = build_metrics(EvaluationTable().metrics)
PROMPT = {"id": "rows:0", "category": "open_qa", "prompt": [{"role": "user", "content": "Which?"}]}
RECORDS = [
    {
        **PROMPT,
        "reference": "the cat",
        "answers": {"base": "dog", "federated": "The cat."},
        "finish_reason": {"base": "length", "federated": "stop"},
    },
    {
        **PROMPT,
        "reference": "a b",
        "answers": {"base": "a b", "federated": "b a"},
        "finish_reason": {"base": "length", "federated": "length"},
    },
]


def test_every_arm_is_scored_against_the_reference_and_cut_off_answers_are_counted():
    scores = generation_scores(RECORDS, score_answers(RECORDS, DEFAULT))
    assert list(scores) == ["base", "federated"]
    assert scores["base"] == {"exact_match": 0.5, "token_f1": 0.5, "rouge_l": 0.5, "rows": 2, "cut_off": 2}
    assert scores["federated"] == {"exact_match": 0.5, "token_f1": 1.0, "rouge_l": 0.75, "rows": 2, "cut_off": 1}


def test_answers_are_compared_row_by_row():
    found = {entry["metric"]: entry for entry in generation_differences(score_answers(RECORDS, DEFAULT))}
    assert {(entry["a"], entry["b"]) for entry in found.values()} == {("federated", "base")}
    # ROUGE-L of federated 1, 0.5 and of base 0, 1: differences 1, −0.5, mean 0.25, s = 1.5 / √2, se = s / √2
    assert found["rouge_l"]["difference"] == 0.25 and found["rouge_l"]["stderr"] == pytest.approx(0.75)
    assert set(found) == {"exact_match", "token_f1", "rouge_l"}
    assert generation_differences(score_answers([], DEFAULT)) == []


def test_rows_to_answer_are_sampled_in_turn_from_each_category_without_cut_rows():
    def row(number: int, category: str, cut: int = 0) -> Tokens:
        return Tokens(str(number), np.zeros(2, np.int32), np.ones(2, bool), category, cut=cut)

    rows = [row(0, "a", cut=3), row(1, "a"), row(2, "a"), row(3, "a"), row(4, "b"), row(5, "c"), row(6, "c")]
    whole = lambda index: not rows[index].cut  # noqa: E731
    assert sample_rows(rows, 4, whole) == [1, 2, 4, 5]  # of a, b, c, then of a again
    assert sample_rows(rows, 99, whole) == [1, 2, 3, 4, 5, 6] and sample_rows(rows, 0, whole) == []
