"""Rows of questions: conversations, system messages, references, and columns that are not used."""

from __future__ import annotations

import json

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
    assert read(turns=["Why?", "How?"], reference=["So.", None])[0].reference == ("So.", "")
    assert read(text="Why?", reference=["So.", None]) == read(text="Why?", reference="So.")


@pytest.mark.parametrize(
    "row, passage, unused",
    [
        ({"input": "<noinput>"}, "", ["a placeholder for an empty input"]),
        ({"context": "None", "input": "real"}, "real", ["a placeholder for an empty input"]),
        ({"context": "None", "input": "n/a"}, "", ["a placeholder for an empty input"]),
        ({"context": "  ", "input": "real"}, "real", []),
        ({"context": " ", "input": ""}, "", []),
        ({"context": "real", "input": "other"}, "real", ["input"]),
    ],
)
def test_the_first_usable_passage_is_read(row, passage, unused):
    question, beside = read(instruction="Sum it up.", **row)
    assert (question.context, beside) == (passage, unused)


def test_a_prompt_is_complete_and_has_no_passage():
    question, unused = read(prompt="Why?", context="A text.", input="Another.")
    assert question.shown == ("Why?",) and unused == ["context", "input"]


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


PARTS = [turn("system", "Be brief."), turn("user", "Why?")]


@pytest.mark.parametrize("write", [json.dumps, repr])
@pytest.mark.parametrize("key", ["turns", "text", "prompt"])
def test_a_table_cell_holds_a_list_as_text(key, write):
    assert read(**{key: write(["First?", "It's 2?"])})[0].turns == ("First?", "It's 2?")
    question, unused = read(**{key: write(PARTS)})
    assert question == read(turns=PARTS)[0] and not unused and question.before == (Message("system", "Be brief."),)
    assert read(**{key: write(PARTS[1])})[0].turns == ("Why?",)
    question, unused = read(turns=write(["a", "b", None]), reference=write(["r1", None]))
    assert question.turns == ("a", "b") and question.reference == ("r1", "") and not unused


@pytest.mark.parametrize("write", [json.dumps, repr])
def test_references_of_a_cell_are_as_many_as_turns(write):
    question, unused = read(text="Why?", reference=write(["r1", "r2"]))
    assert question.reference == () and unused == ["reference"]


@pytest.mark.parametrize("text", ["[INST] Why? [/INST]", "[1, 2, 3]", "[]", '[{"age": 3}]', "{x} is a set", '{"a": 1}'])
def test_a_text_that_only_begins_like_a_list_is_a_text(text):
    for key in ("text", "question", "prompt", "instruction"):
        assert read(**{key: text})[0].turns == (text,)
    assert read(text="Why?", reference=text)[0].reference == (text,)


@pytest.mark.parametrize(
    "row, key",
    [
        ({"turns": "['a' 'b']"}, "turns"),
        ({"turns": "['a'\n 'b']"}, "turns"),
        ({"turns": "['a', 'b' 'c']"}, "turns"),
        ({"prompt": "['a' 'b']"}, "prompt"),
        ({"text": "Why?", "reference": "['a' 'b']"}, "reference"),
        ({"turns": "['a' ... 'b']"}, "turns"),
        ({"turns": "[a, b]"}, "turns"),
        ({"turns": "[1, 2]"}, "turns"),
        ({"turns": "[]"}, "turns"),
        ({"turns": ["a", "b"], "reference": "[None 'r2']"}, "reference"),
    ],
)
def test_a_list_in_a_cell_that_cannot_be_read_is_refused(row, key):
    with pytest.raises(DataError, match=rf"mine\.jsonl:3: {key} begins like a list, and is none of texts or turns"):
        read(**row)


@pytest.mark.parametrize("marked", [{"weight": 0}, {"train": False}])
def test_a_masked_answer_does_not_become_the_reference(marked):
    question, unused = read(messages=[turn("user", "Why?"), turn("assistant", "So.", **marked)])
    assert question.reference == () and unused == ["an answer that is masked"]
    question, unused = read(messages=[turn("user", "Why?"), turn("assistant", "So.", **marked)], reference="True.")
    assert question.reference == ("True.",) and unused == ["an answer that is masked"]
    assert read(messages=[turn("user", "a"), turn("assistant", "b", **marked), turn("user", "Why?")])[1] == []


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "assistant", "content": "A said"}, {"content": "then?"}],
        [turn("system", "Be brief."), "Why?"],
        [{"role": None, "content": "Why?"}, turn("user", "How?")],
        json.dumps([turn("user", "a"), "Why?"]),
    ],
)
def test_turns_with_a_role_next_to_turns_without_one_are_refused(turns):
    for key in ("turns", "prompt"):
        with pytest.raises(DataError, match=f"{key} holds turns with a role and turns without one") as error:
            read(**{key: turns})
        assert error.value.hint == "give each turn a role, or none of them"


def test_further_fields_of_turns_without_a_role_are_named():
    question, unused = read(turns=[{"content": "Why?", "image": "x.png", "name": None}])
    assert question.turns == ("Why?",) and unused == ["a turn's image"]


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": None, "content": "Why?"}],
        [{"role": None, "content": "Why?"}, {"role": None, "content": None}],
        {"role": [None], "content": ["Why?"]},
        ["Why?", None, None],
        [turn("user", "Why?"), None],
    ],
)
def test_nulls_of_a_struct_are_left_out(turns):
    question, unused = read(turns=turns)
    assert question.turns == ("Why?",) and not unused


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content", "thinking"])
def test_reasoning_is_left_out_and_named(field):
    earlier = [turn("user", "a"), turn("assistant", "b", **{field: "Hm."}), turn("user", "Why?")]
    question, unused = read(messages=earlier)
    assert not any(message.reasoning for message in question.before) and unused == ["a turn's reasoning"]
    question, unused = read(messages=[turn("user", "Why?"), turn("assistant", "So.", **{field: "Hm."})])
    assert question.reference == ("So.",) and unused == ["a turn's reasoning"]


@pytest.mark.parametrize("blank", ["   ", "\u200b", None])
def test_a_blank_reference_is_none(blank):
    assert read(text="Why?", reference=blank)[0].reference == ()
    assert read(turns=["a", "b"], reference=[blank, "So."])[0].reference == ("", "So.")
    assert read(messages=[turn("user", "Why?"), turn("assistant", "  ")], reference="So.")[0].reference == ("So.",)


def test_a_blank_column_is_a_missing_one():
    question, unused = read(text=" ", question="Why?", system="  ", system_prompt="Be brief.", category=" ", answer=" ")
    assert question.turns == ("Why?",) and question.before[0].content == "Be brief." and unused == []


@pytest.mark.parametrize(
    "row",
    [
        {"text": "\ud800x"},
        {"turns": ["a", "\ud800x"]},
        {"turns": [{"content": "\ud800x"}]},
        {"turns": '["\ud800x"]'},
        {"instruction": "Why?", "input": "\ud800x"},
        {"text": "Why?", "reference": "\ud800x"},
        {"turns": ["a", "b"], "reference": [None, "\ud800x"]},
        {"text": "Why?", "system": "\ud800x"},
        {"text": "Why?", "id": "\ud800x"},
        {"messages": [turn("user", "\ud800x")]},
    ],
)
def test_half_a_character_is_refused_with_its_row(row):
    with pytest.raises(DataError, match=r"mine\.jsonl:3: .* holds half a character \(a lone surrogate\)"):
        read(**row)


def test_all_system_messages_at_the_start_are_kept():
    both = [turn("system", "Be brief."), turn("developer", "Rhyme."), turn("user", "Why?")]
    for key in ("turns", "prompt"):
        question, _ = read(**{key: both})
        assert question.before == (Message("system", "Be brief."), Message("system", "Rhyme."))
    with pytest.raises(DataError, match="turns has a system message after a turn of the user"):
        read(turns=[turn("user", "Why?"), turn("system", "Be brief.")])


def test_an_empty_system_turn_leaves_the_column_in_use():
    for row in ({"messages": [turn("system", " "), turn("user", "Why?")]}, {"turns": [turn("system", ""), PARTS[1]]}):
        question, unused = read(**row, system="Be brief.")
        assert question.before == (Message("system", "Be brief."),) and unused == []


def test_a_whole_number_of_parquet_is_an_id():
    found = read(text="Why?", id=1.0)[0].id
    assert found == 1 and isinstance(found, int)
    assert read(text="Why?", question_id=float("nan"), id=3)[0].id == 3
    for other in (1.5, float("inf"), True):
        with pytest.raises(DataError, match="question_id is"):
            read(text="Why?", id=other)


def test_a_conversation_is_read_where_a_text_repeats_one_of_its_turns():
    for repeated in ("Which river?", " And its source? ", "Be brief.", ["Which river?"]):
        question, unused = read(prompt=repeated, messages=TALK, topic="x")
        assert question == read(messages=TALK)[0] and unused == ["topic"]
    assert read(prompt="Which river?", text="<s>Which river?", messages=json.dumps(TALK))[1] == ["text"]
    assert read(prompt="Which river?", messages=[*TALK, None])[0] == read(messages=TALK)[0]
    for other in ("The Rhine.", ["Which river?", "And its source?"]):
        with pytest.raises(DataError, match="prompt and messages hold different questions") as error:
            read(prompt=other, messages=TALK)
        assert error.value.hint.startswith("remove one of them")
    assert read(text="Why?", conversation="the seventh") == (read(text="Why?")[0], ["conversation"])


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
