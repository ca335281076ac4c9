"""Rows of every format and file kind become the same examples, and what is wrong with them is said."""

from __future__ import annotations

import csv
import json
import os
import sys
import types
from pathlib import Path

import pytest

from shepherd import network
from shepherd.data import files
from shepherd.data.sources import load_examples
from shepherd.errors import DataError, NetworkError, ShepherdError, UsageError
from shepherd.types import Example, Message

ASK, SAY = "Name a river.", "The Danube."
TURNS = (Message("user", ASK), Message("assistant", SAY))


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


ROWS = {
    "alpaca": {"instruction": ASK, "input": "rivers", "output": SAY},
    "dolly": {"instruction": ASK, "context": "rivers", "response": SAY, "category": "open_qa"},
    "prompt_completion": {"prompt": ASK, "completion": " " + SAY},
    "messages": {"messages": [{"role": "user", "content": ASK}, {"role": "assistant", "content": SAY}]},
    "sharegpt": {"conversations": [{"from": "human", "value": ASK}, {"from": "gpt", "value": SAY}]},
}


@pytest.mark.parametrize("name", ROWS)
def test_each_format_is_detected_by_its_fields(tmp_path, name):
    data = load_examples(write(tmp_path / "clinic.jsonl", [ROWS[name]] * 2))
    assert data.format == name
    assert (name == "prompt_completion") == (data.changed != {})  # the space that begins its completion
    assert [e.id for e in data.examples] == ["clinic:1", "clinic:2"]
    assert all(e.messages == TURNS for e in data.examples)
    assert data.examples[0].context == ("rivers" if name in ("alpaca", "dolly") else "")
    assert data.examples[0].category == ("open_qa" if name == "dolly" else "all")
    assert load_examples(write(tmp_path / "x.jsonl", [ROWS[name]]), format=name).format == name


def test_every_kind_of_file_gives_the_same_examples(tmp_path):
    rows = [
        {"instruction": f'Say «{i}», "quoted"\nover lines', "context": "", "response": f"Käse {i} 🐑", "category": "c"}
        for i in range(3)
    ]
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    lines = "".join(json.dumps(r) + "\n" for r in rows)
    contents = {
        "a/rows.jsonl": lines.encode(),
        "b/rows.jsonl": b"\xef\xbb\xbf" + lines.replace("\n", "\r\n").encode(),
        "c/rows.json": lines.encode(),  # JSON lines under another name
        "d/rows.json": json.dumps(rows, indent=2).encode(),
        "e/rows.json": json.dumps({"data": rows}).encode(),
        "f/rows.json": json.dumps({"version": 1, "data": rows}, indent=2).encode(),
        "g/rows.jsonl": json.dumps(rows).encode(),  # a list under the name of JSON lines
    }
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    for name, delimiter in (("h/rows.csv", ","), ("i/rows.csv", ";"), ("j/rows.tsv", "\t")):
        (tmp_path / name).parent.mkdir()
        with open(tmp_path / name, "w", encoding="utf-8", newline="") as file:
            out = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            out.writeheader()
            out.writerows(rows)
        contents[name] = b""
    (tmp_path / "k").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "k/rows.parquet")
    loaded = {name: load_examples(str(tmp_path / name)) for name in [*contents, "k/rows.parquet"]}
    assert len({data.digest for data in loaded.values()}) == 1, {n: d.examples for n, d in loaded.items()}
    assert loaded["k/rows.parquet"].examples[2] == Example(
        "rows:3",
        (Message("user", 'Say «2», "quoted"\nover lines'), Message("assistant", "Käse 2 🐑")),
        category="c",
    )


def test_a_folder_is_one_source_per_file_and_equal_stems_do_not_collide(tmp_path):
    for name in ("north.jsonl", "south.jsonl", "south.csv"):
        if name.endswith("csv"):
            (tmp_path / name).write_text("prompt,completion\na,b\n")
        else:
            write(tmp_path / name, [{"prompt": "a", "completion": "b", "source": "elsewhere"}] * 2)
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / ".hidden.jsonl").write_text("not data")
    data = load_examples(str(tmp_path))
    assert [e.id for e in data.examples] == [
        "north:1", "north:2", "south.csv:1", "south.jsonl:1", "south.jsonl:2",
    ]  # fmt: skip
    assert [e.source for e in data.examples] == ["north", "north", "south.csv", "south.jsonl", "south.jsonl"]
    assert data.notes == (
        "not data, so not read: README.md",
        "the column source (4 rows) is ignored: the source of a row is its client",
    )


def test_columns_map_other_names_and_pick_up_category_and_source(tmp_path):
    path = write(tmp_path / "c.jsonl", [{"q": ASK, "a": SAY, "topic": "x", "user": 7, "instruction": "not this"}])
    columns = {"instruction": "q", "response": "a", "category": "topic", "source": "user"}
    example = load_examples(path, columns=columns).examples[0]
    assert example == Example("c:1", TURNS, category="x", source="7")


def test_a_conversation_keeps_its_turns_and_its_system_message(tmp_path):
    turns = [("system", " Be kind. "), ("human", ASK), ("gpt", SAY), ("human", "And?"), ("gpt", "No."), ("human", "Oh")]
    path = write(tmp_path / "c.json", [{"conversations": [{"from": f, "value": v} for f, v in turns]}])
    data = load_examples(path)
    roles = [m.role for m in data.examples[0].messages]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    assert data.examples[0].messages[0].content == "Be kind."
    assert data.changed == {"turns after the last answer": ("c:1",)}
    with_parts = [{"role": "user", "content": [{"type": "text", "text": ASK}]}, {"role": "assistant", "content": SAY}]
    row = {"messages": with_parts, "system": "Be kind."}
    assert load_examples(write(tmp_path / "d.jsonl", [row])).examples[0].messages == (
        Message("system", "Be kind."),
        *TURNS,
    )


def test_rows_that_cannot_be_used_are_refused_with_counts_per_reason(tmp_path):
    good = {"messages": [{"role": "user", "content": ASK}, {"role": "assistant", "content": SAY}]}

    def bad(*turns):
        return {"messages": [dict(zip(("role", "content"), turn, strict=True)) for turn in turns]}

    rows = [
        good,
        bad(("user", ASK), ("assistant", "  ")),
        bad(("user", ASK), ("assistant", "")),
        bad(("assistant", SAY)),
        bad(("user", ASK)),
        bad(("user", ASK), ("judge", "4"), ("assistant", SAY)),
        bad(("user", ""), ("assistant", SAY)),
        bad(("user", ASK), ("assistant", 4)),
        bad(("user", ASK), ("assistant", "\ud800")),
        {"messages": "no list"},
        {"messages": None},
        {"other": 1},
        bad(("user", ASK), ("assistant", "")),
        bad(("user", ASK), ("assistant", "")),
    ]
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load_examples(str(path))
    assert [e.id for e in data.examples] == ["c:1"]
    assert data.refused == {
        "empty answer": ("c:2", "c:3", "c:13", "c:14"),
        "answers without a question": ("c:4",),
        "no answer": ("c:5",),
        "a turn with the role 'judge', which is not system, user, assistant or tool": ("c:6",),
        "empty instruction": ("c:7",),
        "a turn is not text but int": ("c:8",),
        "a turn holds half a character (a lone surrogate)": ("c:9",),
        "'messages' is not a list of turns": ("c:10",),
        "no 'messages'": ("c:11",),
        "its columns match no known format": ("c:12",),
    }


# The mistakes of a user, each with its message and exit status 3.


def complaint(*args, **options) -> ShepherdError:
    with pytest.raises(DataError) as error:
        load_examples(*args, **options)
    assert error.value.exit_code == 3
    return error.value


def test_a_missing_file_offers_the_nearest_name_in_its_folder(tmp_path):
    write(tmp_path / "clinic.jsonl", [ROWS["dolly"]])
    error = complaint(str(tmp_path / "clinc.jsonl"))
    assert "data not found" in error.message and "Did you mean 'clinic.jsonl'?" in error.message
    error = complaint(str(tmp_path / "nowhere" / "clinic.jsonl"))
    assert "there is no folder" in error.message


def test_malformed_json_lines_show_file_line_column_and_the_text(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps(ROWS["dolly"]) + '\n\n{"instruction": "a" "response": "b"}\n')
    error = complaint(str(path))
    assert f"{path}:3:21: malformed JSON: Expecting ',' delimiter" in error.message
    assert '{"instruction": "a" "response": "b"}' in error.message and error.hint
    path.write_text('{"instruction": "a", "response": "cut off\n' + json.dumps(ROWS["dolly"]) + "\n")
    assert f"{path}:1:" in complaint(str(path)).message
    path.write_text('[{"instruction": "a"},\n {"instruction": }]')
    assert f"{path}:2:18:" in complaint(str(path)).message
    path.write_text('{"a": 1}\n[1, 2]\n')
    assert f"{path}:2: a row is an object with fields, this is list: [1, 2]" in complaint(str(path)).message
    path.write_text('{\n "instruction": "a",\n "response" "b"}')
    assert f"{path}:3:13:" in complaint(str(path)).message
    path.write_text('{\n "instruction": "a",\n "response": "b"}')
    assert "no list of rows under 'data' (found 'instruction', 'response')" in complaint(str(path)).message
    path.write_text('{"instruction": "' + "a" * 500 + "}\n")
    assert "…" in complaint(str(path)).message and len(complaint(str(path)).message) < 300


def test_unknown_columns_show_what_was_found_and_what_each_format_accepts(tmp_path):
    path = write(tmp_path / "c.jsonl", [{"ask": "a", "tell": "b", "id": 1}])
    error = complaint(path)
    assert "found: ask, tell, id" in error.message
    for line in ("alpaca: instruction, output", "dolly: instruction, response", "messages, conversations"):
        assert line in error.message
    assert error.hint == "map them: --columns instruction=ask,response=tell"
    error = complaint(path, columns={"instruction": "ask", "response": "tel"})
    assert "no column 'tel' for 'response'. Did you mean 'tell'?" in error.message
    assert (
        "unknown field 'instrction'. Did you mean 'instruction'?"
        in complaint(path, columns={"instrction": "x"}).message
    )
    assert "dolly: instruction, response" in complaint(path, format="dolly").message


def test_when_every_row_is_refused_the_error_counts_the_reasons_and_names_the_first_rows(tmp_path):
    error = complaint(write(tmp_path / "c.jsonl", [{"prompt": "a", "completion": ""}] * 5))
    assert "none of the 5 rows can be used" in error.message
    assert "5 rows: empty answer (c:1, c:2, c:3, …)" in error.message


def test_empty_files_other_encodings_and_broken_tables_are_named(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"\n\n")
    assert "has no rows" in complaint(str(path)).message and complaint(str(path)).hint
    path.write_bytes(b'{"prompt": "a",\n "completion": "caf\xe9"}')
    assert f"{path}:2: not UTF-8 (byte 0xe9)" in complaint(str(path)).message
    path.write_bytes('{"prompt": "a"}'.encode("utf-16"))
    assert "UTF-16" in complaint(str(path)).message
    path.write_text('{"rows": []}')
    assert "has no rows" in complaint(str(path)).message
    path.write_text('{"row": {}}')
    assert "match no known format" in complaint(str(path)).message
    table = tmp_path / "t.csv"
    table.write_text("prompt,completion\na,b,c\n")
    assert f"{table}:2: row 1 has more fields" in complaint(str(table)).message
    table.write_text('prompt,completion\na,b\n"c\nd",e\nf,"g\nh,i\n')  # the rows begin at the lines 2, 3 and 5
    assert f"{table}:5: malformed CSV in the row that begins here" in complaint(str(table)).message
    assert "double quote" in complaint(str(table)).hint
    (tmp_path / "t.xlsx").write_bytes(b"")
    assert "cannot read .xlsx" in complaint(str(tmp_path / "t.xlsx")).message
    pytest.importorskip("pyarrow")
    (tmp_path / "t.parquet").write_bytes(b"no")
    assert "cannot be read as Parquet" in complaint(str(tmp_path / "t.parquet")).message
    (tmp_path / "empty").mkdir()
    assert "holds no data files" in complaint(str(tmp_path / "empty")).message
    assert "hub:ORG/NAME" in complaint("hub:").hint


def test_missing_extras_answer_with_their_install_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError) as error:
        load_examples("hub:org/name")
    assert "pip install 'shepherd-fedit[hub]'" in error.value.hint
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"no")
    with pytest.raises(UsageError) as error:
        load_examples(str(tmp_path / "t.parquet"))
    assert "pip install 'shepherd-fedit[parquet]'" in error.value.hint


def datasets_that(load_dataset):
    """The package `datasets`, of which only this is used; test_hub.py has the real one."""
    return types.SimpleNamespace(load_dataset=load_dataset, disable_progress_bars=lambda: None)


def test_hub_names_carry_a_configuration_a_split_and_their_licence(monkeypatch):
    asked = []

    class Split(list):
        info = types.SimpleNamespace(license="cc-by-4.0")

    def load_dataset(path, config, split):
        asked.append((path, config, split))
        if path == "org/far":
            raise ConnectionError("no route")
        return Split([ROWS["alpaca"]])

    monkeypatch.setitem(sys.modules, "datasets", datasets_that(load_dataset))
    data = load_examples("hub:org/name:small@test")
    assert (data.licence, data.examples[0].id) == ("cc-by-4.0", "name:1")
    load_examples("hub:org/name")
    assert asked == [("org/name", "small", "test"), ("org/name", None, "train")]
    with pytest.raises(NetworkError, match="no route"):
        load_examples("hub:org/far")


def test_the_digest_is_that_of_the_content_and_not_of_the_order_or_the_folder(tmp_path):
    (tmp_path / "b").mkdir()
    one = load_examples(write(tmp_path / "c.jsonl", [ROWS["dolly"], ROWS["dolly"] | {"response": "x"}]))
    two = load_examples(write(tmp_path / "b" / "c.jsonl", [ROWS["dolly"], ROWS["dolly"] | {"response": "x"}]))
    other = load_examples(write(tmp_path / "c.jsonl", [ROWS["dolly"], ROWS["dolly"] | {"response": "y"}]))
    assert one.digest == two.digest != other.digest
    assert len(one.digest) == 64 and one.licence == "unknown"


def test_a_mapped_column_that_the_held_out_rows_lack_maps_nothing_there(tmp_path):
    pair = {"prompt": ASK, "completion": SAY}
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"train": [pair | {"passage": "rivers"}], "test": [pair | {"context": "lakes"}]}))
    data = load_examples(str(path), columns={"context": "passage"})
    assert data.examples[0].context == "rivers"
    assert data.held_out.examples[0].context == ""  # nothing is inserted into a prompt unless the user maps it
    assert data.held_out.unread == "not read: the column context (1 row)"


def test_categories_are_kept_and_drawn_by_seed_in_the_order_of_the_file(tmp_path):
    rows = [ROWS["dolly"] | {"category": "abc"[i % 3], "instruction": f"Question {i}"} for i in range(60)]
    path = write(tmp_path / "c.jsonl", rows)
    kept = load_examples(path, categories=("a", "c"), rows_per_category=5, seed=1).examples
    assert [e.category for e in kept].count("a") == [e.category for e in kept].count("c") == 5 == len(kept) / 2
    numbers = [int(e.id.split(":")[1]) for e in kept]
    assert numbers == sorted(numbers)
    assert kept == load_examples(path, categories=("c", "a"), rows_per_category=5, seed=1).examples
    assert kept != load_examples(path, categories=("a", "c"), rows_per_category=5, seed=2).examples
    assert "no category 'd'" in complaint(path, categories=("d",)).message


def test_chatterbot_has_topics_as_categories_and_languages_as_sources():
    pytest.importorskip("chatterbot_corpus")
    data = load_examples("builtin:chatterbot", languages=("english", "german"))
    assert {e.source for e in data.examples} == {"english", "german"}
    assert {"ai", "food", "trivia"} <= {e.category for e in data.examples}
    assert len(data.examples) > 1000 and data.licence == "BSD-3-Clause"
    assert len({e.id for e in data.examples}) == len(data.examples)
    assert "Did you mean 'german'?" in complaint("builtin:chatterbot", languages=("germam",)).message


def test_unknown_built_ins_offer_the_nearest_and_a_dataset_can_be_imported(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="Did you mean 'chatterbot'"):
        load_examples("builtin:chaterbot")
    (tmp_path / "my_lab_data.py").write_text(
        "from shepherd.data.builtins import RawRows\n"
        "def clinic():\n    return RawRows('clinic', [('c:1', {'prompt': 'a', 'completion': 'b'})], 'MIT')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    data = load_examples("my_lab_data:clinic")
    assert (data.name, data.licence, len(data)) == ("clinic", "MIT", 1)


def test_asking_for_the_hub_opens_the_network_that_we_closed_and_closes_it_again(monkeypatch):
    from huggingface_hub import constants

    def load_dataset(path, config, split):
        seen.append((os.environ["HF_HUB_OFFLINE"], constants.HF_HUB_OFFLINE))
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", datasets_that(load_dataset))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    seen: list[tuple[str, bool]] = []
    for ours in (True, False):  # closed by us, closed by the user
        monkeypatch.setattr(network, "_ours", ours)
        with pytest.raises(NetworkError):
            load_examples("hub:org/name")
        assert (os.environ["HF_HUB_OFFLINE"], constants.HF_HUB_OFFLINE) == ("1", True)
    assert seen == [("0", False), ("1", True)]


@pytest.mark.parametrize("failure", [PermissionError(13, "Permission denied"), IsADirectoryError(21, "Is a directory")])
def test_a_file_that_cannot_be_opened_is_a_data_error_with_the_reason(tmp_path, monkeypatch, failure):
    path = write(tmp_path / "a.jsonl", [ROWS["alpaca"]])
    monkeypatch.setattr(Path, "read_bytes", lambda self: (_ for _ in ()).throw(failure))
    assert complaint(str(path)).message == f"{path} cannot be read: {failure.strerror}"


def test_a_folder_that_cannot_be_listed_is_a_data_error(tmp_path, monkeypatch):
    def iterdir(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert complaint(str(tmp_path)).message == f"{tmp_path} cannot be read: Permission denied"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"data": ' * 100_000, '{"a": 1}\n{"a": ' + "[" * 100_000])
def test_json_nested_without_end_is_a_data_error(tmp_path, text):
    (tmp_path / "deep.json").write_text(text)
    assert "nested too deeply" in complaint(str(tmp_path / "deep.json")).message


def test_json_with_a_number_of_thousands_of_digits_is_a_data_error(tmp_path):
    (tmp_path / "long.jsonl").write_text('{"instruction": "a", "response": "b", "n": ' + "9" * 5000 + "}")
    assert "long.jsonl" in complaint(str(tmp_path / "long.jsonl")).message


def test_a_long_csv_field_is_read_and_an_endless_one_refused(tmp_path, monkeypatch):
    path, before = tmp_path / "a.csv", csv.field_size_limit()
    path.write_text(f'instruction,response\nq,"{"x" * 200_000}"\n')
    assert len(load_examples(str(path)).examples[0].messages[-1].content) == 200_000
    monkeypatch.setattr(files, "CSV_FIELD_LIMIT", 1000)
    assert "a field is longer than 1,000 characters" in (error := complaint(str(path))).message
    assert "unclosed double quote" in error.hint
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("x.csv", "instruction,response,response\na,b,c\n", "x.csv:1:"),
        ("x.tsv", "instruction\tresponse\tresponse\na\tb\tc\n", "x.tsv:1:"),
        (
            "x.jsonl",
            '{"prompt": "a", "completion": "b"}\n{"instruction": "a", "response": "b", "response": "c"}\n',
            ":2",
        ),
        ("x.json", '[{"instruction": "a", "response": "b", "response": "c"}]', "x.json:"),
    ],
)
def test_two_columns_of_one_name_are_refused_since_only_one_of_them_would_be_learned(tmp_path, name, text, where):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match="2 fields of a row are named 'response'") as caught:
        load_examples(str(tmp_path / name))
    assert where in caught.value.message and "--columns response=" in caught.value.hint


def test_columns_without_a_name_may_repeat_since_none_is_read(tmp_path):
    (tmp_path / "x.csv").write_text("prompt,completion,,\na,b,,\n")
    assert len(load_examples(str(tmp_path / "x.csv"))) == 1


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_utf_16_without_a_byte_order_mark_is_detected_by_its_nul_bytes(tmp_path, encoding):
    (tmp_path / "x.csv").write_bytes("prompt,completion\na,b\n".encode(encoding))
    with pytest.raises(DataError, match=r"x\.csv:1: a NUL byte: this is UTF-16") as caught:
        load_examples(str(tmp_path / "x.csv"))
    assert "UTF-8" in caught.value.hint


def test_line_ends_of_carriage_returns_alone_part_rows_as_others_do(tmp_path):
    texts = {
        "x.jsonl": '{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n',
        "x.csv": "prompt,completion\na;1;2,b\nc,d\n",  # more semicolons than commas, and one comma in the header
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode())
        expected = load_examples(str(tmp_path / name)).examples
        (tmp_path / name).write_bytes(text.replace("\n", "\r").encode())
        assert load_examples(str(tmp_path / name)).examples == expected and len(expected) == 2


def test_white_space_around_a_column_name_and_bars_between_columns_do_not_hide_the_columns(tmp_path):
    (tmp_path / "x.csv").write_text(" prompt | completion \na, or b|c; d\n")
    example = load_examples(str(tmp_path / "x.csv")).examples[0]
    assert [m.content for m in example.messages] == ["a, or b", "c; d"]


def test_columns_that_differ_in_case_only_are_answered_with_the_flag_to_copy(tmp_path):
    (tmp_path / "x.csv").write_text("Id,Instruction,RESPONSE\n1,a,b\n")
    with pytest.raises(DataError, match="match no known format") as caught:
        load_examples(str(tmp_path / "x.csv"))
    assert "--columns instruction=Instruction,response=RESPONSE" in caught.value.hint
