"""What a row says is read, or it is named: marks, columns, turns, tools, reasoning, values that stand for nothing."""

from __future__ import annotations

import hashlib
import json
import math

import pytest

from shepherd.data.sources import dataset_notes, load_examples
from shepherd.data.values import label, mark, missing, visible
from shepherd.errors import DataError
from shepherd.types import Message

ASK, SAY = "Name a river.", "The Danube."
USER, ANSWER = {"role": "user", "content": ASK}, {"role": "assistant", "content": SAY}
TURNS = (Message("user", ASK), Message("assistant", SAY))


def read(tmp_path, *rows, **options):
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_examples(str(path), **options)


def turns(*contents, **last):
    """user, assistant, user, … with these contents; the last turn has these fields besides."""
    out = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    out[-1] |= last
    return {"messages": out}


def reasons(data):
    return {reason: len(ids) for reason, ids in data.refused.items()}


# Marks of what is to be learned


@pytest.mark.parametrize("name", ["weight", "train", "loss"])
@pytest.mark.parametrize("value", [False, 0, 0.0, "0", "0.0", "false", "False", " no "])
def test_a_false_mark_masks_that_answer_in_any_spelling(tmp_path, name, value):
    row = turns(ASK, "bad", "And?", SAY)
    row["messages"][1][name] = value
    data = read(tmp_path, row)
    assert [(m.content, m.learned) for m in data.examples[0].messages if m.role == "assistant"] == [
        ("bad", False), (SAY, True),
    ]  # fmt: skip
    assert data.notes == ("masked in the data, so not a target: 1 answer in 1 row",)
    assert not data.unread and not data.changed


@pytest.mark.parametrize("value", [True, 1, 1.0, "1", "true", None])
def test_a_true_mark_and_an_empty_one_are_what_would_be_done_anyway(tmp_path, value):
    row = turns(ASK, SAY, weight=value)
    data = read(tmp_path, row)
    assert data.examples[0].messages == TURNS and not list(dataset_notes(data))


def test_a_mark_between_true_and_false_is_refused_since_answers_are_learned_or_not(tmp_path):
    data = read(tmp_path, turns(ASK, SAY), turns(ASK, SAY, weight=0.3), turns(ASK, SAY, weight=0.4))
    assert reasons(data) == {"an answer whose 'weight' is neither 0 nor 1: an answer is a target or not": 2}


def test_turns_after_the_last_target_are_dropped_and_a_row_of_masked_answers_is_refused(tmp_path):
    row = turns(ASK, SAY, "And?", "bad", train=False)
    data = read(tmp_path, row, turns(ASK, SAY, weight="0"))
    assert data.examples[0].messages == TURNS
    assert data.changed == {"turns after the last answer that is a target": ("c:1",)}
    assert reasons(data) == {"every answer is masked": 1}


def test_a_mark_on_a_users_turn_is_named_since_only_answers_are_learned(tmp_path):
    row = turns(ASK, SAY)
    row["messages"][0]["train"] = True
    assert list(read(tmp_path, row).changed) == ["'train' of a turn that is not an answer: only answers are targets"]


@pytest.mark.parametrize("fields", [{"weight": 0}, {"train": "false"}, {"loss": False}])
def test_a_row_that_is_masked_as_a_whole_is_refused_with_a_count(tmp_path, fields):
    row = {"instruction": ASK, "output": SAY}
    data = read(tmp_path, row, row | fields)
    assert reasons(data) == {f"the row is masked ({next(iter(fields))!r})": 1}


def test_a_measured_loss_and_a_weight_of_a_row_are_no_marks_and_are_named(tmp_path):
    data = read(tmp_path, {"instruction": ASK, "output": SAY, "loss": 0.0, "weight": 2.5})
    assert len(data) == 1 and data.unread == "not read: the columns loss (1 row), weight (1 row)"


def test_columns_map_another_mark_of_a_row_or_of_a_turn(tmp_path):
    row = {"instruction": ASK, "output": SAY}
    data = read(tmp_path, row | {"keep": 1}, row | {"keep": 0}, columns={"train": "keep"})
    assert reasons(data) == {"the row is masked ('keep')": 1}
    data = read(tmp_path, turns(ASK, "bad", "And?", SAY), turns(ASK, SAY, keep="no"), columns={"train": "keep"})
    assert reasons(data) == {"every answer is masked": 1}
    with pytest.raises(DataError, match="no column 'kep' for 'train'"):
        read(tmp_path, turns(ASK, SAY, keep="no"), columns={"train": "kep"})


def test_an_answer_that_is_marked_as_not_wanted_is_refused_as_preference_data(tmp_path):
    row = {"prompt": ASK, "completion": SAY}
    rows = [row | {"label": value} for value in (True, False, "false", "TRUE", None)]
    data = read(tmp_path, *rows)
    assert [e.id for e in data.examples] == ["c:1", "c:4", "c:5"] and not data.unread
    assert reasons(data) == {"'label' is false: an undesired answer of preference data": 2}
    data = read(tmp_path, row | {"label": 0}, row | {"label": "positive"})  # classes, and no judgement
    assert len(data) == 2 and data.unread == "not read: the column label (2 rows)"


# Columns and fields of turns


def test_every_column_and_turn_field_that_is_not_read_is_named_once_with_its_rows(tmp_path):
    row = turns(ASK, SAY, name="Eve", logprobs=[1])
    data = read(tmp_path, row | {"id": 7, "topic": ""}, row | {"id": 8, "topic": "x"}, row | {"id": None})
    sentence = "not read: the columns id (2 rows), topic (1 row); the turn fields name (3 rows), logprobs (3 rows)"
    assert data.unread == sentence and list(dataset_notes(data)) == [sentence]
    many = read(tmp_path, {"instruction": ASK, "output": SAY} | {f"x{i}": 1 for i in range(30)})
    assert many.unread.endswith("x11 (1 row) and 18 more")


def test_a_column_that_repeats_the_category_or_the_source_is_read_with_it(tmp_path):
    row = turns(ASK, SAY) | {"source": "english", "category": "food"}
    data = read(tmp_path, row | {"language": "english", "topic": "food"}, row | {"language": "german"})
    assert data.unread == "not read: the column language (1 row)"
    assert list(dataset_notes(load_examples("builtin:chatterbot"))) == [
        "1 row refused: 'messages' is not a list of turns (first: english-trivia:14)",
        "43 rows lost a part: turns after the last answer (first: english-computers:1, english-computers:3, "
        "english-computers:4)",
    ]


@pytest.mark.parametrize("name", ["system", "system_prompt", "system_message"])
def test_a_system_prompt_is_read_from_any_column_of_that_meaning(tmp_path, name):
    data = read(
        tmp_path, {"question": ASK, "response": SAY, name: "Rhyme."}, {"question": ASK, "response": SAY, name: ""}
    )
    assert data.examples[0].messages == (Message("system", "Rhyme."), *TURNS)
    assert data.examples[1].messages == TURNS and not list(dataset_notes(data))


def test_another_system_prompt_next_to_a_system_turn_is_reported(tmp_path):
    system = [{"role": "system", "content": "Be kind."}]
    rows = [{"messages": [*system, USER, ANSWER], "system": s} for s in ("Be kind.", "Be brief.")]
    data = read(tmp_path, *rows)
    assert data.changed == {"the column 'system', next to a system turn": ("c:2",)}
    assert data.examples[1].messages[0].content == "Be kind."


def test_earlier_turns_of_an_alpaca_row_come_before_its_instruction(tmp_path):
    row = {"instruction": "And now?", "output": "Oui."}
    pairs = read(tmp_path, row | {"history": [["Say yes.", "Yes."], ["Again.", "Yes!"]]})
    assert [(m.role, m.content) for m in pairs.examples[0].messages] == [
        ("user", "Say yes."), ("assistant", "Yes."), ("user", "Again."), ("assistant", "Yes!"),
        ("user", "And now?"), ("assistant", "Oui."),
    ]  # fmt: skip
    as_turns = read(tmp_path, row | {"history": turns("Say yes.", "Yes.", "Again.", "Yes!")["messages"]})
    as_text = read(tmp_path, row | {"history": json.dumps([["Say yes.", "Yes."], ["Again.", "Yes!"]])})
    assert pairs.digest == as_turns.digest == as_text.digest
    assert reasons(read(tmp_path, row, row | {"history": "yes"})) == {"'history' is not a list of pairs or turns": 1}


@pytest.mark.parametrize("asked", ["instruction", "prompt", "question", "query"])
@pytest.mark.parametrize("answered", ["response", "output", "completion", "answer"])
def test_every_pair_of_a_question_and_an_answer_is_read(tmp_path, asked, answered):
    data = read(tmp_path, {asked: ASK, answered: SAY, "context": "rivers"})
    assert data.examples[0].messages == TURNS
    # A prompt is whole: what stands beside it is named, and pasted in where the user says so.
    assert (data.examples[0].context, data.unread) == (
        ("", "not read: the column context (1 row)") if asked == "prompt" else ("rivers", "")
    )
    mapped = read(tmp_path, {asked: ASK, answered: SAY, "passage": "rivers"}, columns={"context": "passage"})
    assert mapped.examples[0].context == "rivers" and not mapped.unread


def test_a_query_is_the_input_of_an_instruction_and_a_second_passage_is_named(tmp_path):
    data = read(tmp_path, {"instruction": ASK, "query": "two", "output": SAY})
    assert data.examples[0].context == "two" and data.format == "alpaca"
    data = read(tmp_path, {"instruction": ASK, "input": "two", "response": SAY, "context": "three"})
    assert data.examples[0].context == "three" and data.unread == "not read: the column input (1 row)"


def test_a_context_next_to_turns_is_inserted_only_if_the_user_maps_it(tmp_path):
    row = turns(ASK, SAY) | {"context": "rivers"}
    data = read(tmp_path, row)
    assert data.examples[0].context == "" and data.unread == "not read: the column context (1 row)"
    assert read(tmp_path, row, columns={"context": "context"}).examples[0].context == "rivers"


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_kept_beside_the_answer_in_a_turn_and_in_a_column(tmp_path, name):
    thought = Message("assistant", SAY, reasoning="Rivers…")
    for row in (turns(ASK, SAY, **{name: " Rivers…"}), {"question": ASK, "answer": SAY, name: "Rivers…"}):
        data = read(tmp_path, row)
        assert data.examples[0].messages[-1] == thought and not list(dataset_notes(data))
    parts = [{"type": "thinking", "thinking": "Rivers…", "signature": "x"}, {"type": "text", "text": SAY}]
    assert (
        read(tmp_path, {"messages": [USER, {"role": "assistant", "content": parts}]}).examples[0].messages[-1]
        == thought
    )


def test_turns_in_prompt_and_completion_are_one_conversation_of_which_the_completion_is_learned(tmp_path):
    prompt = turns("Say yes.", "Yes.", ASK)["messages"]
    data = read(tmp_path, {"prompt": prompt, "completion": [ANSWER]}, {"prompt": prompt, "completion": SAY})
    for example in data.examples:
        assert [(m.content, m.learned) for m in example.messages] == [
            ("Say yes.", True), ("Yes.", False), (ASK, True), (SAY, True),
        ]  # fmt: skip


def test_a_conversation_that_begins_with_an_answer_loses_that_turn_with_a_count(tmp_path):
    system = {"role": "system", "content": "Be kind."}
    data = read(tmp_path, {"messages": [system, {"role": "assistant", "content": "Hi!"}, USER, ANSWER]})
    assert data.examples[0].messages == (Message("system", "Be kind."), *TURNS)
    assert list(data.changed) == ["the answer before the first question"]


def test_plain_text_is_a_target_with_a_note_but_only_if_no_row_has_another_format(tmp_path):
    data = read(tmp_path, {"text": " Once upon a time. "}, {"text": "\u200b"}, {"text": "The end."})
    assert [e.messages for e in data.examples] == [
        (Message("text", "Once upon a time."),), (Message("text", "The end."),),
    ]  # fmt: skip
    assert data.notes == ("2 rows of plain text: the whole text is a target, without a template or a prompt",)
    assert reasons(data) == {"empty text": 1}
    data = read(tmp_path, {"instruction": ASK, "output": SAY, "text": "both"}, {"text": "alone"})
    assert data.format == "alpaca" and data.unread == "not read: the column text (1 row)"
    assert reasons(data) == {"its columns match no known format": 1}


def test_rows_with_an_image_and_preference_pairs_are_refused_with_their_reason(tmp_path):
    data = read(tmp_path, turns(ASK, SAY) | {"image": "a.png"}, turns(ASK, SAY) | {"images": []})
    assert reasons(data) == {
        "'image' has a value, and only text is supported (remove it to train on the text alone)": 1
    }
    part = {
        "role": "user",
        "content": [{"type": "text", "text": ASK}, {"type": "image_url", "image_url": {"url": "x"}}],
    }
    assert reasons(read(tmp_path, turns(ASK, SAY), {"messages": [part, ANSWER]})) == {
        "a turn with a part that is not text": 1
    }
    for chosen, hint in ((SAY, "--columns completion=chosen"), ([USER, ANSWER], "--columns messages=chosen")):
        with pytest.raises(DataError, match="preference data") as caught:
            read(tmp_path, {"prompt": ASK, "chosen": chosen, "rejected": chosen})
        assert caught.value.hint.startswith(hint + " ")
        columns = dict([hint.removeprefix("--columns ").split("=")])
        data = read(tmp_path, {"prompt": ASK, "chosen": chosen, "rejected": chosen}, columns=columns)
        assert data.examples[0].messages == TURNS and "rejected (1 row)" in data.unread


# Tools

TOOL = {"name": "weather", "description": "…", "parameters": {"type": "object"}}


def test_tools_their_calls_and_their_results_are_kept_for_the_template(tmp_path):
    call = {"id": "a1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Bern"}'}}
    rows = {
        "openai": {
            "tools": [{"type": "function", "function": TOOL}],
            "messages": [
                USER,
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "rain", "tool_call_id": "a1"},
                ANSWER,
            ],
        },
        "older": {
            "functions": [TOOL],
            "messages": [
                USER,
                {"role": "assistant", "content": "", "function_call": call["function"]},
                {"role": "function", "name": "weather", "content": "rain"},
                ANSWER,
            ],
        },
        "sharegpt": {
            "tools": json.dumps([TOOL]),
            "conversations": [
                {"from": "human", "value": ASK},
                {"from": "function_call", "value": '{"name": "weather", "arguments": {"town": "Bern"}}'},
                {"from": "observation", "value": "rain"},
                {"from": "gpt", "value": SAY},
            ],
        },
    }  # fmt: skip
    for name, row in rows.items():
        data = read(tmp_path, row)
        example = data.examples[0]
        assert json.loads(example.tools) == [{"type": "function", "function": TOOL}], name
        assert [(m.role, m.content) for m in example.messages] == [
            ("user", ASK), ("assistant", ""), ("tool", "rain"), ("assistant", SAY),
        ]  # fmt: skip
        function = json.loads(example.messages[1].extra)["tool_calls"][0]["function"]
        assert function == {"name": "weather", "arguments": {"town": "Bern"}}
        assert not list(dataset_notes(data)), name
    assert json.loads(read(tmp_path, rows["openai"]).examples[0].messages[2].extra) == {"tool_call_id": "a1"}


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"tool_calls": [{"function": {"arguments": "{}"}}]}, "a tool call without a name"),
        (
            {"tool_calls": [{"function": {"name": "a", "arguments": "{"}}]},
            "a tool call whose arguments are not JSON",
        ),
        ({"tool_calls": 4}, "a turn whose tool calls are not a list"),
    ],
)
def test_a_call_that_cannot_be_understood_is_refused_with_its_reason(tmp_path, turn, reason):
    assert reasons(read(tmp_path, turns(ASK, SAY), turns(ASK, "", **turn))) == {reason: 1}


def test_a_cell_of_a_table_holds_turns_as_json_or_as_pandas_writes_a_list(tmp_path):
    turns_ = [USER, {"role": "assistant", "content": 'It\'s "the" Danube.'}]
    for cell in (json.dumps(turns_), repr(turns_)):
        data = read(tmp_path, {"messages": cell})
        assert data.examples[0].messages[-1].content == 'It\'s "the" Danube.'
    hostile = ("[" * 100_000, "__import__('os').getcwd()", "[1, 2", "{1: 2}", "None")
    data = read(tmp_path, turns(ASK, SAY), *({"messages": cell} for cell in hostile))
    assert reasons(data) == {"'messages' is not a list of turns": 5}


@pytest.mark.parametrize("says", ["<noinput>", "Noinput", "N/A", "nan"])
def test_a_placeholder_for_an_empty_input_is_dropped_and_counted(tmp_path, says):
    data = read(tmp_path, {"instruction": ASK, "input": says, "output": SAY})
    assert data.examples[0].context == "" and list(data.changed) == [
        "a placeholder for an empty input, such as <noinput>"
    ]


def test_an_input_with_an_output_and_inputs_with_targets_are_pairs_too(tmp_path):
    for row in ({"input": ASK, "output": SAY}, {"inputs": ASK, "targets": SAY}):
        assert read(tmp_path, row).examples[0].messages == TURNS


# Structures that are filled with null, and rows that differ


def test_a_null_key_is_an_absent_key_and_an_empty_list_of_turns_beside_alpaca_is_alpaca(tmp_path):
    filled = {"role": None, "content": None, "from": "human", "value": ASK, "tool_calls": None, "weight": None}
    rows = [
        {
            "conversations": [filled, {**filled, "from": "gpt", "value": SAY}, dict.fromkeys(filled)],
            "instruction": None,
        },
        {"messages": [], "instruction": ASK, "output": SAY},
        {"messages": None, "instruction": ASK, "output": SAY},
        {"messages": math.nan, "instruction": ASK, "output": SAY},
        turns(ASK, SAY) | {"instruction": None, "output": None},
    ]
    data = read(tmp_path, *rows)
    assert [e.messages for e in data.examples] == [TURNS] * 5 and not data.refused
    assert data.notes == ("rows of 3 formats: 1 sharegpt, 3 alpaca, 1 messages",)
    assert data.format == "sharegpt and alpaca and messages"


def test_turns_as_an_object_of_lists_are_read_as_the_package_datasets_writes_them(tmp_path):
    data = read(tmp_path, {"messages": {"role": ["user", "assistant"], "content": [ASK, SAY], "weight": None}})
    assert data.examples[0].messages == TURNS


def test_a_row_whose_answer_is_null_is_an_empty_answer_and_not_another_format(tmp_path):
    row = {"instruction": ASK, "output": SAY}
    data = read(tmp_path, row, row | {"output": None}, row | {"output": math.nan}, row | {"output": "\u200b\ufeff"})
    assert reasons(data) == {"empty answer": 3}


# Values


def test_missing_values_labels_and_marks_are_distinct_from_zero_and_false():
    assert all(map(missing, (None, math.nan, "", [], {}, ())))
    assert not any(map(missing, (0, 0.0, False, " ", "nan")))
    assert [label(v, "") for v in (1, 1.0, "1", " 1 ", True, None, math.nan, "", "\u200b")] == [
        "1", "1", "1", "1", "True", "", "", "", "",
    ]  # fmt: skip
    assert label("Zu\u0308rich ", "") == label("Zürich", "") == "Zürich"
    assert mark(0) is False and mark("On") is True and mark(None) is None
    with pytest.raises(ValueError, match=r"^0\.5$"):
        mark(0.5)


@pytest.mark.parametrize(
    "text", ["\u200b", "\u200b \u200d\ufeff", "\u00ad", "\u3164", "\u2800", "\t\n", "\u2067\u2069", "\ufe0f"]
)
def test_a_text_that_draws_nothing_is_empty(text):
    assert not visible(text) and visible(text + "x") and visible("👩\u200d🔬") and visible("कि")


def test_nan_null_an_empty_text_and_an_absent_key_are_all_no_category(tmp_path):
    row = {"instruction": ASK, "output": SAY}
    rows = [
        row | {"category": "x"},
        row | {"category": math.nan},
        row | {"category": None},
        row | {"category": ""},
        row,
    ]
    assert [e.category for e in read(tmp_path, *rows).examples] == ["x", *["(no category)"] * 4]
    assert {e.category for e in read(tmp_path, *rows[1:]).examples} == {"all"}


def test_an_answer_keeps_its_indentation_and_loses_blank_lines_before_it_with_a_count(tmp_path):
    data = read(tmp_path, *({"instruction": ASK, "output": o} for o in ("    x = 0\n    return x\n", "\n \n  y", " z")))
    assert [e.messages[-1].content for e in data.examples] == ["    x = 0\n    return x", "  y", " z"]
    assert read(tmp_path, turns("  a ", "  b\n")).examples[0].messages == (
        Message("user", "a"),
        Message("assistant", "  b"),
    )
    assert data.changed == {"blank lines before an answer": ("c:2",)}


def test_the_digest_of_rows_without_marks_reasoning_or_tools_is_that_of_former_versions(tmp_path):
    data = read(tmp_path, {"instruction": "a", "output": "b"})
    expected = hashlib.sha256(b'["c:1",[["user","a"],["assistant","b"]],"all","",""]\n').hexdigest()
    assert data.digest == expected
    masked = read(tmp_path, turns("a", "b", "c", "d"))
    row = turns("a", "b", "c", "d")
    row["messages"][1]["weight"] = 0
    assert read(tmp_path, row).digest != masked.digest
