"""Files of answers: ours as they were written, FastChat's two layouts, damage with its line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from shepherd.errors import DataError, EvaluationError
from shepherd.evaluation.answer_files import AnswerLine, hash_of, read_answers, read_lines

LINE = AnswerLine(
    question_id=81,
    answers=("Waves.\nAnd sand.", "All waves.\u2028"),
    turns=("Describe Hawaii.", "Again, with A."),
    question_hash=hash_of(["Describe Hawaii.", "Again, with A."]),
    category="writing",
    tokens=(5, 3),
    cut=(False, True),
    run="demo",
    arm="federated",
    adapter_digest="a1",
    base="tiny",
    base_digest="b2",
    dtype="float32",
    template="chat",
    decoding={"max_new_tokens": 64, "temperature": 0.0},
    key="k1",
)


def written(folder: Path, *lines: AnswerLine | dict | str, end: str = "\n") -> Path:
    texts = [line.to_json() if isinstance(line, AnswerLine) else line if isinstance(line, str) else json.dumps(line)
             for line in lines]  # fmt: skip
    path = folder / "answers.jsonl"
    path.write_text("\n".join(texts) + end, encoding="utf-8")
    return path


def test_a_line_is_read_as_it_was_written(tmp_path):
    found = read_answers(written(tmp_path, LINE))
    assert found.lines == {81: LINE} and found.name == "demo:federated"


def test_the_last_line_of_a_question_counts_and_a_torn_one_does_not(tmp_path):
    later = replace(LINE, answers=("New.", "Newer."), key="k2", decoding={"max_new_tokens": 8})
    path = written(tmp_path, LINE, later, LINE.to_json()[:60], end="")
    assert read_answers(path).lines == {81: later}
    assert read_lines(path) == [LINE, later]


def test_answers_of_two_settings_are_not_taken_for_one_system(tmp_path):
    other = replace(LINE, question_id=82, decoding={"max_new_tokens": 8}, key="k2")
    with pytest.raises(EvaluationError, match=r"81 and 82 differ in decoding: .*64.*: 8"):
        read_answers(written(tmp_path, LINE, other))


def test_both_layouts_of_fastchat_are_read(tmp_path):
    vicuna = {"answer_id": "x1", "model_id": "bard", "question_id": 1, "text": "Yes."}
    bench = {"answer_id": "x2", "model_id": "bard", "question_id": 2, "tstamp": 0.5,
             "choices": [{"index": 0, "turns": ["One.", "Two."]}]}  # fmt: skip
    found = read_answers(written(tmp_path, vicuna, bench))
    assert found.name == "bard"
    assert {name: line.answers for name, line in found.lines.items()} == {1: ("Yes.",), 2: ("One.", "Two.")}
    assert found.lines[1].cut == () and found.lines[1].question_hash == ""


GOOD = {"model_id": "bard", "question_id": 1, "text": "Yes."}


@pytest.mark.parametrize(
    "lines, message",
    [
        (["{"], ":1:2: malformed JSON"),
        ([GOOD, '{"question_id": 2, "te'], ":2:.* malformed JSON"),
        (["[1]"], "a row is an object|this is int"),
        ([""], "has no answers"),
        ([{**GOOD, "question_id": None}], ":1: no question_id"),
        ([{**GOOD, "question_id": True}], "question_id is True, not a number or a name"),
        ([{**GOOD, "text": None}], ":1: text is not text"),
        ([{**GOOD, "model_id": ""}], ":1: an answer without model_id"),
        ([{"question_id": 1, "model_id": "m", "choices": [{"turns": [1]}]}], r"choices\[0\].turns is not text"),
        (
            [{"question_id": 1, "model_id": "m", "choices": [{"turns": ["a"]}, {"turns": ["b"]}]}],
            "2 answers to 1, and nob",
        ),
        ([GOOD, {**GOOD, "text": "No."}], "question 1 is answered twice, with different texts"),
        ([{**json.loads(LINE.to_json()), "answers": "one text"}], "answers is not text"),
        ([{**json.loads(LINE.to_json()), "tokens": 5}], "not a line of shepherd answer"),
        ([{**json.loads(LINE.to_json()), "arm": 5}], "arm is not a text"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, lines, message):
    with pytest.raises(DataError, match=message):
        read_answers(written(tmp_path, *lines, end=""))


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(DataError, match=r"file not found: .*nothing\.jsonl"):
        read_answers(tmp_path / "nothing.jsonl")


def test_the_hash_of_a_question_depends_on_turns_and_on_what_stands_before():
    before = [{"role": "user", "content": "Hello"}]
    hashes = {hash_of(["a"]), hash_of(["a", "b"]), hash_of(["ab"]), hash_of(["a"], before), hash_of(["b"])}
    assert len(hashes) == 5 and hash_of(["a"]) == hash_of(("a",), ())
