"""The audit finds what is wrong with divided data, names it and counts it."""

from __future__ import annotations

import json

import pytest

import tiny_tokenizers as tiny
from shepherd.data.audit import KINDS, audit
from shepherd.data.partition import divide, hold_out
from shepherd.data.prompts import build_template
from shepherd.data.sources import load_examples
from shepherd.data.tokenize import tokenize
from shepherd.types import Example, Message, Partition


def example(row_id, question, answer, source="", context=""):
    return Example(row_id, (Message("user", question), Message("assistant", answer)), source=source, context=context)


TRAIN = [
    example("a:1", "Name a river", "Danube", "north"),
    example("a:2", "name  A river", "DANUBE", "north"),  # twice in the north
    example("b:1", "Name a river", "Danube", "south"),  # and once in the south
    example("b:2", "Name a river", "Rhine", "south"),  # with another answer
    example("b:3", "Name a hill", "Rigi", "south"),
    example("b:4", "Name a river", "Danube", "south", context="of Asia"),  # another question
    example("b:5", "Name a town", "Bern", "south"),
    example("b:6", "Name a town", "Bern", "south"),  # twice in the south, and nowhere else
]
HELD_OUT = [
    example("c:1", "NAME A HILL", "Uetliberg"),
    example("c:2", "Name a lake", "Bodensee"),
    example("c:3", "Name a lake", "Bodensee"),  # twice, but never trained on
]


def test_duplicates_overlaps_and_conflicts_are_found_with_the_ids_that_share_them():
    found = audit(divide(TRAIN, "files", {}, 0, 0), TRAIN, HELD_OUT)
    assert {f.kind: (f.count, f.groups) for f in found.findings} == {
        "duplicates within a client": (4, (("a:1", "a:2"), ("b:5", "b:6"))),
        "duplicates across clients": (3, (("a:1", "a:2", "b:1"),)),
        "train and held-out overlap": (1, (("b:3", "c:1"),)),
        "conflicting answers": (6, (("a:1", "a:2", "b:1", "b:2"), ("b:3", "c:1"))),
    }
    assert found["over-long rows"].count == 0 and found.rows == 11
    text = found.describe()
    assert "3 duplicates across clients" in text and "a:1 = a:2 = b:1" in text
    with pytest.raises(KeyError):
        found["no such kind"]


def test_clean_data_has_no_findings():
    rows = [example(f"a:{i}", f"question {i}", "yes") for i in range(4)]
    found = audit(Partition({"a": ("a:0", "a:1"), "b": ("a:2", "a:3")}, ""), rows, HELD_OUT)
    assert found.findings == () and found.describe() == "7 rows, nothing found"


def test_cut_rows_and_rows_refused_while_reading_and_tokenising_are_counted(tmp_path):
    rows = [{"prompt": "Name a river", "completion": "Danube " * n} for n in (1, 0, 0, 0, 0, 60)]
    rows.append({"prompt": 4, "completion": "x"})
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load_examples(str(path))
    tokenizer = tiny.chatml()
    tokens = tokenize(data.examples, tokenizer, build_template("chat", tokenizer), 40)
    partition = divide(data.examples, "iid", {}, 1, 0)
    found = audit(partition, data.examples, (), tokens, data)
    assert found["empty answers"].count == 4 and found["empty answers"].ids == ("c:2", "c:3", "c:4", "c:5")
    assert found["other refusals"].ids == ("c:7",)
    assert found["over-long rows"].ids == ("c:6",)
    assert [f.kind for f in found.findings] == [k for k in KINDS if found[k].count]


def audited(*answers):
    rows = [example(f"a:{i}", f"question {i}", answer) for i, answer in enumerate(answers)]
    return audit(Partition({"a": tuple(e.id for e in rows)}, ""), rows, ())


def test_answers_that_are_a_word_for_nothing_are_found_and_those_that_say_it_in_a_sentence_are_not():
    found = audited("NaN", "none", " N/A.", '"null"', "<NA>", "None of them.", "Nan Goldin", "0", "No")
    assert found["answers without content"].ids == ("a:0", "a:1", "a:2", "a:3", "a:4")


def test_a_masked_answer_without_content_is_not_a_finding_since_it_is_not_a_target():
    turns = (Message("user", "a"), Message("assistant", "N/A", learned=False), *example("", "b", "c").messages)
    assert audit(Partition({"a": ("x",)}, ""), [Example("x", turns)], ()).findings == ()


def test_text_that_was_decoded_wrongly_is_found_and_the_same_letters_used_rightly_are_not():
    wrong = [text.encode().decode("cp1252", "replace") for text in ("café", "it’s", "«Â»", "😀", "a°")]
    found = audited(*wrong, "half \ufffd", "SÃO PAULO", "Ângela", "âge", "Ð", "“It’s” – café 😀")
    assert found["mis-decoded text"].ids == tuple(f"a:{i}" for i in range(6))


def test_texts_that_carry_another_chat_template_are_found():
    found = audited(
        "<|im_start|>assistant\nHi", "[INST] Hi [/INST]", "<start_of_turn>user", "a\n### Response:\nb", "<|eot_id|>",
        "[INSTALL] it", "a ### Response: b", "x <| y",
    )  # fmt: skip
    assert found["another chat template"].ids == tuple(f"a:{i}" for i in range(5))


def test_a_line_shows_five_ids_of_a_group_however_large_it_is_and_the_summary_is_one_line():
    rows = [example(f"row:{i}", "Classify.", ("pos", "neg")[i % 2]) for i in range(3000)]
    found = audit(Partition({"a": tuple(e.id for e in rows)}, ""), rows, ())
    assert max(map(len, found.describe().splitlines())) < 300
    assert "row:0 = row:2 = row:4 = row:6 = row:8 = …" in found.describe()
    assert found.summary() == "3,000 duplicates within a client, 3,000 conflicting answers"
    assert found.summary(without=("conflicting answers",)) == "3,000 duplicates within a client"
    assert len(found["conflicting answers"].ids) == 3000  # all of them are kept


def test_rows_that_differ_in_reasoning_are_no_duplicates_and_plain_texts_ask_nothing():
    thought = [
        Example(f"a:{i}", (Message("user", "q"), Message("assistant", "a", reasoning=r))) for i, r in enumerate("xy")
    ]
    assert audit(Partition({"a": ("a:0", "a:1")}, ""), thought, ())["duplicates within a client"].count == 0
    texts = [Example(f"t:{i}", (Message("text", f"text {i}"),)) for i in range(3)]
    assert audit(Partition({"a": ("t:0", "t:1")}, ""), texts[:2], texts[2:]).findings == ()
    _, held_out = hold_out([*texts, Example("t:3", (Message("text", "Text  1"),))], 2, 0)
    assert len(held_out) == 2 and (("t:1" in {e.id for e in held_out}) == ("t:3" in {e.id for e in held_out}))
