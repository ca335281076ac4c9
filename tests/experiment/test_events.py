"""The events of a run have the types that `experiment/events.py` states, and docs/events.md lists them.

The runs of tests/golden are checked in the same way: every method, workers, a resumed run, a client with NaN.
"""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from console import Shell
from event_schema import KINDS, PAGE, page, problems
from shepherd.experiment import events
from shepherd.recipe import to_toml
from shepherd.store.records import RoundRecord
from stopped_runs import after_round, stopped

SHORT = ("evaluation.arms=base,federated", "evaluation.generate=0", "partition.name=iid", "partition.clients=2")


@pytest.fixture
def lines(capsys, monkeypatch):
    """lines("run", "a.toml") -> (exit status, the events that `--json` prints)."""

    def call(*arguments) -> tuple[int, list[dict]]:
        outcome = Shell(capsys, monkeypatch)(*arguments, "--json")
        return outcome.status, [json.loads(line) for line in outcome.out.splitlines()]

    return call


def wrong(told: list[dict]) -> list[str]:
    return [problem for event in told for problem in problems(event)]


@pytest.fixture
def recipe(small_config, tmp_path):
    def write(*settings: str):
        path = tmp_path / "recipe.toml"
        path.write_text(to_toml(small_config(*SHORT, f"run.out={tmp_path / 'runs'}", *settings)), encoding="utf-8")
        return path

    return write


def test_every_line_of_a_run_with_json_has_its_type(recipe, lines):
    status, told = lines("run", recipe("federation.rounds=1"))
    assert status == 0 and not wrong(told)
    assert {event["event"] for event in told} == set(KINDS) - {"committed", "error", "sites"}


def test_every_line_of_a_resumed_run_has_its_type(small_config, tmp_path, lines):
    folder = stopped(small_config(*SHORT), tmp_path, after_round(1))
    status, told = lines("resume", folder)
    assert status == 0 and not wrong(told)
    assert [event["round"] for event in told if event["event"] == "committed"] == [1]


def test_every_line_of_a_run_that_fails_has_its_type_and_the_last_is_the_error(recipe, lines):
    status, told = lines("run", recipe("training.learning_rate=1e30", "training.local_steps=2"))
    assert not wrong(told) and [event["event"] for event in told].count("error") == 1
    assert status == told[-1]["exit_status"] == 6 and "start" in {event["event"] for event in told}


def test_a_run_that_does_not_begin_prints_the_error_alone(lines):
    status, told = lines("run", "nosuch.toml")
    assert not wrong(told) and [event["event"] for event in told] == ["error"] and status == 2


def test_the_line_of_a_round_has_the_fields_of_its_record_and_what_was_measured_after_it():
    record = {field.name for field in fields(RoundRecord)}
    measured = {"held_out_loss", "held_out_per_category", "held_out_per_client"}
    assert set(events.RoundLine.__annotations__) == record | measured


START = {
    "event": "start", "run": "r", "config": {}, "model": "m", "clients": ["a"], "labels": {}, "rounds": 1,
    "arms": ["base"], "round": 0, "fraction": 0.0,
}  # fmt: skip
STEP = {
    "event": "step", "arm": "federated", "round": 1, "rounds": 2, "tokens_per_second": 1.5, "fraction": 0.5,
    "eta_seconds": None, "clients": {"a": {
        "step": 1, "steps": 2, "loss": 2.5, "tokens": 3, "state": "training", "seen_tokens": 4,
        "tokens_per_second": None,
    }},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, []),
        ({"more": 1}, ["step.more: unknown"]),
        ({"round": "1"}, ["step.round: '1' is not integer"]),
        ({"round": True}, ["step.round: True is not integer"]),
        ({"round": 1.0}, ["step.round: 1.0 is not integer"]),
        ({"fraction": None}, ["step.fraction: None is not number"]),
        ({"eta_seconds": "soon"}, ["step.eta_seconds: 'soon' is not number or null"]),
        ({"clients": []}, ["step.clients: [] is no object"]),
        ({**START, "clients": "ab"}, ["start.clients: 'ab' is not array of string"]),
        ({**START, "clients": ["a", 1]}, ["start.clients.1: 1 is not string"]),
        ({"event": "steps"}, ["no event has the name 'steps'"]),
    ],
)
def test_an_event_of_another_type_is_found(change, found):
    assert problems(change if change.get("event") == "start" else {**STEP, **change}) == found


def test_a_key_that_is_missing_or_wrong_deep_inside_is_found():
    assert problems({k: v for k, v in STEP.items() if k != "arm"}) == ["step.arm: missing"]
    row = {**STEP["clients"]["a"], "state": "asleep"}
    (problem,) = problems({**STEP, "clients": {"a": row}})
    assert problem.startswith("step.clients.a.state: 'asleep' is not `waiting`, ")


def test_the_page_of_the_docs_is_that_of_the_types():
    assert PAGE.read_text(encoding="utf-8") == page(), "python tests/helpers/event_schema.py writes it"


def test_a_resume_that_fails_ends_with_an_error_event(tmp_path, lines):
    status, told = lines("resume", tmp_path / "nowhere")
    assert status == 2 and [event["event"] for event in told] == ["error"]
    assert told[0]["exit_status"] == 2 and "nowhere" in told[0]["message"]
