"""The page of a run with differential privacy: its guarantee, and nothing that the run withholds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from report_runs import Page, check, write_run
from shepherd.report import load_run, write_report
from shepherd.report.comparison.page import compare
from shepherd.report.guarantee import guarantee_sentence
from shepherd.report.sections.alerts import alerts
from shepherd.report.sections.guarantee import WITHHELD
from shepherd.updates.privacy.publication import KEYS, class_of, released

STATEMENT = {
    "private": True,
    "unit": "client: all rows of one client",
    "relation": "zero-out",
    "delta": 1e-3,
    "clients": 100,
    "sampling_rate": 0.05,
    "noise_multiplier": 1.0,
    "clip": [0.5, 0.5],
    "releases": 20,
    "noise": "secret",
    "epsilon": 1.02734,
    "epsilon_pld": 1.02734,
    "epsilon_rdp": 1.45441,
    "accountant": "PLD",
    "not_covered": ["the server's held-out rows", "membership in the federation"],
    "publish_nothing": False,
}
SETTINGS = ("privacy.unit=client", "privacy.clip=0.5", "privacy.noise_multiplier=1.0", "privacy.delta=1e-3")


def published(folder: Path, finished: bool = True, **changes: Any) -> Path:
    """The published part of a private run: what it withholds is not there."""
    run = write_run(folder, arms=("base", "federated"), overrides=SETTINGS, finished=finished)
    if finished:
        summary = json.loads((run / "summary.json").read_text())
        (run / "summary.json").write_text(json.dumps({**summary, "privacy": {**STATEMENT, **changes}}))
    for file in [path for path in run.rglob("*") if path.is_file()]:
        name = file.relative_to(run).as_posix()
        if name in KEYS:
            lines = file.read_text().splitlines() if name.endswith("l") else [file.read_text()]
            file.write_text("".join(json.dumps(released(name, json.loads(line))) + "\n" for line in lines))
        elif class_of(name) != "released":
            file.unlink()
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return published(tmp_path_factory.mktemp("runs") / "private")


def test_the_guarantee_stands_on_the_page_with_all_its_numbers_and_what_it_does_not_cover(run):
    text = Page((path := write_report(run)).read_text(encoding="utf-8")).text.replace("\N{NO-BREAK SPACE}", " ")
    check(Page(path.read_text(encoding="utf-8")))
    for part in ("ε = 1.027", "δ = 0.001", "PLD 1.027, RDP 1.454", "N = 100", "q = 0.05", "z = 1", "C = 0.5", "T = 20",
                 "client: all rows of one client", "zero-out", *STATEMENT["not_covered"]):  # fmt: skip
        assert part in text, part
    assert "Differential privacy none" not in text


def test_sections_of_withheld_numbers_are_there_and_empty(run):
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert page.text.count(WITHHELD) == 7
    for heading in ("Budget of each arm", "Per client", "Clients and categories", "Participation", "Diagnostics"):
        assert heading in page.text
    assert "client-0" not in page.text


def test_the_first_caveat_in_the_terminal_is_the_guarantee(run):
    assert alerts(load_run(run))[0] == guarantee_sentence(STATEMENT)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"private": False, "noise": "repeatable"}, "Not private: cohorts and noise follow from run.seed"),
        ({"private": False, "noise_multiplier": 0.0, "epsilon": None}, "Not private: it ran without noise."),
        ({"publish_nothing": True}, "Nothing of it is for publication."),
    ],
)
def test_a_run_that_is_not_private_or_not_for_publication_states_it_first(tmp_path, changes, sentence):
    found = alerts(load_run(published(tmp_path / "run", **changes)))
    assert any(sentence in text for text in found[:2])


def test_an_unfinished_private_run_has_a_page(tmp_path):
    run = published(tmp_path / "run", finished=False)
    text = Page(write_report(run).read_text(encoding="utf-8")).text
    assert "the guarantee is stated when the run is finished" in text


def test_private_runs_are_compared_by_what_they_release(tmp_path, run):
    other = published(tmp_path / "other")
    text = compare([run, other]).to_text()
    assert "federated" in text
    assert "client-0" not in text
