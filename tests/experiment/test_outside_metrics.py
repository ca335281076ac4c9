"""A metric from outside the package in a run: its files, its identity, its report, and its failure."""

from __future__ import annotations

import html
import json
import math

import pytest

import outside_metrics
from shepherd.errors import EvaluationError
from shepherd.evaluation.metrics import Metric
from shepherd.experiment import run as experiment

NAME = "outside_metrics:length_off"
KEY = f"{NAME}(limit=500.0)"
SETTINGS = (
    f'evaluation.metrics=["rouge_l", {{name = "{NAME}", limit = 500.0}}]',
    "evaluation.arms=base,federated", "federation.rounds=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(run_small):
    return run_small(*SETTINGS)


def test_a_metric_from_outside_is_measured_on_every_row_and_described(run):
    metrics = json.loads((run.path / "evaluation/metrics.json").read_text())
    texts = (run.path / "evaluation/generations.jsonl").read_text().splitlines()
    for arm in ("base", "federated"):
        pairs = [(record["answers"][arm], record["reference"]) for record in map(json.loads, texts)]
        expected = math.fsum(min(500, abs(len(text) - len(reference))) for text, reference in pairs) / len(pairs)
        scores = metrics["arms"][arm]["generation"]
        assert list(scores) == ["rouge_l", KEY, "rows", "cut_off"]
        assert scores[KEY] == pytest.approx(expected) and scores[KEY] > 1
    assert [entry["metric"] for entry in metrics["generation_differences"]] == ["rouge_l", KEY]
    assert metrics["generation_metrics"][KEY] == {
        "label": "Length off", "higher_is_better": False, "bounds": [0.0, 500.0], "options": {"limit": 500.0},
    }  # fmt: skip


def test_the_report_shows_it_by_its_label_with_its_direction(run):
    page = html.unescape((run.path / "report.html").read_text())
    scores = page[page.index("Scores of the generated answers") :]
    assert '<th scope="col">Length off</th>' in scores and "Token F1" not in scores
    assert "Higher is better, but for Length off, where lower is better." in page


def test_its_file_is_part_of_the_identity_of_the_run(run):
    identity = json.loads((run.path / "identity.json").read_text())
    assert "outside_metrics" in identity["plugins"]
    assert identity["config"]["evaluation"]["metrics"] == ["rouge_l", {"name": NAME, "limit": 500.0}]


def test_a_run_whose_metric_fails_goes_on_once_it_is_corrected_to_the_same_metrics(run, tmp_path, monkeypatch):
    failing = lambda limit: Metric(lambda answer: 1 / 0, higher_is_better=False, label="Length off")  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(outside_metrics, "length_off", failing)
        with pytest.raises(EvaluationError, match=r"failed on row .*ZeroDivisionError"):
            experiment.run(run.config, out_dir=tmp_path)
    folder = tmp_path / run.config.run.name
    assert not (folder / "summary.json").exists()
    experiment.resume(folder)
    name = "evaluation/metrics.json"
    assert (folder / name).read_bytes() == (run.path / name).read_bytes()
