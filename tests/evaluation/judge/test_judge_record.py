"""calls.jsonl as a recorded format: one recording per protocol and pair, one judgement per call that counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shepherd.errors import DataError
from shepherd.evaluation.judge.calls.record import Call
from shepherd.evaluation.judge.pairs import summarise
from shepherd.evaluation.judge.replay import read_pairs

CALLS = Path(__file__).parent / "recordings" / "calls.jsonl"


def test_a_file_of_calls_holds_a_recording_per_protocol_and_pair():
    ratings, verdicts = read_pairs(CALLS)
    assert (ratings.a, ratings.b, ratings.scores) == ("base", "federated", True)
    assert (verdicts.a, verdicts.b, verdicts.scores) == ("centralised", "federated", False)
    assert [(one.question, one.b_first, one.points) for one in ratings.judgements] == [
        ("v1", False, (6, 8)),
        ("v1", True, (6, 9)),  # 9 was the first answer's, which is b's
        ("v2", False, (7, 7)),  # of the re-ask
        ("v2", True, (7, 7.5)),  # of the call after the failed one
        ("v3", False, None),  # refused
        ("v3", True, None),  # twice unparsed
    ]
    assert [one.points for one in verdicts.judgements] == [(1, 0), (0.5, 0.5)]


def test_unparsed_and_refused_calls_are_in_neither_total():
    one, other = summarise(read_pairs(CALLS))["pairs"]
    assert (one["total_a"], one["total_b"], one["questions"], one["orders"]) == (26, 31.5, 2, 2)
    assert (one["left_out"], one["texts"], one["unparsed"], one["disagreements"]) == (2, 5, 1, 0)
    assert (other["win_rate"], other["wins"], other["losses"], other["ties"]) == (25, 0, 1, 0)


def test_a_row_and_its_call_are_the_same():
    rows = [json.loads(line) for line in CALLS.read_text("utf-8").splitlines()]
    later = {"reference": "", "answer_limit": 0}  # fields that older lines do not have
    assert [Call.from_row(row).to_row() for row in rows] == [row | later for row in rows]


def test_an_unfinished_last_line_is_left_out_and_said(tmp_path):
    (tmp_path / "calls.jsonl").write_text(CALLS.read_text("utf-8")[:-50], "utf-8")
    (ratings, verdicts) = read_pairs(tmp_path / "calls.jsonl")
    assert ratings.torn and verdicts.torn and len(verdicts.judgements) == 1 and not read_pairs(CALLS)[0].torn


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"order": "up"}, "order is 'up', not one of ab, ba"),
        ({"protocol": "elo"}, "protocol is 'elo', not one of fedit, pairwise"),
        ({"outcome": "lost"}, "outcome is 'lost'"),
        ({"repeat": True}, "repeat is bool, not a whole number"),
        ({"text": None}, "text is NoneType, not a text"),
        ({"seed": "0"}, "seed is str, not a whole number"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, change, reason):
    first, second, *_ = CALLS.read_text("utf-8").splitlines()
    (tmp_path / "calls.jsonl").write_text(f"{first}\n{json.dumps(json.loads(second) | change)}\n", "utf-8")
    with pytest.raises(DataError) as error:
        read_pairs(tmp_path / "calls.jsonl")
    assert f"calls.jsonl, line 2: {reason}" in error.value.message
