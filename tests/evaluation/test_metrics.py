"""Metrics of generated answers: what every registered one promises, options, and metrics from outside."""

from __future__ import annotations

import numpy as np
import pytest

from shepherd.config import EvaluationTable
from shepherd.errors import EvaluationError, UsageError
from shepherd.evaluation.answers import generation_differences, generation_scores
from shepherd.evaluation.metrics import Answer
from shepherd.evaluation.scoring import build_metrics, described, mean_score, score_answers
from shepherd.evaluation.text import metrics
from shepherd.experiment.checks import registry_problems
from shepherd.recipe import load, to_toml
from shepherd.report.metrics import DEFAULT
from shepherd.testing import check_metric

OUTSIDE = "outside_metrics:length_off"
ALL = [*metrics, {"name": "rouge_l", "beta": 3.0}, {"name": OUTSIDE, "limit": 50.0}]
"""Every registered metric is tested."""


def record(text: str, reference: str, **other: object) -> dict:
    line = {"id": "rows:7", "category": "open_qa", "prompt": [{"role": "user", "content": "Which?"}]}
    answers = {"base": "the dog", "federated": text}
    return {
        **line,
        "reference": reference,
        "answers": answers,
        "finish_reason": dict.fromkeys(answers, "stop"),
        **other,
    }


@pytest.mark.parametrize("entry", ALL, ids=str)
def test_a_metric_keeps_the_promises_of_metrics(entry):
    entry = {"name": entry} if isinstance(entry, str) else dict(entry)
    check_metric(entry.pop("name"), **entry)


@pytest.mark.parametrize("name", list(metrics))
def test_every_metric_is_described_in_the_list(name):
    assert metrics.describe(name)


def test_beta_weighs_recall():
    # LCS 2: precision 2/2, recall 2/4; Lin (2004), eq. 4: (1 + β²) P R / (R + β² P)
    answer = Answer("the gunman", "police killed the gunman")
    for beta in (0.25, 1.0, 3.0):
        expected = (1 + beta**2) * 1.0 * 0.5 / (0.5 + beta**2 * 1.0)
        assert metrics.build("rouge_l", {"beta": beta}).score(answer) == pytest.approx(expected, rel=1e-12)


def test_a_metric_is_given_the_answer_its_reference_and_the_conversation_but_no_arm():
    asked = record("The cat.", "the cat", tools="[]", finish_reason={"base": "stop", "federated": "length"})
    assert Answer.of(asked, "federated") == Answer(
        "The cat.", "the cat", [{"role": "user", "content": "Which?"}], "open_qa", "rows:7", "[]", "length"
    )
    assert Answer.of(record("a", "b"), "base").tools == ""


def test_means_over_parts_of_the_rows_add_up_to_the_mean_over_all():
    scores = np.array([0.0, 0.25, 1.0, 0.5, 0.75])
    both = mean_score(scores[:2]) + mean_score(scores[2:])
    assert both == mean_score(scores) and both.mean == 0.5 and both.weight == 5


def test_options_stand_in_the_key_the_label_and_the_description():
    built = build_metrics(["rouge_l", {"name": "rouge_l", "beta": 2.0}, {"name": OUTSIDE, "limit": 9.0, "per": 2}])
    assert list(built) == ["rouge_l", "rouge_l(beta=2.0)", f"{OUTSIDE}(limit=9.0, per=2)"]
    assert [metric.label for metric in built.values()] == ["ROUGE-L", "ROUGE-L (beta 2)", "Length off"]
    assert described(built)[f"{OUTSIDE}(limit=9.0, per=2)"] == {
        "label": "Length off", "higher_is_better": False, "bounds": [0.0, 9.0], "options": {"limit": 9.0, "per": 2},
    }  # fmt: skip


def test_differences_are_federated_minus_the_other_whichever_direction_is_better():
    records = [record("the cat", "the cat"), record("the", "the catfish")]
    built = build_metrics([OUTSIDE])
    scores = score_answers(records, built)
    # |characters off|: federated 0 and 8; base, "the dog", 0 and 4: means 4 and 2
    means = generation_scores(records, scores)
    assert (means["federated"][OUTSIDE], means["base"][OUTSIDE]) == (4.0, 2.0)
    (entry,) = generation_differences(scores)
    assert (entry["metric"], entry["a"], entry["b"], entry["difference"]) == (OUTSIDE, "federated", "base", 2.0)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken", "metric 'outside_metrics:broken' failed on row rows:7: ZeroDivisionError"),
        ("above", "metric 'outside_metrics:above' gives 2.0 for row rows:7, outside its bounds 0 to 1"),
    ],
)
def test_a_metric_that_fails_or_leaves_its_bounds_names_itself_and_the_row(name, said):
    with pytest.raises(EvaluationError) as error:
        score_answers([record("a", "b")], build_metrics([f"outside_metrics:{name}"]))
    assert said in error.value.message and "shepherd resume --force" in error.value.hint


def test_a_score_that_is_not_a_number_is_refused():
    built = build_metrics([{"name": "outside_metrics:above", "score": float("nan")}])
    with pytest.raises(EvaluationError, match="gives nan for row"):
        score_answers([record("a", "b")], built)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("rouge", "unknown metric: 'rouge'. Did you mean 'rouge_l'? Known: exact_match, rouge_l, token_f1"),
        ({"name": "rouge_l", "bta": 2.0}, "metric 'rouge_l' has no option 'bta'. Did you mean 'beta'?"),
        ({"name": "rouge_l", "beta": "two"}, "metric 'rouge_l': beta must be a number, got 'two'"),
        ({"name": "rouge_l", "beta": 0.0}, "metric 'rouge_l': beta must be more than 0, got 0"),
        ("outside_metrics:nosuch", "metric 'outside_metrics:nosuch' cannot be imported: AttributeError"),
        ("outside_metrics:plain", "metric 'outside_metrics:plain' returns str, expected a Metric"),
        ("exact_match", "metric 'exact_match' is listed twice"),
    ],
    ids=str,
)
def test_a_wrong_metric_or_option_is_found_before_a_run(entry, said):
    (problem,) = registry_problems({"evaluation": {"metrics": ["exact_match", entry]}})
    assert problem.startswith("evaluation.metrics: ") and said in problem


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "[{beta = 2.0}]",
            "evaluation.metrics: must have a name, as in {name = \"rouge_l\", beta = 2.0}, got {'beta': 2.0}",
        ),
        ("[3]", 'evaluation.metrics: must be text or must be a table such as {name = "rouge_l", beta = 2.0}, got [3]'),
    ],
)
def test_an_entry_other_than_a_metric_is_an_error_of_the_settings(given, said):
    with pytest.raises(UsageError) as error:
        load(overrides=[f"evaluation.metrics={given}"])
    assert said in error.value.message


def test_metrics_are_written_into_the_resolved_config_unless_they_are_the_default_ones(tmp_path):
    config = load(overrides=['evaluation.metrics=["token_f1", {name = "rouge_l", beta = 2.0}]'])
    (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    again = load(tmp_path / "config.toml")
    assert again == config and list(again.evaluation.metrics) == ["token_f1", {"name": "rouge_l", "beta": 2.0}]
    default = EvaluationTable().metrics
    assert "metrics" not in to_toml(load(overrides=[f"evaluation.metrics={','.join(default)}"]))


def test_the_report_has_the_labels_of_the_default_metrics():
    built = build_metrics(EvaluationTable().metrics)
    assert {key: metric.label for key, metric in built.items()} == DEFAULT
    assert all(metric.higher_is_better and metric.bounds == (0.0, 1.0) for metric in built.values())
