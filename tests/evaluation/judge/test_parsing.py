"""Strict readings of a judge's text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shepherd.evaluation.judge.parsing import (
    first_line_scores,
    last_line_class,
    own_scores,
    own_verdict,
    preferred_output,
)

QUESTION_70 = """First, I solve it: x + y = 14 and x - y = 6.
The lines meet at the point:
(10, 4)
I rate the assistants 6 and 8."""
"""In the form of GPT-4's reviews of Vicuna's question 70, whose solution looks like two scores."""


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("Both are correct.\nSCORES: 8 7.5", (8, 7.5)),
        ("SCORES: 1, 10\n\n", (1, 10)),
        ("SCORES: 3 4\nOn reflection:\n  SCORES: 5 6  ", (5, 6)),
        ("SCORES: 8 7\nThe first is better.", None),  # not the last line
        ("Both are correct.\n8 7", None),
        ("SCORES: 8", None),
        ("SCORES: 8 7 6", None),
        ("SCORES: 0 7", None),
        ("SCORES: 8 10.5", None),
        ("SCORES: 80 70", None),
        ("SCORES: -8 7", None),
        ("SCORES: 8/10 7/10", None),
        ("SCORES: ８ ７", None),
        ("**SCORES: 8 7**", None),
        ("I would not write SCORES: 8 7", None),
        ("", None),
        (QUESTION_70, None),
    ],
)
def test_our_scores_are_read_from_the_last_line_alone(text, scores):
    assert own_scores(text) == scores


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("A is shorter.\nVERDICT: A", "a"),
        ("VERDICT: B\n", "b"),
        ("They agree.\nVERDICT: TIE", "tie"),
        ("VERDICT: A\nor VERDICT: B", None),
        ("VERDICT: C", None),
        ("VERDICT: A or B", None),
        ("verdict: a", None),
        ("", None),
    ],
)
def test_our_verdict_is_read_from_the_last_line_alone(text, verdict):
    assert own_verdict(text) == verdict


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("9 8.5\nThe first is better.", (9, 8.5)),
        ("9, 8", (9, 8)),
        ("0 7\nThe first is empty.", (0, 7)),
        ("Scores: 9 8", None),
        ("9 8 7", None),
        ("11 8", None),
        ("\n9 8", None),
        ("(9, 8)", None),
        (QUESTION_70, None),
        (QUESTION_70.partition("point:\n")[2], None),  # also where the solution comes first
    ],
)
def test_recorded_scores_are_read_from_the_first_line_alone(text, scores):
    assert first_line_scores(text) == scores


def test_classes_and_outputs_are_whole_lines():
    assert [last_line_class(f"Because.\n\n{digit}\n") for digit in "1234"] == ["a", "b", "tie", None]
    assert last_line_class("1 or 2, I cannot choose 1") is None and last_line_class("3\nbecause they agree") is None
    assert [preferred_output(text) for text in ("Output (a)", "Output (b)\n", "Output (c)")] == ["a", "b", None]
    assert preferred_output("Not Output (a)") is None


@settings(max_examples=40)
@given(st.text(max_size=40))
def test_any_text_is_read_or_not_and_never_an_error(text):
    for read in (own_scores, first_line_scores):
        assert (found := read(text)) is None or all(0 <= score <= 10 for score in found)
    assert {own_verdict(text), last_line_class(text), preferred_output(text)} <= {"a", "b", "tie", None}
