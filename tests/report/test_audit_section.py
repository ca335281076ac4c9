"""The section on attacks: there with audit.json alone, figures beside baselines, damage named."""

from __future__ import annotations

import json

import pytest

from report_runs import write_run
from shepherd.errors import DataError
from shepherd.report import write_report

FIGURES = {"auc": 0.75, "ci95": [0.7, 0.8], "tpr": 0.12, "tpr_ci95": [0.1, 0.2]}
FOUND = {
    "seed": 0,
    "notes": ["Failures to attack are not proofs."],
    "left_out": {"tokens": "no adapted layer"},
    "privacy": None,
    "exposure": {
        "candidates": 1000, "most": 9.966, "chance": 1.436,
        "by_copies": [{"copies": 4, "codes": 2, "tuned": 7.5, "base": 0.8, "most_exposed": 9.97, "first": 1}],
    },
    "membership": {
        "inside": 300, "outside": 120, "scores": {"difference": "the attack"},
        "compared": {"rows": "split off by category", "categories_apart": 0.25},
        "difference": {**FIGURES, "within_categories": {"auc": 0.71, "pairs": 9}},
        "loss": {**FIGURES, "within_categories": None}, "base": {**FIGURES, "auc": 0.5, "within_categories": None},
        "clients": {"client-000": {"inside": 30, "outside": 100, **FIGURES}},
    },
}  # fmt: skip


def page(folder, found):
    write_run(folder, clients=2)
    (folder / "audit.json").write_text(json.dumps(found))
    return write_report(folder).read_text()


def test_the_section_shows_figures_beside_baselines_and_a_run_without_audit_has_none(tmp_path):
    text = page(tmp_path / "run", FOUND)
    for words in (
        "Attacks on this run", "Failures to attack are not proofs.", "at most 9.97 bits, 1.44 by chance", "7.50",
        "0.80",
        "300 rows trained on against 120 held out", "0.750", "0.700 to 0.800", "Loss of the base (baseline)",
        "within categories: 0.710", "client-000, own rows", "Left out, tokens: no adapted layer.",
    ):  # fmt: skip
        assert words in text
    (tmp_path / "run" / "audit.json").unlink()
    assert "Attacks on this run" not in write_report(tmp_path / "run").read_text()


@pytest.mark.parametrize(
    "change", [{"membership": {"inside": "many"}}, {"exposure": {"candidates": 3}}, {"notes": "none"}, {"seed": None}]
)
def test_a_damaged_audit_is_named(tmp_path, change):
    with pytest.raises(DataError, match=r"audit\.json"):
        page(tmp_path / "run", {**FOUND, **change})
