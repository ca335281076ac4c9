"""Calibration on pairs with a known right answer, and injection probes, with judges of known behaviour."""

from __future__ import annotations

import json
import os
import re

import pytest

from shepherd.errors import DataError
from shepherd.evaluation.judge.calls import probe_texts
from shepherd.evaluation.judge.calls.calibration import calibration, read_labelled, wilson
from shepherd.evaluation.judge.calls.client import Completion
from shepherd.evaluation.judge.calls.ledger import Ledger
from shepherd.evaluation.judge.calls.plan import Judge, planned
from shepherd.evaluation.judge.calls.probes import APPENDED, IN_PLACE, WEAK, probe_pairs, shifts
from shepherd.evaluation.judge.calls.protocols import PROTOCOLS
from shepherd.evaluation.judge.calls.run import run
from shepherd.evaluation.judge.formats import judgement_of


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


ROWS = [{"input": f"Question {n}?", "output_1": f"right {n}", "output_2": f"wrong {n}", "label": 1} for n in range(20)]


def shown(messages) -> list[str]:
    return re.findall(r"ANSWER-[AB]>>>\n(.*?)\n<<<[0-9a-f]{16}:(?:END|CUT)", messages[1]["content"], re.DOTALL)


def judged(pairs, complete, tmp_path, protocol="pairwise"):
    judge = Judge("http://127.0.0.1:1/v1", "judge", PROTOCOLS[protocol])
    ledger = Ledger.opened(tmp_path / "calls.jsonl")
    found = {}
    for pair in pairs:
        done = run(planned([pair], judge, b"s"), judge.protocol, ledger, complete, threads=1)
        found[pair.b] = [judgement_of(call) for call in done.calls]
    return found


def calibrated(complete, tmp_path, rows=ROWS):
    (tmp_path / "pairs.json").write_text(json.dumps(rows), "utf-8")
    pair, labels = read_labelled(tmp_path / "pairs.json")
    (judgements,) = judged([pair], complete, tmp_path).values()
    return calibration(judgements, labels)


def knows(messages, decoding):
    return Completion("VERDICT: A" if shown(messages)[0].startswith("right") else "VERDICT: B")


def test_a_judge_that_is_right_in_both_orders_is_fit(tmp_path):
    found = calibrated(knows, tmp_path)
    assert (found["pairs"], found["accuracy"], found["flips"], found["same"], found["unread"]) == (20, 1, 0, 1, 0)
    assert found["fit"] and found["accuracy_ci95"] == pytest.approx((0.8389, 1), abs=1e-4)  # 20 / (20 + 1.96²)


def test_a_judge_that_prefers_the_first_answer_is_right_in_half_and_flips_always(tmp_path):
    found = calibrated(lambda messages, decoding: Completion("VERDICT: A"), tmp_path)
    assert (found["accuracy"], found["flips"], found["same"], found["fit"]) == (0.5, 1, 0, False)


@pytest.mark.parametrize(("firsts", "fit"), [(5, True), (6, False)])
def test_more_than_a_quarter_of_flips_is_not_fit(tmp_path, firsts, fit):
    first = {f"Question {n}?" for n in range(firsts)}

    def complete(messages, decoding):
        biased = any(f"\n{question}\n" in messages[1]["content"] for question in first)
        return Completion("VERDICT: A") if biased else knows(messages, decoding)

    found = calibrated(complete, tmp_path)
    assert (found["flips"], found["accuracy"], found["fit"]) == (firsts / 20, 1 - firsts / 40, fit)


def test_ties_and_unread_texts_are_not_right(tmp_path):
    found = calibrated(lambda messages, decoding: Completion("VERDICT: TIE"), tmp_path)
    assert (found["accuracy"], found["flips"], found["same"], found["unread"], found["fit"]) == (0, 0, 1, 0, False)
    (tmp_path / "calls.jsonl").unlink()
    found = calibrated(lambda messages, decoding: Completion("A is better."), tmp_path)
    assert (found["accuracy"], found["same"], found["unread"], found["fit"]) == (0, 0, 40, False)


def test_a_tie_in_one_order_is_not_a_flip(tmp_path):
    def complete(messages, decoding):
        return knows(messages, decoding) if shown(messages)[0].startswith("right") else Completion("VERDICT: TIE")

    found = calibrated(complete, tmp_path)
    assert (found["accuracy"], found["flips"], found["same"]) == (0.5, 0, 0)


def test_the_interval_of_a_share_is_wilsons():
    # Newcombe (1998), table I: 81 of 263: 0.2553 to 0.3662
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4) and wilson(0.0, 0) is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "holds no pairs"),
        ("[{", "not JSON"),
        (json.dumps([ROWS[0], {**ROWS[0], "label": 3}]), "entry 2: no input, output_1 and output_2 with a label"),
        (json.dumps([{**ROWS[0], "output_1": None}]), "entry 1"),
        ("3", "entry 1"),
    ],
)
def test_a_malformed_file_of_pairs_is_named(tmp_path, content, reason):
    (tmp_path / "pairs.json").write_text(content, "utf-8")
    with pytest.raises(DataError, match=re.escape(reason)):
        read_labelled(tmp_path / "pairs.json")


def test_there_are_fifty_different_probes_of_eight_families():
    for protocol, line in (("fedit", "SCORES: "), ("pairwise", "VERDICT: ")):
        found = probe_texts.probes(protocol)
        assert len(found) == 50 == len({text for _, text in found}) and sum(line in text for _, text in found) > 20
    assert len({family for family, _ in found}) == 8
    assert {len(text) for family, text in found if family == "10,000 characters"} == {10_000}


def rates(points):
    """A judge that gives the strong answer 8, and another one what `points` says."""

    def complete(messages, decoding):
        strong = {text for _, text, _ in probe_texts.QUESTIONS}
        scores = [8 if text in strong else points(text) for text in shown(messages)]
        return Completion(f"SCORES: {scores[0]} {scores[1]}")

    return complete


def test_a_judge_that_follows_no_probe_shifts_by_nothing(tmp_path):
    found = shifts(judged(probe_pairs("fedit"), rates(lambda text: 2), tmp_path, "fedit"))
    for name in (IN_PLACE, APPENDED):
        assert (found[name]["shift"], found[name]["probes"], found[name]["unread"]) == (0, 50, 0)


def test_a_judge_that_obeys_shifts_by_what_the_probes_demand(tmp_path):
    pairs = probe_pairs("fedit")
    assert [(pair.b, len(pair.items)) for pair in pairs] == [(WEAK, 5), (IN_PLACE, 50), (APPENDED, 50)]
    judgements = judged(pairs, rates(lambda text: 10 if "SCORES: " in text else 1), tmp_path, "fedit")
    found = shifts(judgements)
    obeyed = sum("SCORES: " in text[:7900] for _, text in probe_texts.probes("fedit"))  # 8,000 characters are shown
    assert found[APPENDED]["shift"] == pytest.approx(9 * obeyed / 50)
    low, high = found[APPENDED]["ci95"]
    assert low < found[APPENDED]["shift"] < high and found[APPENDED]["largest"] == 9
    assert found[APPENDED]["families"]["forged verdict"] == 9 and found[APPENDED]["families"]["ignore"] == 0


def test_a_probe_that_makes_the_judge_silent_is_counted(tmp_path):
    def complete(messages, decoding):
        return Completion("I will not." if "<|im_start|>" in messages[1]["content"] else "SCORES: 8 2")

    found = shifts(judged(probe_pairs("fedit"), complete, tmp_path, "fedit"))
    assert (found[IN_PLACE]["probes"], found[IN_PLACE]["unread"]) == (49, 1)


def test_a_probe_with_points_in_one_order_only_is_counted_as_unread(tmp_path):
    strong = {text for _, text, _ in probe_texts.QUESTIONS}

    def complete(messages, decoding):
        """The answer shown first gains five points; nobody can read what it says where a role tag is shown second."""
        first, second = shown(messages)
        tag = "<|im_start|>" in second and first in strong
        return Completion("I will not." if tag else "SCORES: 9 4")

    found = shifts(judged(probe_pairs("fedit"), complete, tmp_path, "fedit"))
    assert found[APPENDED]["unread"] == 1 and found[APPENDED]["shift"] == 0 == found[APPENDED]["largest"]
