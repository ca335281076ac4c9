"""Rows as other tools write them: marks, calls, cells and structs are read as they were meant, or refused and named."""

from __future__ import annotations

import datetime
import json

import pytest

from shepherd.data.sources import dataset_notes, load_examples
from shepherd.data.values import missing
from shepherd.errors import DataError
from shepherd.types import Message

ASK, SAY = "Name a river.", "The Danube."
USER, ANSWER = {"role": "user", "content": ASK}, {"role": "assistant", "content": SAY}
TURNS = (Message("user", ASK), Message("assistant", SAY))
PAIR = {"instruction": ASK, "output": SAY}


def read(tmp_path, *rows, **options):
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_examples(str(path), **options)


def reasons(data):
    return {reason: len(ids) for reason, ids in data.refused.items()}


# Marks and judgements


def test_an_answer_that_llama_factory_marks_as_not_wanted_is_refused(tmp_path):
    rows = [row | {"kto_tag": tag} for row in (PAIR, {"messages": [USER, ANSWER]}) for tag in (True, False)]
    data = read(tmp_path, *rows)
    assert [e.messages for e in data.examples] == [TURNS] * 2 and not data.unread
    assert reasons(data) == {"'kto_tag' is false: an undesired answer of preference data": 2}


def test_a_column_that_the_user_names_as_the_label_judges_in_any_spelling(tmp_path):
    rows = [{"prompt": ASK, "completion": SAY, "good": value} for value in (1, 0, "yes", "no", -1)]
    data = read(tmp_path, *rows, columns={"label": "good"})
    assert [e.id for e in data.examples] == ["c:1", "c:3"] and not data.unread
    assert reasons(data) == {
        "'good' is false: an undesired answer of preference data": 2,
        "'good' is neither true nor false": 1,
    }


def test_a_label_of_plain_text_is_a_class_and_no_judgement_of_an_answer(tmp_path):
    data = read(tmp_path, {"text": "Dull.", "label": False}, {"text": "Great!", "label": True})
    assert len(data) == 2 and data.unread == "not read: the column label (2 rows)"


def test_the_mark_training_of_axolotl_masks_an_answer(tmp_path):
    bad = {"role": "assistant", "content": "bad", "training": False}
    data = read(tmp_path, {"messages": [USER, bad, USER, ANSWER | {"training": True}]})
    assert [m.learned for m in data.examples[0].messages] == [True, False, True, True] and not data.unread


@pytest.mark.parametrize("earlier", [[], [USER, ANSWER]])
def test_a_conversation_that_is_answered_twice_is_preference_data_and_the_reason_names_the_mapping_for_it(
    tmp_path, earlier
):
    good, bad = ({"role": "assistant", "content": text} for text in (SAY, "no"))
    row = {"conversations": [*earlier, USER], "chosen": good, "rejected": bad}
    data = read(tmp_path, {"messages": [USER, ANSWER]}, row)
    assert reasons(data) == {
        "preference data: 'chosen' and 'rejected' answer the last turn (--columns prompt=conversations,"
        "completion=chosen trains on the chosen)": 1
    }
    data = read(tmp_path, row, columns={"prompt": "conversations", "completion": "chosen"})
    assert [m.content for m in data.examples[0].messages if m.role == "assistant" and m.learned] == [SAY]
    assert data.unread == "not read: the column rejected (1 row)"


def test_single_turns_in_rows_are_no_plain_text(tmp_path):
    rows = [{"text": ASK, "role": "prompter"}, {"text": SAY, "role": "assistant"}]
    with pytest.raises(DataError, match="2 rows: a single turn with a 'role'"):
        read(tmp_path, *rows)


# Formats of other tools


def test_turns_of_gemini_and_system_prompts_in_parts_are_read(tmp_path):
    said = [{"role": role, "parts": [{"text": text}]} for role, text in (("user", ASK), ("model", SAY))]
    rows = [
        {"contents": said, "systemInstruction": {"role": "system", "parts": [{"text": "Rhyme."}]}},
        {"messages": [USER, ANSWER], "system": [{"text": "Rhyme."}]},
        {"messages": [{"role": "system", "content": ""}, USER, ANSWER], "system": "Rhyme."},
        {"messages": [{"role": "System", "content": "Rhyme."}, USER, {"role": "Chatbot", "content": SAY}]},
    ]
    data = read(tmp_path, *rows)
    assert [e.messages for e in data.examples] == [(Message("system", "Rhyme."), *TURNS)] * 4
    assert not data.unread and not data.changed
    for row in rows[:1]:  # alone in a file, its list is still no list of rows
        assert len(read(tmp_path, row)) == 1
    strange = [PAIR | {"system": value} for value in ([5], {"parts": "a", "b": "c"}, {"b": "c"})]
    assert sum(reasons(read(tmp_path, PAIR, *strange)).values()) == 3


def test_a_column_named_contents_beside_another_format_changes_nothing(tmp_path):
    data = read(tmp_path, PAIR | {"contents": "x"})
    assert data.examples[0].messages == TURNS and data.unread == "not read: the column contents (1 row)"


def test_the_only_list_of_a_row_alone_in_a_file_is_a_conversation_and_no_client(tmp_path):
    with pytest.raises(DataError, match="a turn without a role"):
        read(tmp_path, {"messages": [{"text": ASK, "is_user": True}, {"text": SAY, "is_user": False}]})


def test_turns_in_the_cells_of_a_prompt_and_its_completion_are_turns_and_other_json_is_text(tmp_path):
    rows = [
        {"prompt": write([USER]), "completion": write([ANSWER])} for write in (json.dumps, repr)
    ]  # fmt: skip
    data = read(tmp_path, *rows)
    assert [e.messages for e in data.examples] == [TURNS] * 2
    for item in ({"name": "Danube"}, {"from": "Bern", "value": 3}, {"role": "user", "id": 7}):
        listed = json.dumps([item])
        data = read(tmp_path, {"prompt": listed, "completion": json.dumps([ANSWER])})
        assert [m.content for m in data.examples[0].messages] == [listed, json.dumps([ANSWER])]


# Calls of tools


def test_calls_in_a_separate_turn_may_be_several_and_have_any_of_the_roles(tmp_path):
    calls = [{"name": name, "arguments": {}} for name in ("rain", "wind")]
    rows = [
        {"messages": [USER, {"role": role, "content": json.dumps(calls)}, {"role": "tool", "content": "1"}, ANSWER]}
        for role in ("function_call", "tool_call", "tool_calls")
    ]
    for example in read(tmp_path, *rows).examples:
        made = json.loads(example.messages[1].extra)["tool_calls"]
        assert [call["function"]["name"] for call in made] == ["rain", "wind"]


def test_the_older_field_of_a_call_beside_the_newer_is_named(tmp_path):
    call = {"name": "rain", "arguments": "{}"}
    turn = {"role": "assistant", "tool_calls": [{"function": call}], "function_call": call | {"name": "wind"}}
    assert read(tmp_path, {"messages": [USER, turn]}).unread == "not read: the turn field function_call (1 row)"


def test_a_null_that_the_text_of_arguments_holds_is_kept_and_one_that_a_struct_is_filled_with_goes(tmp_path):
    def arguments(given):
        turn = {"role": "assistant", "tool_calls": [{"function": {"name": "rain", "arguments": given}}]}
        data = read(tmp_path, {"messages": [USER, turn]})
        return json.loads(data.examples[0].messages[1].extra)["tool_calls"][0]["function"]["arguments"]

    assert arguments('{"unit": null}') == {"unit": None}
    assert arguments({"at": {"town": "Bern", "day": None}, "unit": None}) == {"at": {"town": "Bern"}}
    assert arguments("") == arguments("null") == arguments(None) == {}


def test_a_struct_of_nothing_but_null_is_a_null(tmp_path):
    assert all(map(missing, ({"a": None}, [None], [[None, {}]], {"a": [{"b": float("nan")}]})))
    assert not any(map(missing, ({"a": 0}, [False], [[" "]])))
    null = {"name": None, "arguments": None}
    data = read(
        tmp_path,
        {"messages": [USER | {"function_call": null}, ANSWER | {"function_call": null}], "tools": [None]},
        PAIR | {"image": {"bytes": None, "path": None}, "images": [None], "history": [[None, None]]},
    )
    assert [e.messages for e in data.examples] == [TURNS] * 2
    assert list(dataset_notes(data)) == ["rows of 2 formats: 1 messages, 1 alpaca"]


@pytest.mark.parametrize("key", ["arguments", "parameters", "args", "input"])
def test_arguments_of_a_call_are_read_under_the_names_that_libraries_give_them(tmp_path, key):
    call = {"id": 7, "name": "rain", "arguments": None, key: {"town": "Bern"}}
    result = {"role": "tool", "tool_call_id": 7, "content": "1"}
    data = read(tmp_path, {"messages": [USER, {"role": "assistant", "tool_calls": [call]}, result, ANSWER]})
    made = json.loads(data.examples[0].messages[1].extra)["tool_calls"][0]
    assert made["function"] == {"name": "rain", "arguments": {"town": "Bern"}}
    assert made["id"] == json.loads(data.examples[0].messages[2].extra)["tool_call_id"] == "7"


def test_a_call_whose_arguments_stand_elsewhere_is_refused_and_not_learned_without_them(tmp_path):
    call = {"name": "rain", "kwargs": {"town": "Bern"}}
    data = read(tmp_path, PAIR, {"messages": [USER, {"role": "assistant", "tool_calls": [call]}]})
    assert reasons(data) == {"a tool call with 'kwargs' instead of 'arguments'": 1}


# Columns that another one stands for


def test_a_column_that_the_users_column_replaces_is_named_and_never_stands_in_for_it(tmp_path):
    rows = [{"prompt": ASK, "response": "draft", "final": final} for final in (SAY, None)]
    data = read(tmp_path, *rows, {"prompt": ASK, "response": "draft"}, columns={"response": "final"})
    assert [e.messages for e in data.examples] == [TURNS]
    assert data.unread == "not read: the column response (1 row)"
    assert sum(reasons(data).values()) == 2


def test_the_column_source_of_files_that_are_clients_is_named(tmp_path):
    for name in ("north", "south"):
        row = PAIR | ({"source": "web"} if name == "south" else {})
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    data = load_examples(str(tmp_path))
    assert [e.source for e in data.examples] == ["north", "south"]
    assert data.notes == ("the column source (1 row) is ignored: the source of a row is its client",)


# Values that have no place in a text


def test_half_characters_in_labels_tools_and_names_are_refused_and_never_an_end_of_the_program(tmp_path):
    half = "\ud83d"
    rows = [PAIR, PAIR | {"category": half}, PAIR | {"source": half}, PAIR | {"tools": [{"name": half}]}]
    call = {"role": "assistant", "tool_calls": [{"function": {"name": half, "arguments": {}}}]}
    data = read(tmp_path, *rows, {"messages": [USER, call]})
    assert len(data) == 1 and sum(reasons(data).values()) == 4
    with pytest.raises(DataError, match=r"c\.jsonl:2: the name of a field holds half a character"):
        read(tmp_path, PAIR, PAIR | {half: 1})


def test_numbers_that_are_too_long_and_nested_junk_are_refusals(tmp_path):
    long = {"messages": [USER, {"role": "function_call", "content": "9" * 5000}]}
    (tmp_path / "d.jsonl").write_text(
        json.dumps(PAIR) + "\n" + json.dumps(long) + "\n" + '{"instruction":"a","output":"b","tools":'
        + '[{"a":' * 300 + "1" + "}]" * 300 + "}\n"
    )  # fmt: skip
    data = load_examples(str(tmp_path / "d.jsonl"))
    assert reasons(data) == {"a tool call that is not JSON": 1, "nested too deeply": 1}


def test_a_part_of_a_turn_that_is_neither_text_nor_object_is_refused(tmp_path):
    row = {"messages": [{"role": "user", "content": [5, ASK]}, ANSWER]}
    assert reasons(read(tmp_path, PAIR, row)) == {"a turn with a part that is not text": 1}


# Tables


def test_a_delimiter_within_a_quoted_name_of_a_column_is_none(tmp_path):
    (tmp_path / "c.csv").write_text('"instruction";"output, in short, or so"\nq;a\n')
    data = load_examples(str(tmp_path / "c.csv"), columns={"response": "output, in short, or so"})
    assert [m.content for m in data.examples[0].messages] == ["q", "a"]


def test_the_index_that_pandas_writes_without_a_name_is_named_so(tmp_path):
    (tmp_path / "c.csv").write_text(",instruction,output\n0,q,a\n1,q,b\n")
    assert load_examples(str(tmp_path / "c.csv")).unread == "not read: the column (without a name) (2 rows)"


def test_a_parquet_file_with_two_columns_of_one_name_or_with_no_text_is_answered(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "c.parquet"
    table = pyarrow.Table.from_arrays([pyarrow.array([text]) for text in "qab"], ["instruction", "output", "output"])
    parquet.write_table(table, path)
    with pytest.raises(DataError, match="2 fields of a row are named 'output'"):
        load_examples(str(path))
    broken = pyarrow.array([b"\xff\xfe"], pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"instruction": ["q"], "output": broken}), path)
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        load_examples(str(path))
    dated = [PAIR, PAIR | {"tools": [{"name": "rain", "since": datetime.date(2024, 1, 1)}]}]
    parquet.write_table(pyarrow.Table.from_pylist(dated, pyarrow.Table.from_pylist(dated[1:]).schema), path)
    data = load_examples(str(path))
    assert reasons(data) == {
        "'tools' hold a value that JSON cannot represent: a date, bytes, NaN or half a character": 1
    }


# Labels


def test_a_category_that_is_not_a_single_value_is_unread_and_refused_only_if_the_user_maps_it(tmp_path):
    row = PAIR | {"category": ["rivers", "towns"], "source": {"web": "x"}}
    data = read(tmp_path, row)
    assert data.examples[0].messages == TURNS and data.examples[0].category == "all"
    assert data.unread == "not read: the columns category (1 row), source (1 row)"
    data = read(tmp_path, PAIR, row, columns={"category": "category"})
    assert reasons(data) == {"'category' is not a single value": 1}


def test_a_category_of_which_no_row_can_be_used_is_compared_as_a_label(tmp_path):
    bad = {"instruction": ASK, "output": None}
    rows = [PAIR | {"category": 1}, *(bad | {"category": value} for value in (1.0, "1 ", float("nan"), 0))]
    assert read(tmp_path, *rows).unusable["category"] == {"0": 1}


def test_nan_in_the_column_split_is_a_missing_value(tmp_path):
    rows = [PAIR | {"split": value} for value in ("train", "test", float("nan"), None)]
    data = read(tmp_path, *rows)
    assert data.notes[1] == "2 rows without a value in the column 'split' are ignored"


@pytest.mark.parametrize("value", [5, True])
def test_a_system_prompt_that_is_not_text_is_named_in_the_reason(tmp_path, value):
    data = read(tmp_path, PAIR, PAIR | {"system": value})
    assert reasons(data) == {f"the system prompt is not text but {type(value).__name__}": 1}
