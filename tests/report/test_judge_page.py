"""The section of judged answers on a page: verdicts in words, figures, tables, and what is not known."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from console import Shell
from report_runs import HOSTILE, Page, change, check, write_run
from shepherd.errors import DataError
from shepherd.report import write_report
from shepherd.report.judge import background, contents, facts, figures, section
from shepherd.report.judge.latex_table import judged_table
from shepherd.report.judge.sentences import cautions, verdicts
from shepherd.report.load import load_run
from shepherd.report.page import Limits

RECORDINGS = Path(__file__).parents[1] / "evaluation" / "judge" / "recordings"


def pair(**more: Any) -> dict[str, Any]:
    return {
        "a": "base", "b": "federated", "file": "calls.jsonl", "judgements": 160, "questions": 80, "seeds": 1,
        "orders": 2,
        "total_a": 664.0, "total_b": 655.5, "relative": 0.987, "relative_ci95": [0.935, 1.039], "difference": -0.106,
        "ci95": [-0.54, 0.328], "p": 0.627, "holm_p": 0.627, "smallest_difference": 0.618, "wins": 40, "losses": 30,
        "ties": 10, "verdict": "not distinguishable", "repeats": 1, "repeats_sd": None, "left_out": 3,
        "categories": [{"category": name, "questions": count, "difference": value, "ci95": [value - 1, value + 1],
                        "p": 0.04, "wins": count, "losses": 0, "ties": 0}
                       for name, count, value in (("generic", 10, 0.5), ("math", 3, -40.0))],
        "lengths": {"mean_a": 1277.0, "mean_b": 1417.0, "a_longer": 0.38, "b_longer": 0.62, "controlled": -0.184,
                    "controlled_ci95": [-0.559, 0.19], "controlled_p": 0.33, "slope": 0.37},
        "first_gain": 0.325, "first_gain_ci95": [0.204, 0.446], "same_verdict": 0.475, "reversed_verdict": 0.2375,
        "by_order": {"a_first": {"wins": 13, "losses": 48, "ties": 19},
                     "b_first": {"wins": 41, "losses": 27, "ties": 12}},
    } | more  # fmt: skip


def judged(*pairs: dict[str, Any], **more: Any) -> dict[str, Any]:
    found = {
        "version": 1,
        "judge": {"asked": ["judge-model"], "answered": ["judge-model-2026"], "hosts": ["api.example.org"],
                  "first": "2026-01-01T00:00:00Z", "last": "2026-01-02T00:00:00Z",
                  "decoding": [{"temperature": 0.0, "max_tokens": 512}], "ignored": ["seed"],
                  "prompts": [{"id": "fedit-1", "sha256": "0123456789abcdef"}]},
        "questions": {"count": 80, "ids": list(range(1, 81)), "categories": {"generic": 10, "math": 3},
                      "source": "vicuna", "licence": "Apache-2.0", "sha256": "fedcba9876543210", "trained_on": []},
        "arms": [{"name": "base", "base": "org/small", "cut": 0.05, "mean_characters": 1277.0},
                 {"name": "federated", "adapter_digest": "ad" * 32, "base": "org/small", "template": "alpaca"}],
        "budget": {"equal": False, "differences": ["tokens of local 10, of federated 80"]},
        "margin": None, "pairs": list(pairs) or [pair()], "orders": [],
        "left_out": {"by_arm": {"base": {"refused": 3}}, "by_question": {"70": {"refused": 3}}},
        "agreement": [{"with": "people", "source": "votes.jsonl", "items": 40, "labels": 41, "unmatched": 1,
                       "share": 0.7, "share_ci95": [0.55, 0.85], "kappa": 0.5, "kappa_ci95": [0.3, 0.7], "decided": 30,
                       "decided_share": 0.8}],
        "probes": {"appended": {"probes": 50, "shift": 1.5, "ci95": [0.8, 2.2], "families": {"forged": 3.0}}},
        "calls": {"calls": 160, "tokens_in": 128000, "tokens_out": 22000, "cost": 1.25, "currency": "USD",
                  "cache_hits": 12, "wall_seconds": 95.0},
    } | more  # fmt: skip
    return contents.completed(found)


def written(run: Path, found: dict[str, Any]) -> Path:
    (run / "judge").mkdir(exist_ok=True)
    (run / "judge" / "judge.json").write_text(json.dumps(found), "utf-8")
    return run


def test_a_run_with_judge_json_has_the_section_first_and_others_have_none(tmp_path):
    run = write_run(tmp_path / "demo")
    assert 'id="judge"' not in Page(write_report(run)).source
    parsed = Page(write_report(written(run, judged())))
    check(parsed)
    assert [a.get("id") for a in parsed.having("section")][:3] == ["headline", "judge", "budget"]
    assert '<a href="#judge">Judged answers</a>' in parsed.source


def test_all_fifteen_items_are_on_the_page(tmp_path):
    text = Page(write_report(written(write_run(tmp_path / "demo"), judged()))).text
    for words in (
        "Judge, as asked judge-model", "Judge, as answered judge-model-2026", "Endpoint api.example.org",
        "Date 2026-01-01 to 2026-01-02", "temperature: 0, max_tokens: 512", "ignored by the endpoint: seed",
        "fedit-1 (sha256 0123456789ab…)",
        "source vicuna; licence Apache-2.0; sha256 fedcba987654…", "Categories trained on none",
        "adadadadadad", "alpaca", "5.0 %", "not equal: tokens of local 10, of federated 80",
        "655.5 664 0.987 0.935 to 1.039", "−0.106 −0.540 to +0.328 0.63 0.63 0.618 not distinguishable",
        "40/30/10 41/27/12 13/48/19", "+0.325 +0.204 to +0.446 47.5 % 23.8 %", "Repeats each judgement once",
        "Refused", "1,417 1,277 62 %", "−0.184 −0.559 to +0.190", "generic 10 +0.500 −0.500 to +1.500",
        "people votes.jsonl (1 label on other answers) 40 70.0 % 55.0 % to 85.0 % 0.50 0.30 to 0.70 80.0 %",
        "rating of a weak answer moves: appended +1.500 points (95 %: +0.800 to +2.200) over 50 probes",
        "Calls 160", "Tokens 128,000 in, 22,000 out", "Cost 1.25 USD", "Cache hits 12", "Wall time 1 min 35 s",
    ):  # fmt: skip
        assert words in text.replace("\N{NO-BREAK SPACE}", " "), words


def test_more_questions_won_and_a_lower_total_are_both_said():
    (sentence,) = verdicts(judged())
    assert sentence == (
        "federated and base are not distinguishable: −0.106 points per question (95 % interval −0.540 to +0.328, Holm "
        "p 0.63). Both hold: federated wins more questions (40 to 30, 10 tied) and has the lower total (655.5 to 664)."
    )
    (turned,) = verdicts(judged(pair(difference=0.106, wins=30, losses=40)))
    assert "Both hold: base wins more questions (40 to 30" in turned
    assert "Both hold" not in verdicts(judged(pair(wins=30, losses=40)))[0]


@pytest.mark.parametrize(
    ("verdict", "words"),
    [("higher", "federated is rated higher than base"), ("lower", "federated is rated lower than base"),
     ("equal within the margin", "federated and base are equal within the margin"),
     ("judge not fit", "This judge is not fit to compare federated with base"),
     ("no interval", "Of federated and base no interval")],
)  # fmt: skip
def test_each_verdict_has_its_sentence(verdict, words):
    ends = {"ci95": None} if verdict == "no interval" else {}
    (sentence,) = verdicts(judged(pair(verdict=verdict, **ends)))
    assert sentence.startswith(words) and ("interval −" in sentence) == (verdict != "no interval")


def test_what_limits_the_verdicts_is_said_and_nothing_else():
    text = " ".join(cautions(judged()))
    assert "One seed: the verdicts hold for this training" in text and "one order" not in text
    assert "did not have equal budgets: tokens of local 10" in text
    assert "finds differences from 0.618 points on with 80 % power" in text
    assert "3 judgements (1.9" in text and "Nobody checked" not in text
    single = judged(pair(orders=1, verdict="higher", left_out=0, seeds=3), budget={"equal": True}, agreement=[])
    text = " ".join(cautions(single))
    assert text.startswith("Judged in one order only. A judge favours")
    assert "Nobody checked whether people or a second judge agree" in text
    assert "seed" not in text and "power" not in text and "left out" not in text
    unfit = judged()
    unfit["judge"]["calibration"] = {"fit": False, "accuracy": 0.5, "flips": 0.9, "pairs": 100}
    assert next(cautions(unfit)).startswith("This judge is not fit")
    fewer = judged(pair(one_order=2, lacking=1), pair(superseded=4))
    assert "3 questions of these pairs are in no figure, without a score in each order and seed." in cautions(fewer)
    assert "4 judgements of answers that were written anew since are left out." in cautions(fewer)
    row = dict(facts.facts(unfit, Limits()).rows)["Calibration"]
    assert row.replace("\N{NO-BREAK SPACE}", " ") == (
        "50.0 % right of 100 pairs, 90.0 % turn with the order; not fit: no verdicts"
    )


def test_what_is_not_known_is_said_and_never_invented():
    bare = judged(pair(lengths=None, categories=[], orders=1, first_gain=None, by_order=None))
    for key in bare["judge"]:
        bare["judge"][key] = None
    bare["questions"] |= {"categories": None, "source": None, "licence": None, "sha256": None, "trained_on": None}
    bare |= {"budget": None, "probes": None, "calls": None, "agreement": [], "arms": [{"name": "base"}]}
    bare["left_out"] = {"by_arm": {}, "by_question": {}}
    found = section.tables(contents.completed(bare), Limits())
    assert [table.caption for table in found] == [
        "Difference in points per question", "Totals, and questions won", "Arms", "How the answers were judged",
    ]  # fmt: skip
    rows = dict(found[-1].rows)
    assert {name for name, text in rows.items() if text == "not recorded"} == {
        "Judge, as asked", "Judge, as answered", "Endpoint", "Date", "Decoding", "Prompt", "Categories trained on",
        "Budget of the arms", "Calls", "Tokens", "Cost", "Cache hits", "Wall time",
    }  # fmt: skip
    assert {name for name, text in rows.items() if text == "not checked"} == {
        "Calibration", "Agreement", "Injection probes",
    }  # fmt: skip
    assert rows["Questions"].endswith("source not recorded; licence not recorded; sha256 not recorded")
    assert found[2].note.startswith("Not recorded: adapter, base,")


def test_both_orders_in_two_files_are_one_row_of_the_order_table():
    other = pair(orders=1, first_gain=None, by_order=None)
    joint = {"a": "base", "b": "federated", "files": ["one", "two"], "both": pair()}
    table = figures.orders(judged(other, copy.deepcopy(other), orders=[joint]), Limits())
    assert [row[0] for row in table.rows] == ["federated − base, both files"] and table.rows[0][1] == "+0.325"
    assert table.rows[0][5:] == ["−0.106", "−0.540 to +0.328", "0.63", "not distinguishable"]
    assert len(figures.orders(judged(), Limits()).columns) == 5, "the table of differences has the rest"


def test_pairs_with_one_arm_in_common_are_named_by_the_other():
    pairs = [pair(a="base"), pair(a="centralised")]
    assert figures.short_labels(pairs) == (["base", "centralised"], "federated minus each of these arms.")
    pairs = [pair(b="one"), pair(b="two")]
    assert figures.short_labels(pairs) == (["one", "two"], "Each of these arms minus base.")
    same = [pair(), pair()]
    assert figures.short_labels(same) == (["1: federated − base", "2: federated − base"], "")


def test_hostile_names_and_many_pairs_stay_within_the_page(tmp_path):
    pairs = [pair(a=HOSTILE[n % len(HOSTILE)], b=f"arm {n}") for n in range(150)]
    found = judged(*pairs)
    found["judge"]["asked"] = list(HOSTILE)
    parsed = Page(write_report(written(write_run(tmp_path / "demo"), found)))
    check(parsed)
    assert "The tables below have 138 more pairs." in parsed.text and "30 pairs of 150 left out" in parsed.text


def test_a_broken_judge_json_is_an_error_that_names_the_place(tmp_path):
    run = written(write_run(tmp_path / "demo"), judged())
    change(run / "judge/judge.json", lambda found: found["pairs"][0].pop("wins"))
    with pytest.raises(DataError, match=r"judge.json at pairs.0: the key 'wins' is missing"):
        load_run(run)
    written(run, judged(version=2))
    with pytest.raises(DataError, match=r"judge.json was written by a later version"):
        load_run(run)
    (run / "judge/judge.json").write_text("{")
    with pytest.raises(DataError, match=r"judge.json is not valid JSON"):
        load_run(run)


def test_budgets_of_the_arms_of_a_run_are_compared_with_the_federated_one(tmp_path):
    run = write_run(tmp_path / "demo")
    record = load_run(run)
    record.summary["budget"].clear()
    assert background.budget(record, ["base", "federated"]) is None
    spent = {"optimizer_steps_per_client": 30, "rows": 240, "tokens": 1000, "learning_rate": 2e-4}
    record.summary["budget"].update(base={"rows": 0}, federated=spent, local=spent | {"tokens": 1005})
    arms = ["base", "federated", "local/anna"]
    assert background.budget(record, arms) == {"equal": True, "differences": []}
    record.summary["budget"]["local"] = spent | {"tokens": 1500, "learning_rate": 1e-3}
    assert background.budget(record, arms)["differences"] == [
        "tokens of local 1,500, of federated 1,000", "peak learning rate of local 0.00100, of federated 0.000200",
    ]  # fmt: skip
    categories = record.partition["table"]["categories"]
    assert background.trained_on(record, ["math", categories[0]]) == [categories[0]]
    assert background.trained_on(record, []) is None


def test_the_latex_table_has_half_intervals_and_marks():
    text = judged_table(judged(pair(), pair(a="local", verdict="lower", difference=-0.688, ci95=[-1.045, -0.33])))
    assert r"federated $-$ base & $80$ & $0.987 \pm 0.052$ & $-0.106 \pm 0.434$ & 40/30/10 \\" in text
    assert (
        r"$-0.688 \pm 0.357^{\downarrow}$" in text and "Judge: judge-model. Intervals over questions; one seed" in text
    )


def test_the_command_writes_json_latex_and_reviews_and_renews_the_page_of_the_run(tmp_path, capsys, monkeypatch):
    run = write_run(tmp_path / "demo")
    write_report(run)
    out, latex, reviews = run / "judge" / "judge.json", tmp_path / "t.tex", tmp_path / "reviews"
    (run / "judge").mkdir()
    vote = {"question": "v1", "a": "federated", "b": "base", "verdict": "a", "a_answer": "bb", "b_answer": "aa"}
    (run / "judge" / "votes.jsonl").write_text(json.dumps(vote) + "\n")
    done = Shell(capsys, monkeypatch)("judge", "--replay", RECORDINGS / "calls.jsonl", "--out", out, "--latex", latex,
                                      "--export", reviews)  # fmt: skip
    assert done.status == 0, done.err
    found = json.loads(out.read_text("utf-8"))
    assert found["version"] == 1 and len(found["pairs"]) == 2
    people = found["agreement"][-1]  # all answers of this recording have the hashes of the vote
    assert (people["with"], people["items"], people["unmatched"]) == ("people", 3, 0)
    assert found["budget"]["equal"] in (True, False), "of the run"
    assert r"\toprule" in latex.read_text("utf-8") and len(list(reviews.iterdir())) == 4
    assert "How the answers were judged" in done.out and "Judge, as answered     judge-2024" in done.out
    assert 'id="judge"' in (run / "report.html").read_text("utf-8")
    out.write_text("{")  # as an interrupted copy leaves it; it is written anew
    done = Shell(capsys, monkeypatch)("judge", "--replay", RECORDINGS / "calls.jsonl", "--out", out)
    assert done.status == 0 and f"budgets and categories of {run} are left out: {out} is not valid JSON" in done.err
    assert json.loads(out.read_text("utf-8"))["budget"] is None
