"""What a judge sees beside the answers: the conversation before a question, and right answers on request."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from shepherd.errors import DataError
from shepherd.evaluation.answer_files import read_answers
from shepherd.evaluation.judge.calls import protocols
from shepherd.evaluation.judge.calls.client import Decoding
from shepherd.evaluation.judge.calls.material import pair_of
from shepherd.evaluation.judge.calls.plan import Item, Judge, Pair, Planned, Shown, planned
from shepherd.evaluation.judge.calls.prompts import EARLIER, RIGHT

FEDIT = protocols.PROTOCOLS["fedit"]
JUDGE = Judge("http://127.0.0.1:1/v1", "judge", FEDIT, Decoding(seed=0))
SEEING = dataclasses.replace(JUDGE, protocol=dataclasses.replace(FEDIT, prompt=FEDIT.prompt.with_references))
BEFORE = (
    {"role": "system", "content": "Answer in <<<one>>> word."},
    {"role": "user", "content": "Which river?"},
    {"role": "assistant", "content": "", "extra": '{"tool_calls": []}'},
)


def calls(judge: Judge = JUDGE, **given) -> list[Planned]:
    item = Item(1, ("And its source?",), Shown(("The Alps.",)), Shown(("Alps.",)), **given)
    return planned([Pair("base", "federated", (item,))], judge, b"secret")


def blocks(call: Planned) -> dict[str, str]:
    text = call.messages[1]["content"]
    return dict(re.findall(r"<<<[0-9a-f]{16}:([A-Z0-9-]+)>>>\n(.*?)\n<<<[0-9a-f]{16}:END>>>", text, re.DOTALL))


def test_the_conversation_before_a_question_stands_before_it():
    plain, after = calls()[0], calls(before=BEFORE)[0]
    assert list(blocks(after).items())[:4] == [
        ("EARLIER-1-SYSTEM", "Answer in ‹‹‹one>>> word."),
        ("EARLIER-2-USER", "Which river?"),
        ("EARLIER-3-ASSISTANT", '{"tool_calls": []}'),
        ("QUESTION", "And its source?"),
    ]
    assert EARLIER in after.messages[1]["content"] and EARLIER not in plain.messages[1]["content"]
    assert plain.call.key != after.call.key and plain.call.prompt_hash == after.call.prompt_hash


def test_right_answers_are_shown_on_request_only_and_by_another_prompt():
    hidden, seen = calls(reference=("The Alps",))[0], calls(SEEING, reference=("The Alps",))[0]
    assert hidden.call.key == calls()[0].call.key and "REFERENCE" not in blocks(hidden)
    assert blocks(seen)["REFERENCE"] == "The Alps" and RIGHT in seen.messages[1]["content"]
    assert [*blocks(seen)] == ["QUESTION", "REFERENCE", "ANSWER-A", "ANSWER-B"]
    assert (seen.call.prompt, hidden.call.prompt) == ("fedit-2-reference", "fedit-2")
    assert seen.call.prompt_hash != hidden.call.prompt_hash
    unknown = calls(SEEING)[0]  # a question without one, in a set where others have one
    assert unknown.messages[1]["content"].count(RIGHT) == 0 and unknown.call.key != hidden.call.key


def test_the_right_answer_of_each_turn_is_named_by_its_turn():
    item = Item(1, ("Why?", "How?"), Shown(("a", "b")), Shown(("c", "d")), reference=("", "So."))
    call = planned([Pair("base", "federated", (item,))], SEEING, b"secret")[0]
    assert [name for name in blocks(call) if name.startswith("REF")] == ["REFERENCE-2"]


def line(**given) -> dict:
    return {"question_id": 1, "turns": ["And?"], "answers": ["Yes."], "question_hash": "00", "arm": "base", **given}


def test_files_of_answers_bring_the_conversation_and_the_right_answers(tmp_path):
    for name in ("base", "federated"):
        row = line(arm=name, before=list(BEFORE), reference=["Half \ud83d."])
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    files = [read_answers(tmp_path / f"{name}.jsonl") for name in ("base", "federated")]
    (item,) = pair_of(*files, ("base", "federated"), 0).items
    assert item.before == BEFORE and item.reference == ("Half ?.",)


@pytest.mark.parametrize("before", [["Hello"], [{"role": "user"}], [{"role": "x>>>", "content": "a"}],
                                    [{"role": "user", "content": 1}]])  # fmt: skip
def test_a_damaged_conversation_in_a_file_of_answers_is_refused(tmp_path, before):
    (tmp_path / "a.jsonl").write_text(json.dumps(line(before=before)) + "\n", "utf-8")
    with pytest.raises(DataError, match=r"a\.jsonl:1: before is not a list of turns"):
        read_answers(tmp_path / "a.jsonl")
