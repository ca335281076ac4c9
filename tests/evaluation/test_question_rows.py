"""Rows of questions: conversations, system messages, references, and columns that are not used."""

from __future__ import annotations

import pytest

from shepherd.errors import DataError
from shepherd.evaluation.question_rows import question_of
from shepherd.types import Message


def read(**row):
    return question_of("mine.jsonl:3", {"id": 7, **row})


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Which river?"},
    {"role": "assistant", "content": "The Rhine."},
    {"role": "user", "content": "And its source?"},
]


@pytest.mark.parametrize("key", ["messages", "conversations", "conversation"])
def test_a_conversation_asks_its_last_turn_and_keeps_what_stands_before(key):
    question, unused = read(**{key: [*TALK, {"role": "assistant", "content": "The Alps."}]})
    assert question.turns == ("And its source?",) and question.reference == ("The Alps.",) and not unused
    assert question.before == tuple(Message(turn["role"], turn["content"]) for turn in TALK[:3])
    unanswered, _ = read(**{key: TALK})
    assert unanswered.hash == question.hash and unanswered.reference == ()


def test_names_of_sharegpt_are_read():
    question, _ = read(conversations=[{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}])
    assert (question.turns, question.reference) == (("Why?",), ("So.",))


def test_a_system_message_precedes_the_question():
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    for row in ({"text": "Why?", "system": "Be brief."}, {"turns": turns}):
        question, unused = read(**row)
        assert question.before == (Message("system", "Be brief."),) and question.turns == ("Why?",) and not unused
    question, unused = read(messages=TALK, system="Another.")
    assert question.before[0].content == "Be brief." and unused == ["system"]


def test_answers_among_turns_are_refused():
    with pytest.raises(DataError, match=r"mine\.jsonl:3: turns has a turn of the role 'assistant'") as error:
        read(turns=TALK[1:])
    assert "under messages" in error.value.hint


@pytest.mark.parametrize(
    "row, unused",
    [
        ({"text": "Why?", "choices": ["a", "b"], "answer": "a"}, ["choices", "answer"]),
        ({"text": "Why?", "turns": ["How?"]}, ["text"]),
        ({"text": "Why?", "context": {"title": "x"}}, ["context"]),
        ({"text": "Why?", "category": ["a"]}, ["category"]),
        ({"text": "Why?", "reference": ["a", "b"]}, ["reference"]),
        ({"text": "Why?", "reference": 4}, ["reference"]),
        ({"messages": TALK, "reference": "The Alps."}, []),
        ({"messages": [*TALK, {"role": "assistant", "content": "A."}], "reference": "B."}, ["reference"]),
        ({"messages": [{"role": "user", "content": "Why?", "mood": "glad"}]}, ["a turn's mood"]),
        ({"text": "Why?", "answer": None}, []),
    ],
)
def test_what_is_not_used_is_named(row, unused):
    assert read(**row)[1] == unused


def test_a_reference_that_is_missing_for_one_turn_stays_at_its_place():
    assert read(turns=["Why?", "How?"], reference=[None, "So."])[0].reference == ("", "So.")
    assert read(text="Why?", reference="So.")[0].reference == ("So.",)
    assert read(text="Why?", reference=[])[0].reference == ()


def test_a_placeholder_for_an_empty_passage_is_none():
    assert read(instruction="Sum it up.", input="<noinput>")[0].context == ""


@pytest.mark.parametrize(
    "row, message",
    [
        ({"messages": TALK[:1]}, "messages ends without a turn of the user"),
        ({"messages": [*TALK[:3], TALK[2]]}, "messages ends without a turn of the user"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "a turn with the role 'wizard'"),
        ({"messages": "Why?"}, "'messages' is not a list of turns"),
        ({"messages": [*TALK[:2], {"role": "tool", "content": "4"}, TALK[3]]}, "messages calls tools"),
        ({"text": "Why?", "system": ["a"]}, "'system' is not text but list"),
    ],
)
def test_rows_without_a_question_that_can_be_answered_are_refused(row, message):
    with pytest.raises(DataError, match=message):
        read(**row)
