"""`shepherd judge --replay`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from console import Shell

RECORDINGS = Path(__file__).parent / "recordings"


@pytest.fixture
def shell(capsys, monkeypatch) -> Shell:
    return Shell(capsys, monkeypatch)


def pairs(shell: Shell, *words) -> list[dict]:
    done = shell("judge", "--replay", *words, "--json")
    assert done.status == 0, done.err
    return json.loads(done.out)["pairs"]


def test_the_json_has_one_entry_per_file_with_the_figures_of_the_pair(shell):
    one, other = pairs(shell, RECORDINGS / "fastchat.jsonl", RECORDINGS / "threeclass.jsonl")
    expected = {
        "a": "fox1", "b": "owl1", "total_a": 30, "total_b": 30.5, "relative": 30.5 / 30, "wins": 2, "losses": 1,
        "ties": 1, "unparsed": 2, "left_out": 1, "verdict": "not distinguishable", "orders": 1, "questions": 4,
    }  # fmt: skip
    assert expected.items() <= one.items() and one["file"].endswith("fastchat.jsonl")
    assert (other["a"], other["b"], other["total_a"], other["total_b"]) == ("fox1", "owl1", 1.5, 2.5)
    assert one["holm_p"] == min(1, 2 * one["p"])


SAME = {
    "file", "format", "judgements", "questions", "seeds", "orders", "stderr", "degrees", "p", "holm_p", "wilcoxon_p",
    "sign_p", "permutation_p", "equal_p", "smallest_difference", "ties", "scope", "left_out", "texts", "unparsed",
    "disagreements", "refused", "failed", "one_order", "lacking", "superseded", "repeats", "repeats_sd", "lengths",
    "categories",
}  # fmt: skip
EXCHANGED = {"a": "b", "total_a": "total_b", "wins": "losses", "relative": "inverse",
             **{f"relative_{part}": f"inverse_{part}" for part in ("stderr", "ci95", "bca95")}}  # fmt: skip


def test_exchanging_a_and_b_in_the_recording_exchanges_every_figure_exactly(shell, tmp_path):
    rows = [json.loads(line) for line in (RECORDINGS / "fastchat-exchanged.jsonl").read_text("utf-8").splitlines()]
    names = {"there": rows, "back": [
        {**row, "answer1_id": row["answer2_id"], "answer2_id": row["answer1_id"], "score": row["score"][::-1],
         "text": " ".join(row["text"].split("\n")[0].split()[::-1])} for row in rows]}  # fmt: skip
    found = {}
    for name, lines in names.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in lines), "utf-8")
        (found[name],) = pairs(shell, tmp_path / name, "--margin", 0.5)
        found[name]["file"] = ""
    there, back = found["there"], found["back"]
    assert there.keys() == SAME | EXCHANGED.keys() | {*EXCHANGED.values(), "difference", "ci95", "verdict"}
    assert {name: there[name] for name in SAME} == {name: back[name] for name in SAME}
    for one, other in EXCHANGED.items():
        assert (there[one], there[other]) == (back[other], back[one]), one
    assert there["difference"] == -back["difference"]
    assert there["ci95"] == [-end for end in reversed(back["ci95"])]
    assert there["relative_bca95"] is not None and math.isfinite(there["equal_p"])


def test_the_table_names_files_verdicts_and_what_does_not_count(shell):
    done = shell("judge", "--replay", RECORDINGS / "fastchat.jsonl", "--replay", RECORDINGS / "llmbar.json")
    assert done.status == 0 and done.err == ""
    for words in (
        "fastchat.jsonl (fastchat)\n   a fox1, b owl1",
        "30.5  1.017  0.603 to 1.430  +0.125  −2.948 to +3.198",
        "2/1/1 not distinguishable",
        "1: 1 of 5 judgements without a score are left out; 2 of 5 texts are unparsed; a recorded score counts",
        "the answer shown first gains +0.333 points (95 %: −1.101 to +1.768); right in both orders: 2 of 4",
        "One order only: 1. A judge favours the answer that it is shown first",
        "other seeds may turn them",
    ):
        assert " ".join(words.split()) in " ".join(done.out.split())
    both = shell("judge", "--replay", RECORDINGS / "fastchat.jsonl", RECORDINGS / "fastchat-exchanged.jsonl").out
    assert "b / a is 1.017 with b second, 1.212 with b first (+0.195)" in both and "One order only" not in both


def test_one_question_and_equal_differences_have_no_interval_and_the_reason(shell, tmp_path):
    lines = (RECORDINGS / "fastchat.jsonl").read_text("utf-8").splitlines(keepends=True)
    again = lines[0].replace('"r1"', '"r9"')
    for rows, reason in ((lines[:1], "a single question"), ([lines[0], again], "a single question"),
                         ([lines[0], lines[0].replace('"question_id": 1,', '"question_id": 9,')],
                          "the difference is the same on every question")):  # fmt: skip
        (tmp_path / "few.jsonl").write_text("".join(rows), "utf-8")
        done = shell("judge", "--replay", tmp_path / "few.jsonl")
        assert done.status == 0 and f"1: no interval: {reason}." in done.out and "  no interval\n" in done.out


def test_a_margin_makes_equal_possible(shell):
    (found,) = pairs(shell, RECORDINGS / "fastchat.jsonl", "--margin", "9")
    assert found["verdict"] == "equal within the margin" and found["equal_p"] < 0.05


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        ((), 2, "nothing to judge"),
        (("--replay", "nowhere.jsonl"), 3, "file not found: nowhere.jsonl"),
        (("--replay", RECORDINGS), 3, "Is a directory"),
        (("--replay", RECORDINGS / "fastchat.jsonl", "--margin", "0"), 2, "--margin"),
        (("--replay", RECORDINGS / "fastchat.jsonl", "--margin", "nan"), 2, "--margin nan is not a number of points"),
    ],
)
def test_mistakes_have_a_reason_and_their_exit_status(shell, monkeypatch, tmp_path, words, status, reason):
    monkeypatch.chdir(tmp_path)
    done = shell("judge", *words)
    assert done.status == status and reason in done.err and done.out == ""


def test_a_recording_that_is_named_twice_is_refused(shell):
    done = shell(
        "judge", "--replay", RECORDINGS / "fastchat.jsonl", RECORDINGS / ".." / "recordings" / "fastchat.jsonl"
    )
    assert done.status == 2 and "is named twice and would count as two comparisons" in done.err and done.out == ""
