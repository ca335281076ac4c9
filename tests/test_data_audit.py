"""The audit finds what is wrong with divided data, names it and counts it."""

from __future__ import annotations

import json

import pytest

import tiny_tokenizers as tiny
from shepherd.data.audit import KINDS, audit
from shepherd.data.partition import divide
from shepherd.data.prompts import build_template
from shepherd.data.sources import load_examples
from shepherd.data.tokenize import tokenize
from shepherd.types import Example, Message, Partition


def example(id, asked, answer, source="", context=""):
    return Example(id, (Message("user", asked), Message("assistant", answer)), source=source, context=context)


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
    assert found["empty answers"].count == 4 and found["empty answers"].ids == ("c:2", "c:3", "c:4")
    assert found["other refusals"].ids == ("c:7",)
    assert found["over-long rows"].ids == ("c:6",)
    assert [f.kind for f in found.findings] == [k for k in KINDS if found[k].count]
