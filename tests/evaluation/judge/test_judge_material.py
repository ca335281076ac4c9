"""What a judge sees beside the answers: the conversation before a question, and reference answers on request."""

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
from shepherd.evaluation.judge.replay import recordings_of
from shepherd.evaluation.question_rows import Question
from shepherd.serving.answering import LocalModel
from shepherd.types import Message

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


def test_reference_answers_are_shown_on_request_only_and_by_another_prompt():
    hidden, seen = calls(reference=("The Alps",))[0], calls(SEEING, reference=("The Alps",))[0]
    assert hidden.call.key == calls()[0].call.key and "REFERENCE" not in blocks(hidden)
    assert blocks(seen)["REFERENCE"] == "The Alps" and RIGHT in seen.messages[1]["content"]
    assert [*blocks(seen)] == ["QUESTION", "REFERENCE", "ANSWER-A", "ANSWER-B"]
    assert (seen.call.prompt, hidden.call.prompt) == ("fedit-2-reference", "fedit-2")
    assert seen.call.prompt_hash != hidden.call.prompt_hash
    unknown = calls(SEEING)[0]  # a question without one, in a set where others have one
    assert unknown.messages[1]["content"].count(RIGHT) == 0 and unknown.call.key != hidden.call.key


def test_the_reference_answer_of_each_turn_is_named_by_its_turn():
    item = Item(1, ("Why?", "How?"), Shown(("a", "b")), Shown(("c", "d")), reference=("", "So."))
    call = planned([Pair("base", "federated", (item,))], SEEING, b"secret")[0]
    assert [name for name in blocks(call) if name.startswith("REF")] == ["REFERENCE-2"]


def test_the_reference_answers_and_the_limit_of_an_answer_are_recorded(tmp_path):
    one, other = (calls(SEEING, reference=(text,))[0].call for text in ("The Alps", "Tirol"))
    assert one.reference and one.reference != other.reference and one.answer_limit == JUDGE.answer_limit
    assert calls(SEEING)[0].call.reference == calls(reference=("The Alps",))[0].call.reference == ""
    short = calls(dataclasses.replace(SEEING, answer_limit=9), reference=("The Alps",))[0].call
    answered = [dataclasses.replace(call, outcome="answered", text="SCORES: 1 2") for call in (one, other, short)]
    kept = recordings_of(tmp_path / "calls.jsonl", answered)
    assert [(len(each.judgements), each.superseded) for each in kept] == [(1, 1), (1, 0)]


def line(**given) -> dict:
    return {"question_id": 1, "turns": ["And?"], "answers": ["Yes."], "question_hash": "00", "arm": "base", **given}


def test_files_of_answers_bring_the_conversation_and_the_reference_answers(tmp_path):
    for name in ("base", "federated"):
        row = line(arm=name, before=list(BEFORE), reference=["Half \ud83d."])
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    files = [read_answers(tmp_path / f"{name}.jsonl") for name in ("base", "federated")]
    (item,) = pair_of(*files, ("base", "federated"), 0).items
    assert item.before == BEFORE and item.reference == ("Half ?.",)


def test_reference_answers_that_differ_between_the_two_arms_are_refused(tmp_path):
    def files(*references):
        for name, reference in zip("ab", references, strict=True):
            (tmp_path / f"{name}.jsonl").write_text(json.dumps(line(arm=name, reference=reference)) + "\n", "utf-8")
        return [read_answers(tmp_path / f"{name}.jsonl") for name in "ab"]

    with pytest.raises(DataError, match="the reference answers to question 1 differ"):
        pair_of(*files(["X"], ["Y"]), ("a", "b"), 0)
    for given in (([], ["X"]), (["X"], []), (["X"], ["X"])):
        assert pair_of(*files(*given), ("a", "b"), 0).items[0].reference == ("X",)


def test_tools_and_reasoning_make_another_question_and_the_judge_sees_the_tools():
    plain = Question(1, ("Call it.",))
    tools = [dataclasses.replace(plain, tools=text) for text in ('[{"a": 1}]', '[{"b": 1}]')]
    thought = dataclasses.replace(plain, before=(Message("assistant", "Yes.", reasoning="Hm."),))
    silent = dataclasses.replace(plain, before=(Message("assistant", "Yes."),))
    assert len({one.hash for one in (plain, *tools, thought, silent)}) == 5
    assert blocks(calls(before=tuple(tools[0].preceding))[0])["EARLIER-1-TOOLS"] == '[{"a": 1}]'


def test_two_questions_of_one_text_have_their_own_prompts(monkeypatch):
    model = LocalModel(*[None] * 4)
    monkeypatch.setattr(LocalModel, "prompt", lambda self, question, answers=(): [len(question.context)])
    one, other = Question(1, ("Sum:\n\nabc",)), Question(2, ("Sum:",), context="abc")
    assert one.hash == other.hash and (model.first(one), model.first(other)) == ([0], [3])


@pytest.mark.parametrize("before", [["Hello"], [{"role": "user"}], [{"role": "x>>>", "content": "a"}],
                                    [{"role": "user", "content": 1}]])  # fmt: skip
def test_a_damaged_conversation_in_a_file_of_answers_is_refused(tmp_path, before):
    (tmp_path / "a.jsonl").write_text(json.dumps(line(before=before)) + "\n", "utf-8")
    with pytest.raises(DataError, match=r"a\.jsonl:1: before is not a list of turns"):
        read_answers(tmp_path / "a.jsonl")
