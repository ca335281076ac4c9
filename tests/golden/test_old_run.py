"""Run directories that version 0.1.0 wrote before its parts were moved are read for ever: never write `old_run` again.

Both are of one recipe (its config.toml): three clients with a model of their own each, SCAFFOLD, momentum at the
server, every arm; `stopped` ended after the first of two rounds. Their base is `base`, beside them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from golden.command import Outcome, shepherd
from golden.recipes import BASE

OLD = Path(__file__).parent / "old_run"
PLACE = "/tmp/shepherd/base"
"""Where the base lay when they were written."""
DRIFT = 1e-5
"""Nats per token by which the kernels of two machines may differ."""


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder with copies of both runs in runs/, which know where the base is now."""
    folder = tmp_path_factory.mktemp("old")
    for name in ("finished", "stopped"):
        copy = shutil.copytree(OLD / name, folder / "runs" / name)
        settings = (copy / "config.toml").read_text(encoding="utf-8")
        assert PLACE in settings
        (copy / "config.toml").write_text(settings.replace(PLACE, BASE.as_posix()), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def summary() -> dict:
    return json.loads((OLD / "finished" / "summary.json").read_text(encoding="utf-8"))


def fine(outcome: Outcome) -> Outcome:
    assert outcome.status == 0, outcome.err
    return outcome


def close(loss: float):
    return pytest.approx(loss, abs=DRIFT)


def test_its_report_is_written_with_the_losses_that_it_holds(work, summary):
    for name in ("finished", "stopped"):
        page = Path(fine(shepherd(work, "report", f"runs/{name}")).out.strip())
        assert page.samefile(work / "runs" / name / "report.html")
    text = (work / "runs" / "finished" / "report.html").read_text(encoding="utf-8")
    losses = [f"{summary['arms'][arm]['loss']:.3f}" for arm in ("base", "federated", "centralised")]
    assert len(set(losses)) == 3 and all(loss in text for loss in losses)
    answer = json.loads((OLD / "finished" / "evaluation" / "generations.jsonl").read_text().splitlines()[0])
    assert answer["prompt"][0]["content"] in text


def test_it_stands_in_a_comparison_with_its_losses_and_settings(work, summary):
    runs = ("runs/finished", "runs/stopped")
    told = fine(shepherd(work, "compare", *runs)).out
    assert all(f"{summary['arms'][arm]['loss']:.3f}" in told for arm in ("base", "federated", "centralised"))
    assert "finished" in told and "stopped" in told
    page = work / "both.html"
    fine(shepherd(work, "compare", *runs, "--html", page))
    assert "finished" in page.read_text(encoding="utf-8")


def test_it_is_listed_with_its_state_and_its_rounds(work):
    listed = json.loads(fine(shepherd(work, "runs", "ls", "--json")).out)
    rows = {row["name"]: row for row in (listed["runs"] if isinstance(listed, dict) else listed)}
    assert (rows["finished"]["state"], rows["finished"]["rounds"]) == ("finished", 2)
    assert rows["stopped"]["state"] != "finished" and rows["stopped"]["rounds"] == 1


@pytest.mark.parametrize("number", [None, 1])
def test_its_adapter_has_the_loss_that_it_had(number, work, summary):
    of_round = [] if number is None else ["--round", number]
    measured = json.loads(fine(shepherd(work, "evaluate", "runs/finished", *of_round, "--json")).out)
    rounds = [json.loads(line) for line in (OLD / "finished" / "rounds.jsonl").read_text().splitlines()]
    assert measured["base"]["loss"] == close(summary["arms"]["base"]["loss"])
    assert measured["federated"]["loss"] == close(rounds[(number or 2) - 1]["held_out_loss"])
    assert abs(rounds[0]["held_out_loss"] - rounds[1]["held_out_loss"]) > 100 * DRIFT


def test_one_can_talk_to_it_and_it_answers_as_it_did(work):
    lines = (OLD / "finished" / "evaluation" / "generations.jsonl").read_text(encoding="utf-8").splitlines()
    for line in map(json.loads, lines):
        asked = line["prompt"][0]["content"]
        told = fine(shepherd(work, "chat", "runs/finished", "--max-new-tokens", 4, typed=f"{asked}\n"))
        assert line["answers"]["federated"] in told.out


def test_one_that_was_stopped_goes_on_to_the_numbers_of_one_that_was_not(work, summary):
    copy = shutil.copytree(work / "runs" / "stopped", work / "again" / "stopped")
    fine(shepherd(work, "resume", copy, "--force"))
    now = json.loads((copy / "summary.json").read_text(encoding="utf-8"))
    for arm in ("base", "federated", "centralised"):
        assert now["arms"][arm]["loss"] == close(summary["arms"][arm]["loss"])
    for client, own in summary["arms"]["local"].items():
        assert now["arms"]["local"][client]["loss"] == close(own["loss"])
    old = [json.loads(line) for line in (OLD / "finished" / "rounds.jsonl").read_text().splitlines()]
    new = [json.loads(line) for line in (copy / "rounds.jsonl").read_text().splitlines()]
    assert len(new) == 2 and new[0]["train_loss"] == old[0]["train_loss"]
    for client, loss in old[1]["train_loss"].items():
        assert new[1]["train_loss"][client] == close(loss)
