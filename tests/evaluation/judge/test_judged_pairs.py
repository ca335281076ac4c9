"""Figures of calls in both orders, with repeats, seeds, lengths and categories; what exchanging a and b changes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from console import Shell
from shepherd.errors import DataError
from shepherd.evaluation import questions
from shepherd.evaluation.answer_files import hash_of
from shepherd.evaluation.judge.calls.record import Call
from shepherd.evaluation.judge.formats import exchanged
from shepherd.evaluation.judge.lengths import length_controlled
from shepherd.evaluation.judge.pairs import summarise
from shepherd.evaluation.judge.points import matched
from shepherd.evaluation.judge.replay import Recording, recordings_of
from shepherd.evaluation.judge.statistics import two_way
from shepherd.evaluation.judge.summary import UNFIT, Known, judged
from shepherd.evaluation.question_rows import Question
from shepherd.evaluation.questions import digest
from shepherd.rng import stream

FILE = Path("calls.jsonl")


@pytest.fixture
def shell(capsys, monkeypatch) -> Shell:
    return Shell(capsys, monkeypatch)


def call(question: str, order: str, text: str, seed: int | None = 0, repeat: int = 0, **more: Any) -> Call:
    """A call on the arms base and federated; the answers are identified by seed and question."""
    key = f"{question}-{order}-{seed}-{repeat}-{more.get('model')}"
    given = {"model": "judge", "outcome": "answered", "a_chars": 100, "b_chars": 100} | more
    return Call(
        key=key, endpoint="https://api.example.org/v1", protocol="fedit", prompt="fedit-1", prompt_hash="0f",
        question=question, a="base", b="federated", order=order, repeat=repeat, seed=seed, text=text,
        a_answer=f"a{seed}{question}", b_answer=f"b{seed}{question}", answered_model="judge-2024", tokens_in=100,
        tokens_out=10, seconds=0.5, time=f"2026-01-0{1 + (seed or 0)}T00:00:00Z", **given,
    )  # fmt: skip


def simulated(seeds: int = 3, questions: int = 12, repeats: int = 2) -> list[Call]:
    """Scores in half points that favour the first answer by one point and the longer one a little."""
    rng = stream(0, "judge", "calls", seeds, questions)
    made = []
    for seed in range(seeds):
        for question in range(questions):
            lengths = rng.integers(50, 500, 2)
            for order in ("ab", "ba"):
                for repeat in range(repeats):
                    a, b = 2 * rng.normal(5, 1, 2) + lengths / 200
                    first, second = (a + 1, b) if order == "ab" else (b + 1, a)
                    scores = " ".join(f"{np.clip(np.round(x) / 2, 1, 10)}" for x in (first, second))
                    about = {"category": f"c{question % 3}", "a_chars": int(lengths[0]), "b_chars": int(lengths[1])}
                    made.append(call(f"q{question}", order, f"SCORES: {scores}", seed, repeat, **about))
    return made


def pair(calls: list[Call]) -> dict[str, Any]:
    (found,) = summarise(recordings_of(FILE, calls))["pairs"]
    return found


def test_a_cell_is_the_mean_over_orders_of_the_mean_over_repeats():
    calls = [
        call("q", "ab", "SCORES: 9 5"),
        call("q", "ab", "SCORES: 9 7", repeat=1),
        call("q", "ba", "SCORES: 8 4"),
        call("r", "ab", "SCORES: 6 6"),
        call("r", "ba", "SCORES: 7 6"),
    ]
    (recording,) = recordings_of(FILE, calls)
    found = matched(recording.judgements)
    assert found.questions == ("q", "r") and found.mean_a.tolist() == [[6.5, 6]] and found.mean_b.tolist() == [[7, 6.5]]
    assert found.totals == (34, 33), "sums are of all judgements"
    # q: −4 and −2 in one order; r once in each
    assert pair(calls)["repeats"] == 2 and pair(calls)["repeats_sd"] == pytest.approx(2**0.5)


def test_a_question_in_one_of_two_orders_is_left_out_and_counted():
    calls = [call(q, order, "SCORES: 5 6") for q in ("q", "r", "s") for order in ("ab", "ba")]
    calls[1] = dataclasses.replace(calls[1], text="I cannot say.")
    calls[3] = dataclasses.replace(calls[3], text="", outcome="refused")
    calls[2] = dataclasses.replace(calls[2], text="", outcome="failed")
    found = pair(calls)
    assert (found["questions"], found["one_order"], found["left_out"]) == (1, 1, 3)
    assert (found["unparsed"], found["refused"], found["failed"]) == (1, 1, 1)
    whole = judged(recordings_of(FILE, calls))
    counts = {"unparsed": 1, "refused": 1, "failed": 1, "left out": 3, "one order only": 1}
    assert whole["left_out"]["by_arm"] == {"base": counts, "federated": counts}
    assert whole["left_out"]["by_question"]["q"] == {"unparsed": 1, "left out": 1, "one order only": 1}


def test_a_question_that_lacks_points_under_one_seed_is_left_out_and_said(shell, tmp_path):
    calls = [call(q, o, "SCORES: 5 6", seed) for seed in (0, 1) for q in "pqrs"[: 4 - seed] for o in ("ab", "ba")]
    found = pair(calls)
    assert (found["questions"], found["lacking"], found["one_order"], found["left_out"]) == (3, 1, 0, 0)
    assert judged(recordings_of(FILE, calls))["left_out"]["by_question"] == {"s": {"not under every seed": 2}}
    (tmp_path / "calls.jsonl").write_text("".join(json.dumps(one.to_row()) + "\n" for one in calls), "utf-8")
    said = shell("judge", "--replay", tmp_path / "calls.jsonl").out
    assert "1 of the questions have no score under one of the 2 seeds and are left out" in said


def test_judgements_of_answers_that_were_written_anew_are_left_out_and_said(shell, tmp_path):
    old = [call(q, order, "SCORES: 5 9" if order == "ab" else "SCORES: 9 5") for q in "qr" for order in ("ab", "ba")]
    new = [dataclasses.replace(each, b_answer="anew", text="SCORES: 5 5", key=f"{each.key} anew") for each in old[:3]]
    (recording,) = recordings_of(FILE, [*old, *new])
    assert recording.superseded == 4 and [one.points for one in recording.judgements] == [(5, 5)] * 3
    assert (pair([*old, *new])["repeats"], pair([*old, *new])["one_order"]) == (1, 1)
    (tmp_path / "calls.jsonl").write_text("".join(json.dumps(one.to_row()) + "\n" for one in [*old, *new]), "utf-8")
    said = shell("judge", "--replay", tmp_path / "calls.jsonl").out
    assert "4 judgements of answers that were written anew since are left out" in said


def test_calls_of_another_decoding_are_another_recording_and_repeats_are_not():
    given = [
        call("q", order, "SCORES: 5 6", repeat=repeat, decoding={"temperature": heat, "seed": repeat})
        for heat in (0, 1) for repeat in (0, 1) for order in ("ab", "ba")
    ]  # fmt: skip
    assert [len(each.judgements) for each in recordings_of(FILE, given)] == [4, 4]


def test_more_readings_of_one_order_than_of_the_other_are_said(shell, tmp_path):
    calls = [call(q, order, "SCORES: 9 5", repeat=n) for q in "qr" for order, times in (("ab", 3), ("ba", 1))
             for n in range(times)]  # fmt: skip
    found = pair(calls)
    assert found["difference"] == 0 and found["relative"] == 0.75 and found["in_order"] == {"a_first": 6, "b_first": 2}
    (tmp_path / "calls.jsonl").write_text("".join(json.dumps(one.to_row()) + "\n" for one in calls), "utf-8")
    said = shell("judge", "--replay", tmp_path / "calls.jsonl").out
    assert "6 judgements in use show a first and 2 b: totals and b / a lean to the order that has more" in said


def test_recordings_of_two_judges_are_not_one_pair_in_both_orders():
    there, again = ([call(q, "ab", "SCORES: 9 5", model=name) for q in "qr"] for name in ("one", "two"))
    (one,), (two,) = recordings_of(FILE, there), recordings_of(FILE, again)
    turned = [dataclasses.replace(each, a=each.b, b=each.a) for each in (one, two)]
    assert len(summarise([one, turned[0]])["orders"]) == 1 and summarise([one, turned[1]])["orders"] == []


def test_a_pair_without_a_question_in_common_names_what_is_missing():
    seeds = [call(f"q{seed}", order, "SCORES: 5 6", seed) for seed in (0, 1) for order in ("ab", "ba")]
    with pytest.raises(DataError, match=r"federated against base: no question has .* under each of 2 seeds"):
        pair(seeds)
    with pytest.raises(DataError, match="no question has a score or a verdict in both orders"):
        pair([call("q", "ab", "SCORES: 5 6"), call("q", "ba", "Neither.")])
    with pytest.raises(DataError, match="none of its 1 judgements has a score or a verdict"):
        pair([call("q", "ab", "Neither.")])


def test_seeds_are_one_comparison_with_the_two_way_interval():
    (recording,) = recordings_of(FILE, simulated())
    found, points = pair(simulated()), matched(recording.judgements)
    expected = two_way(points.mean_b - points.mean_a)
    assert (found["seeds"], found["questions"], found["scope"]) == (3, 12, "over seeds")
    assert (found["difference"], *found["ci95"]) == pytest.approx((expected.value, *expected.interval()))
    assert found["degrees"] != 11, "Satterthwaite's, of questions and seeds"
    one = pair(simulated(seeds=1))
    assert one["scope"].startswith("for this training") and one["degrees"] == 11


def test_what_the_first_answer_gains_is_found_in_both_orders():
    found = pair(simulated(seeds=3, questions=60))
    low, high = found["first_gain_ci95"]
    assert low < 0.5 < high, "one point on the doubled scale"
    assert sum(found["by_order"]["a_first"].values()) == 180
    assert found["by_order"]["a_first"]["losses"] > found["by_order"]["b_first"]["losses"]
    assert 0 < found["reversed_verdict"] < 1 - found["same_verdict"] < 1


def test_exchanging_a_and_b_exchanges_every_figure_of_calls_exactly():
    there = recordings_of(FILE, simulated())
    back = [Recording(r.file, r.format, r.b, r.a, r.scores, tuple(map(exchanged, r.judgements))) for r in there]
    (one,), (other,) = (summarise(each, margin=0.5)["pairs"] for each in (there, back))
    names = {f"relative{part}": f"inverse{part}" for part in ("", "_stderr", "_ci95", "_bca95")}
    names |= {"a": "b", "total_a": "total_b", "wins": "losses", "mean_a": "mean_b", "a_longer": "b_longer"}
    names["a_first"] = "b_first"
    names |= {value: key for key, value in names.items()}
    negated = {"difference", "controlled"}

    def turned(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {names.get(name, name): turned(item, name) for name, item in value.items()}
        if key in ("ci95", "controlled_ci95"):
            return (-value[1], -value[0])
        if key in negated:
            return -value
        if key == "categories":
            return [turned(item) for item in value]
        return {"higher": "lower", "lower": "higher"}.get(value, value) if key == "verdict" else value

    assert one["lengths"]["controlled"] and one["categories"] and one["first_gain"]
    assert turned(one) == other


def test_the_difference_at_equal_lengths_is_the_intercept_of_the_regression():
    rng = stream(1, "judge", "lengths")
    gaps = rng.normal(300, 200, (1, 400))
    x = np.tanh(gaps / gaps.std())
    d = 0.3 + 0.8 * x + rng.normal(0, 0.5, gaps.shape)
    found = length_controlled(d, gaps)
    columns = np.column_stack([np.ones(400), x[0]])
    theta, phi = np.linalg.lstsq(columns, d[0], rcond=None)[0]
    assert (found.controlled.value, found.slope) == pytest.approx((theta, phi))
    inverse = np.linalg.inv(columns.T @ columns)
    residuals = d[0] - columns @ (theta, phi)
    white = inverse @ (columns.T * residuals**2) @ columns @ inverse * 400 / 398
    assert found.controlled.stderr == pytest.approx(white[0, 0] ** 0.5)
    assert abs(d.mean() - 0.3) > 0.3 > abs(theta - 0.3)


def test_lengths_that_do_not_differ_or_few_questions_control_nothing():
    assert length_controlled(np.ones((1, 9)), np.full((1, 9), 5.0)) is None
    assert length_controlled(np.ones((1, 3)), np.array([[1.0, 2.0, 3.0]])) is None
    assert pair(simulated())["lengths"]["mean_a"] > 50 and pair([call("q", "ab", "SCORES: 5 6")])["lengths"] is not None


def test_categories_have_their_own_intervals_and_all_questions():
    found = pair(simulated())["categories"]
    assert [each["category"] for each in found] == ["c0", "c1", "c2"]
    assert sum(each["questions"] for each in found) == 12
    for each in found:
        low, high = each["ci95"]
        assert low < each["difference"] < high and each["wins"] + each["losses"] + each["ties"] == 4


def test_a_summary_has_what_is_recorded_and_none_for_the_rest():
    known = Known(
        questions={"licence": "Apache-2.0", "trained_on": []},
        arms={"federated": {"template": "alpaca"}},
        budget={"equal": False, "differences": ["tokens"]},
        calls={"cost": 0.5, "currency": "EUR"},
    )
    calls = [dataclasses.replace(one, b_cut=one.question == "q0") for one in simulated()]
    found = judged(recordings_of(FILE, calls), known=known)
    assert found["judge"] == {
        "asked": ["judge"], "answered": ["judge-2024"], "hosts": ["api.example.org"], "first": "2026-01-01T00:00:00Z",
        "last": "2026-01-03T00:00:00Z", "decoding": [{}], "prompts": [{"id": "fedit-1", "sha256": "0f"}],
        "ignored": None, "calibration": None,
    }  # fmt: skip
    assert found["questions"]["count"] == 12 and found["questions"]["categories"] == {"c0": 4, "c1": 4, "c2": 4}
    assert (found["questions"]["licence"], found["questions"]["source"]) == ("Apache-2.0", None)
    assert found["questions"]["sha256"] is None, "these calls have no hashes of questions"
    hashed = [dataclasses.replace(one, question_hash=hash_of([f"Why {one.question[1:]}?"])) for one in calls]
    digests = {judged(recordings_of(FILE, each))["questions"]["sha256"] for each in (hashed, hashed[::-1])}
    assert digests == {digest([Question(f"q{n}", (f"Why {n}?",)) for n in range(12)])}

    base, federated = found["arms"]
    assert (federated["template"], base["template"], federated["cut"], base["cut"]) == ("alpaca", None, 1 / 12, 0)
    assert found["calls"] == {"calls": 144, "requests": 144, "tokens_in": 14_400, "tokens_out": 1440, "seconds": 72.0,
                              "cost": 0.5, "currency": "EUR"}  # fmt: skip
    assert (found["probes"], found["agreement"], found["budget"]["equal"]) == (None, [], False)
    json.dumps(found, default=str, allow_nan=False)


def test_a_call_that_serves_two_seeds_is_counted_once():
    calls = [dataclasses.replace(call(q, order, "SCORES: 5 6", seed), key=f"{q}{order}")
             for q in "qr" for order in ("ab", "ba") for seed in (0, 1)]  # fmt: skip
    found = judged(recordings_of(FILE, calls))
    assert found["pairs"][0]["judgements"] == 8
    assert {key: found["calls"][key] for key in ("calls", "requests", "tokens_in")} == {
        "calls": 4, "requests": 4, "tokens_in": 400}  # fmt: skip


def test_a_published_question_set_is_known_by_its_digest_and_a_part_of_it_by_its_name(monkeypatch):
    calls = [dataclasses.replace(one, question_hash="0") for one in simulated(1, 2, 1)]
    (whole,) = {judged(recordings_of(FILE, calls))["questions"]["sha256"]}
    monkeypatch.setattr(questions, "BENCHES", {"small": questions.Bench("Two questions", "", "MIT", whole)})
    found = judged(recordings_of(FILE, calls))["questions"]
    assert (found["source"], found["licence"]) == ("Two questions", "MIT")
    part = judged(recordings_of(FILE, calls[:2]), known=Known(questions={"source": "small"}))["questions"]
    assert (part["source"], part["licence"]) == ("small", "MIT") and part["sha256"] != whole
    assert judged(recordings_of(FILE, calls[:2]))["questions"]["licence"] is None


def test_a_judge_that_is_not_fit_gives_no_verdicts_and_all_figures():
    recordings = recordings_of(FILE, simulated())
    fit, unfit = (judged(recordings, known=Known(calibration={"fit": each})) for each in (True, False))
    assert {pair["verdict"] for pair in unfit["pairs"]} == {UNFIT} and fit["pairs"][0]["verdict"] != UNFIT
    assert unfit["pairs"][0]["difference"] == fit["pairs"][0]["difference"]
