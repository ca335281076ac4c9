"""Agreement of a judge with people and with a second judge: shares, Cohen's κ, whose verdict belongs to which."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from shepherd.errors import DataError, ResourceError
from shepherd.evaluation.answer_files import hash_of
from shepherd.evaluation.judge.agreement import agreement, between_judges, each_with_people, with_people
from shepherd.evaluation.judge.calls.record import Call
from shepherd.evaluation.judge.labels import Label, append_vote, read_labels
from shepherd.evaluation.judge.replay import Recording, recordings_of

SCORES = {"a": "7 5", "b": "4 8", "tie": "6 6"}


def judged(verdicts: str, model: str = "judge") -> list[Recording]:
    """The recording of a judge whose verdict on question i is `verdicts[i]`, t for a tie."""
    calls = [
        Call(
            key=f"{model}{i}", endpoint="local", model=model, protocol="fedit", prompt="p", prompt_hash="0", question=i,
            a="base", b="federated", order="ab", a_answer=f"a{i}", b_answer=f"b{i}",
            text=f"SCORES: {SCORES.get(verdict, SCORES['tie'])}",
        )
        for i, verdict in enumerate(verdicts)
    ]  # fmt: skip
    return recordings_of(Path("calls.jsonl"), calls)


def test_kappa_is_the_agreement_beyond_chance():
    found = agreement([*"aabb", "tie"], [*"abbb", "tie"], range(5))
    # Same on 4 of 5. By chance 2/5 · 1/5 (a) + 2/5 · 3/5 (b) + 1/5 · 1/5 (tie) = 9/25: (0.8 − 0.36) / 0.64
    assert found.share.value == 0.8 and found.kappa.value == pytest.approx(0.44 / 0.64)
    assert (found.decided, found.decided_share, found.items) == (4, 0.75, 5)
    # Without each item: 3/4 four times and 4/4 once; (n − 1) / n Σ (x − mean)² = 0.8 (4 · 0.05² + 0.2²) = 0.04
    assert found.share.stderr == pytest.approx(0.2) and found.share.degrees == pytest.approx(4)


def test_a_jackknife_takes_the_items_of_a_question_together():
    one, other = list("aabb"), list("abbb")
    twice = agreement(one * 2, other * 2, [*range(4), *range(4)])
    assert twice.share.stderr == pytest.approx(agreement(one, other, range(4)).share.stderr)
    assert agreement(one, other, [0, 0, 0, 0]).share.stderr is None


def test_one_class_throughout_has_no_kappa_and_full_agreement_no_interval():
    found = agreement(["a", "a"], ["a", "a"], [0, 1])
    assert (found.share.value, found.share.interval(), found.kappa) == (1, None, None)
    assert agreement([], [], []) is None
    with pytest.raises(ValueError, match="different items"):
        agreement(["a"], ["a"], [0, 1])


def test_a_vote_belongs_to_the_judgement_of_its_two_answers_whichever_is_called_a():
    votes = [
        Label("Why?", "x", "y", "b", ("a0", "b0")),
        Label("Why?", "x", "y", "a", ("b1", "a1")),  # exchanged: b's answer is better, as the judge says
        Label("Why?", "x", "y", "b", ("a2", "b1")),  # not a pair that was judged
    ]
    found = with_people(judged("bba"), votes, "votes.jsonl")
    assert (found["items"], found["share"], found["unmatched"], found["labels"]) == (2, 1, 1, 3)
    assert (found["with"], found["source"]) == ("people", "votes.jsonl")


def test_a_vote_on_another_question_with_the_same_answers_is_unmatched():
    recordings = judged("bb")
    hashes = [hash_of(["Is it?"]), hash_of(["Is it not?"])]
    asked = [dataclasses.replace(one, answers=("yes", "no"), call=dataclasses.replace(one.call, question_hash=hashed))
             for one, hashed in zip(recordings[0].judgements, hashes, strict=True)]  # fmt: skip
    recordings = [dataclasses.replace(recordings[0], judgements=tuple(asked))]
    votes = [Label("?", "x", "y", "b", ("yes", "no"), hashed) for hashed in (hashes[1], hash_of(["Was it?"]))]
    found = with_people(recordings, votes)
    assert (found["items"], found["unmatched"]) == (1, 1)
    assert with_people(recordings, [Label("?", "x", "y", "b", ("yes", "no"))])["items"] == 2, "without its question"


def test_a_label_without_hashes_belongs_to_its_question_and_its_names():
    votes = [Label("0", "federated", "base", "a"), Label(1, "base", "federated", "tie"), Label(2, "base", "other", "a")]
    found = with_people(judged("bba"), votes)
    assert (found["items"], found["share"], found["unmatched"]) == (2, 0.5, 1)
    assert with_people(judged("b"), [Label(9, "base", "federated", "a")])["items"] == 0
    assert with_people(judged("b"), []) is None


def test_two_judges_of_the_same_answers_are_compared_and_others_are_not():
    one, two = judged("aabbt", "one")[0], judged("abbbt", "two")[0]
    (found,) = between_judges([one, two])
    assert (found["items"], found["share"], found["judges"]) == (5, 0.8, [["one"], ["two"]])
    assert found["with"] == "judge" and between_judges([one, one])[0]["with"] == "same judge"
    others = dataclasses.replace(
        two, judgements=tuple(dataclasses.replace(j, answers=("x", "y")) for j in two.judgements)
    )
    assert between_judges([one, others]) == []


def test_people_agree_with_each_judge_apart():
    both = [judged("aabb", "one")[0], judged("abbb", "two")[0]]
    labels = [Label(j.question, "base", "federated", "b") for j in both[0].judgements[:4]]
    found = each_with_people(both, labels, "votes.jsonl")
    assert [(each["items"], each["share"]) for each in found] == [(4, 0.5), (4, 0.75)]
    assert [each["judges"] for each in found] == [[["one"]], [["two"]]]
    assert each_with_people(both[:1], labels) == [with_people(both[:1], labels)]


def test_a_file_of_two_judges_is_a_recording_each():
    calls = [j.call for model in ("one", "two") for j in judged("ab", model)[0].judgements]
    assert [each.judgements[0].judge for each in recordings_of(Path("c"), calls)] == ["one", "two"]


def test_votes_are_read_back_and_a_later_one_on_the_same_answers_counts(tmp_path):
    file = tmp_path / "judge" / "votes.jsonl"
    append_vote(file, Label("Why?", "demo", "base", "a", ("0a", "0b")), ["Why?"])
    assert read_labels(file) == [Label("Why?", "demo", "base", "a", ("0a", "0b"), hash_of(["Why?"]))]
    append_vote(file, Label("How?", "demo", "base", "tie", ("1a", "1b")), ["Why?", "How?"], "Be brief.")
    append_vote(file, Label("Why?", "demo", "base", "b", ("0a", "0b")), ["Why?"])
    append_vote(file, Label("When?", "demo", "base", "a", ("0a", "0b")), ["When?"])  # the same answers
    assert [label.verdict for label in read_labels(file)] == ["b", "tie", "a"]
    told = [{"role": "system", "content": "Be brief."}]
    assert read_labels(file)[1].question_hash == hash_of(["Why?", "How?"], told)
    with pytest.raises(ResourceError, match="votes"):
        append_vote(file / "below", Label("Why?", "demo", "base", "a"), [])


def test_human_judgements_of_mt_bench_are_labels_of_several_voters(tmp_path):
    rows = [{"question_id": 81, "model_a": "x", "model_b": "y", "winner": winner, "judge": judge}
            for winner, judge in (("model_a", "u1"), ("tie", "u2"), ("model_b", "u1"))]  # fmt: skip
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert [label.verdict for label in read_labels(tmp_path / "labels.jsonl")] == ["a", "tie", "b"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"question": 1, "a": "x", "b": "y", "verdict": "c"}', ":1: the verdict is 'c', not a, b or tie"),
        ('{"question": 1, "a": "x", "verdict": "a"}', ":1: no b or model_b or answer2_id"),
        ('{"a": "x", "b": "y", "verdict": "a"}', ":1: no question_id or question"),
        ("{", "labels.jsonl"),
        ("", "has no labels"),
    ],
)
def test_a_line_without_a_label_is_named(tmp_path, line, reason):
    (tmp_path / "labels.jsonl").write_text(line, "utf-8")
    with pytest.raises(DataError) as error:
        read_labels(tmp_path / "labels.jsonl")
    assert reason in error.value.message
