"""Question sets: every layout that is read, names and ids, and what is refused with its rows."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from console import Shell
from shepherd.data.builtins import RawRows
from shepherd.errors import DataError, UsageError
from shepherd.evaluation import questions
from shepherd.evaluation.question_rows import Question
from shepherd.evaluation.questions import BENCHES, load_questions, read_questions

DATA = Path(os.environ.get("SHEPHERD_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data")


def written(folder: Path, rows: list, name: str = "mine.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(path: Path) -> dict:
    return {question.id: question.turns for question in read_questions(path).questions}


def test_fastchat_s_two_layouts_and_our_own_are_read(tmp_path):
    rows = [
        {"question_id": 1, "text": "How?", "category": "generic"},
        {"question_id": 81, "category": "math", "turns": ["Why?", "And then?"], "reference": ["7", "8"]},
        {"id": "own", "instruction": "Sum it up.", "input": "A long text.", "category": None},
        {"prompt_id": 5, "prompt": ["Who?", "Where?"]},
        {"id": "chat", "turns": [{"role": "user", "content": "What?"}]},
        {"id": "both", "turns": ["Sum it up.", "Shorter."], "context": "A long text."},
    ]
    assert read_questions(written(tmp_path, rows)).questions == (
        Question(1, ("How?",), "generic"),
        Question(81, ("Why?", "And then?"), "math", ("7", "8")),
        Question("own", ("Sum it up.",), context="A long text."),
        Question(5, ("Who?", "Where?")),
        Question("chat", ("What?",)),
        Question("both", ("Sum it up.\n\nA long text.", "Shorter.")),
    )


def test_plain_texts_get_an_id_from_their_content(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps(["Why?", "How?", "Why?"]), encoding="utf-8")
    (tmp_path / "lines.txt").write_text("How?\n\n  Why?\n", encoding="utf-8")
    found, other = texts(tmp_path / "list.json"), texts(tmp_path / "lines.txt")
    assert found == other and sorted(found.values()) == [("How?",), ("Why?",)]


def test_the_same_questions_have_one_name_wherever_they_lie_and_others_another(tmp_path):
    rows = [{"question_id": 1, "text": "Why?"}, {"question_id": 2, "text": "How?"}]
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    first = read_questions(written(tmp_path / "a", rows, "mine.jsonl"))
    assert first.name == read_questions(written(tmp_path / "b", rows[::-1], "mine.jsonl")).name
    assert first.name != read_questions(written(tmp_path / "b", rows[:1], "mine.jsonl")).name
    assert first.name.startswith("mine-") and first.licence == "not stated"
    assert read_questions(written(tmp_path / "a", rows, "question.jsonl")).name.startswith("a-")


def test_the_hash_is_of_what_is_shown():
    one, other = Question(1, ("Sum it up.",), context="Text."), Question(2, ("Sum it up.\n\nText.",))
    assert one.hash == other.hash and one.shown == other.turns


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"text": "Why?"}, {"question_id": 1, "text": "a"}, {"text": "How?"}], "2 questions without an id: row 1, 3$"),
        ([{"question_id": "", "text": "Why?"}], "1 question without an id: row 1$"),
        (
            [{"question_id": 1, "text": "a"}, {"question_id": 1, "text": "b"}],
            "rows 1 and 2 have the id 1 and different",
        ),
        ([{"question_id": 1.5, "text": "a"}], ":1: question_id is 1.5"),
        ([{"question_id": True, "text": "a"}], ":1: question_id is True"),
        ([{"question_id": 1, "answer": "a"}], r":1: no question among its fields \(question_id, answer\)"),
        ([{"question_id": 1, "text": " "}], ":1: text is ' '"),
        ([{"question_id": 1, "turns": ["a", ""]}], r":1: turns is \['a', ''\]"),
        ([{"question_id": 1, "turns": ["a", 2]}], ":1: turns is"),
        ([{"question_id": " ", "text": "Why?"}], "1 question without an id: row 1$"),
        ([], "has no rows"),
    ],
)
def test_rows_without_a_question_are_named(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        read_questions(written(tmp_path, rows))


def test_a_text_of_another_encoding_is_refused_and_only_a_line_break_ends_a_question(tmp_path):
    (tmp_path / "old.txt").write_bytes("Why café?\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"old.txt: not a text in UTF-8 \(byte 7\)"):
        read_questions(tmp_path / "old.txt")
    (tmp_path / "new.txt").write_bytes("\ufeffWhy\u2028so?\r\nHow?\r\n".encode())
    assert list(texts(tmp_path / "new.txt").values()) == [("Why\u2028so?",), ("How?",)]


def test_an_id_as_a_number_and_as_a_text_is_one_id(tmp_path):
    rows = [{"question_id": 1, "text": "Why?"}, {"question_id": "1", "text": "How?"}]
    with pytest.raises(DataError, match="rows 1 and 2 have the id '1' and different texts"):
        read_questions(written(tmp_path, rows))


def test_an_id_with_two_categories_is_refused(tmp_path):
    rows = [{"id": 1, "text": "Why?", "category": "maths"}, {"id": 1, "text": "Why?", "category": "law"}]
    with pytest.raises(DataError, match="rows 1 and 2 have the id 1 and different categories"):
        read_questions(written(tmp_path, rows))


def test_cells_of_a_table_hold_lists(tmp_path):
    (tmp_path / "mine.csv").write_text('id,turns,reference\n1,"[""Why?"", ""How?""]","[""r1"", ""r2""]"\n')
    (question,) = read_questions(tmp_path / "mine.csv").questions
    assert question.turns == ("Why?", "How?") and question.reference == ("r1", "r2")


ROWS = [{"id": 1, "text": "Why?"}]


def test_keys_beside_the_rows_are_named(tmp_path, capsys, monkeypatch):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"system": "Always rhyme", "data": ROWS}))
    assert read_questions(path).notes == ("ignored keys of mine.json: system",)
    outcome = Shell(capsys, monkeypatch)("answer", "nobody", "--questions", path)
    assert "1 question of" in outcome.err and "ignored keys of mine.json: system" in outcome.err


def test_rows_of_one_named_list_are_read_and_several_are_refused_by_name(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"mine": ROWS}))
    assert read_questions(path).questions == (Question(1, ("Why?",)),)
    for names in (("data", "test"), ("mine", "yours")):
        path.write_text(json.dumps(dict.fromkeys(names, ROWS)))
        with pytest.raises(DataError, match=f"mine.json holds 2 lists of rows: {names[0]}, {names[1]}"):
            read_questions(path)


def test_half_a_character_is_refused_with_its_row(tmp_path):
    with pytest.raises(DataError, match=r"mine\.jsonl:1: 'text' holds half a character"):
        read_questions(written(tmp_path, [{"id": 1, "text": "\ud800x"}]))
    (tmp_path / "list.json").write_text(json.dumps(["Why?", "\ud800x"]))
    with pytest.raises(DataError, match=r"list\.json:2: the question holds half a character"):
        read_questions(tmp_path / "list.json")


def test_a_question_that_stands_twice_with_one_text_counts_once(tmp_path):
    row = {"question_id": 1, "text": "Why?"}
    assert len(read_questions(written(tmp_path, [row, row])).questions) == 1


def test_a_bench_that_is_not_here_names_the_file_that_is_wanted_and_its_place(tmp_path, monkeypatch):
    monkeypatch.setenv("SHEPHERD_CACHE", str(tmp_path))
    for name in BENCHES:
        with pytest.raises(DataError) as error:
            load_questions(name)
        assert str(tmp_path / "questions" / f"{name}.jsonl") in error.value.message
        assert BENCHES[name].place in error.value.hint
    (tmp_path / "questions").mkdir()
    written(tmp_path / "questions", [{"question_id": 1, "text": "Why?"}], "vicuna.jsonl")
    with pytest.raises(DataError, match="does not hold Vicuna's 80 questions"):
        load_questions("vicuna")


def test_an_unknown_name_and_a_missing_file_are_distinguished(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"unknown question set: 'vicunna'\. Did you mean 'vicuna'\?"):
        load_questions("vicunna")
    with pytest.raises(DataError, match=r"data not found: questions/none\.jsonl"):
        load_questions("questions/none.jsonl")


def test_questions_of_the_hub_bring_their_licence(monkeypatch):
    rows = RawRows("hub:org/mt", [("mt:1", {"question_id": 1, "turns": ["Why?", "How?"]})], "apache-2.0")
    monkeypatch.setattr(questions, "hub", lambda name, note_splits: rows if name == "org/mt" else None)
    found = load_questions("hub:org/mt")
    assert found.questions == (Question(1, ("Why?", "How?")),) and found.licence == "apache-2.0"
    assert found.name.startswith("mt-")


@pytest.mark.skipif(not DATA.is_dir(), reason="the question files are beside the project")
def test_the_published_files_are_recognised_in_all_their_layouts(tmp_path, monkeypatch):
    places = {"vicuna": ("vicuna_bench", "judge/fastchat"), "mt-bench": ("mt_bench",)}
    monkeypatch.setenv("SHEPHERD_CACHE", str(tmp_path))
    (tmp_path / "questions").mkdir()
    for name, folders in places.items():
        found = [read_questions(DATA / folder / "question.jsonl") for folder in folders]
        assert {one.name for one in found} == {name} and {len(one.questions) for one in found} == {80}
        (tmp_path / "questions" / f"{name}.jsonl").write_bytes((DATA / folders[0] / "question.jsonl").read_bytes())
        assert load_questions(name).licence == "Apache-2.0 (FastChat)"
