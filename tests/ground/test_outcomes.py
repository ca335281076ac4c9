"""One event of a client has one word: failed, lost, late or rejected, in the report and on the terminal."""

from __future__ import annotations

import json

import pytest

from report_runs import Page, check, write_run
from shepherd.cli import progress
from shepherd.outcomes import OUTCOMES, STRIKES, outcome_of, outcomes_of
from shepherd.report import write_report
from shepherd.types import REASONS

OF_TRAINING = {
    "diverged": "failed", "error": "failed", "out-of-memory": "failed", "no-state": "failed", "lost": "lost",
    "hang": "lost", "refused": "lost",
}  # fmt: skip


@pytest.mark.parametrize("code", sorted(REASONS))
def test_what_does_not_happen_to_a_client_itself_is_a_rejection_by_the_gate(code):
    assert outcome_of(code) == OF_TRAINING.get(code, "rejected")


@pytest.mark.parametrize(
    ("code", "detail", "outcome"),
    [
        ("diverged", "the loss became nan in local step 2", "failed"),
        ("error:ValueError", "raised while training", "failed"),
        ("error", "", "failed"),
        ("out-of-memory", "even with smaller passes", "failed"),
        ("lost", "the worker process ended", "lost"),
        ("hang", "no sign of life for 600 s", "lost"),
        ("norm", "L2 norm 3e9, the limit is 1e4", "rejected"),
        ("a-code-of-tomorrow", "", "rejected"),
        # Runs from before `diverged` have one code for both; the detail says whose it is.
        ("non-finite", "the loss became nan in local step 2", "failed"),
        ("non-finite", "the gradient became inf in local step 1", "failed"),
        ("non-finite", "its loss is not finite under the adapter of any cluster", "failed"),
        ("non-finite", "q_proj.A: 3 values are not finite", "rejected"),
        ("non-finite", "the loss.A: L2 norm 3e38, float32 has no room beyond 1e38", "rejected"),
        ("non-finite", "", "rejected"),
    ],
)
def test_failures_of_training_are_told_from_losses_of_an_engine_and_rejections(code, detail, outcome):
    assert outcome_of(code, detail) == outcome


def test_what_a_client_sent_or_trained_counts_against_it_and_what_the_network_did_does_not():
    assert {code for code in REASONS if outcome_of(code) not in STRIKES} == {"lost", "hang", "refused"}
    assert "late" in OUTCOMES and "late" not in STRIKES


EVENTS = [
    {"client": "client-000", "code": "diverged", "detail": "the loss became nan in local step 2"},
    {"client": "client-001", "code": "hang", "detail": "no sign of life for 600 s"},
    {"client": "client-002", "code": "norm", "detail": "L2 norm 3e9, the limit is 1e4"},
]
LINE = {"rejected": EVENTS, "missing": ["client-003"], "late": ["client-004"]}


def test_every_client_of_a_round_has_one_outcome():
    cohort = [f"client-{i:03d}" for i in range(6)]
    outcomes = outcomes_of({"cohort": cohort, **LINE})
    assert list(outcomes.values()) == ["failed", "lost", "rejected", "lost", "late", "trained"]
    assert set(outcomes.values()) == set(OUTCOMES)


def test_page_and_terminal_name_the_same_events_alike(tmp_path):
    run = write_run(tmp_path / "run", clients=6, rounds=1)
    (line,) = (json.loads(text) for text in (run / "rounds.jsonl").read_text().splitlines())
    line |= LINE
    (run / "rounds.jsonl").write_text(json.dumps(line))
    parsed = Page(write_report(run))
    check(parsed)
    assert "5 updates did not count: 1 failed, 2 lost, 1 late, 1 rejected." in parsed.text
    for row in ("diverged failed 1 1 client-000", "hang lost 1 1 client-001", "norm rejected 1 1 client-002"):
        assert row in parsed.text, row
    for row in ("client-000 failed diverged", "client-001 lost hang", "client-003 lost no reply", "client-004 late"):
        assert f"1 {row}" in parsed.text, row
    described = progress.describe({"event": "round", "bytes_up": 0, **line}, {})
    for words in ("failed client-000", "lost client-001", "rejected client-002", "lost client-003", "late client-004"):
        assert words in described
