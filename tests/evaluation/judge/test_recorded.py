"""Published figures out of recorded judgements of GPT-4, where they are at hand: in SHEPHERD_DATA or ../shared/data.

Vicuna's blog (lm-sys, 2023), QLoRA (Dettmers et al., 2023, table 6), LLMBar (Zeng et al., 2024), AlpacaEval's
leaderboards.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import statistics
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import stdtrit

from shepherd.evaluation.judge.calls.calibration import calibration, read_labelled
from shepherd.evaluation.judge.orders import exchanged
from shepherd.evaluation.judge.pairs import both_orders, summarise, totals
from shepherd.evaluation.judge.points import matched
from shepherd.evaluation.judge.replay import Recording, read
from shepherd.evaluation.judge.statistics import two_way
from shepherd.evaluation.judge.summary import judged
from shepherd.evaluation.judge.supplement import Answered, read_categories, with_categories
from shepherd.rng import stream

FOLDER = Path(os.environ.get("SHEPHERD_DATA") or Path(__file__).parents[3] / ".." / "shared" / "data") / "judge"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason=f"recorded judgements are not at hand in {FOLDER}")

VICUNA = FOLDER / "fastchat/review/vicuna-13b_20230322-clean-lang"
QLORA = FOLDER / "qlora/ratings-gpt4/vicuna/relative-gpt-3.5"
OPPONENTS = ("llama-13b", "alpaca-13b", "bard", "gpt35")
GOLDENS = json.loads((FOLDER / "goldens.json").read_text(encoding="utf-8")) if FOLDER.exists() else {}


@cache
def vicuna() -> dict[str, dict[str, Any]]:
    """Opponent of Vicuna-13B -> its figures, all four as one table."""
    found = summarise([read(VICUNA / f"review_{name}_vicuna-13b.jsonl") for name in OPPONENTS])
    return dict(zip(OPPONENTS, found["pairs"], strict=True))


def test_the_totals_of_vicunas_blog_are_the_sums_of_the_recorded_scores():
    totals = {name: [pair["total_a"], pair["total_b"]] for name, pair in vicuna().items()}
    assert totals == GOLDENS["vicuna_blog_table_2"]
    assert totals["gpt35"] == [693, 638] and totals["bard"] == [664, 655.5]
    assert all(pair["left_out"] == 0 and pair["unparsed"] == 3 for pair in vicuna().values())


def test_vicuna_is_as_good_as_chatgpt_in_45_percent_and_better_than_llama_in_90():
    chatgpt = vicuna()["gpt35"]
    assert (chatgpt["wins"] + chatgpt["ties"]) / chatgpt["questions"] == 0.45
    assert all(vicuna()[name]["wins"] / 80 > 0.9 for name in ("llama-13b", "alpaca-13b"))


@pytest.mark.parametrize("name", OPPONENTS)
def test_the_statistics_of_the_four_comparisons_are_the_golden_ones_to_every_printed_digit(name):
    pair = vicuna()[name]

    def golden(key: str, digits: str) -> None:
        assert f"{GOLDENS[key][name]:{digits}}" == f"{figures[key]:{digits}}", key

    figures = {
        "relative_scores": pair["relative"],
        "linearised_95_half_width": 1.959964 * pair["relative_stderr"],  # the goldens' interval is normal, ours t
        "paired_t_p": pair["p"],
        "wilcoxon_pratt_p": pair["wilcoxon_p"],
        "holm_of_paired_t": pair["holm_p"],
    }
    golden("relative_scores", ".4f")
    golden("linearised_95_half_width", ".4f")
    for key in ("paired_t_p", "wilcoxon_pratt_p", "holm_of_paired_t"):
        golden(key, ".3e")
    assert [pair["wins"], pair["losses"], pair["ties"]] == GOLDENS["sign_wins_losses_ties"][name]
    # mean, sd, t, sign p, and the BCa interval within 0.01 with the seed of `shepherd judge`
    mean, sd, t, sign, low, high = {
        "llama-13b": ("2.2625", "1.9920", "10.159", "1.41e-19", 1.270, 1.446),
        "alpaca-13b": ("1.5125", "1.1362", "11.906", "2.72e-19", 1.174, 1.257),
        "bard": ("-0.1062", "1.9498", "-0.487", "2.82e-01", 0.924, 1.030),
        "gpt35": ("-0.6875", "1.6057", "-3.830", "1.00e-04", 0.872, 0.954),
    }[name]
    assert f"{pair['difference']:.4f}" == mean and f"{pair['stderr'] * 80**0.5:.4f}" == sd
    assert f"{pair['difference'] / pair['stderr']:.3f}" == t and f"{pair['sign_p']:.2e}" == sign
    assert pair["relative_bca95"] == pytest.approx((low, high), abs=0.01)


def test_bard_loses_more_questions_to_vicuna_and_has_the_higher_total():
    bard = vicuna()["bard"]
    assert bard["wins"] > bard["losses"] and bard["relative"] < 1 and bard["verdict"] == "not distinguishable"


def test_two_teams_had_the_same_80_answers_judged_and_agree_in_81_percent():
    ours = read(VICUNA / "review_gpt35_vicuna-13b.jsonl")
    found = judged([ours, qlora()["vicuna-13b"]["chatgpt_first"]])
    (agreed,) = found["agreement"]
    assert (agreed["items"], agreed["share"], f"{agreed['kappa']:.2f}") == (80, 0.8125, "0.67")
    low, high = agreed["kappa_ci95"]
    assert low < 0.6 and high > 0.75 and agreed["decided_share"] > 0.96


def test_vicuna_loses_to_chatgpt_at_equal_lengths_and_most_in_mathematics():
    answers = Answered.read(sorted((FOLDER / "fastchat/answer").glob("*.jsonl")))
    categories = read_categories(FOLDER / "fastchat/question.jsonl")
    recording = with_categories(answers.added_to(read(VICUNA / "review_gpt35_vicuna-13b.jsonl")), categories)
    (pair,) = summarise([recording])["pairs"]
    assert (pair["a"], pair["b"]) == ("gpt-3.5-turbo:20230327", "vicuna-13b:20230322-clean-lang")
    assert pair["lengths"]["controlled"] < pair["difference"] < 0, "Vicuna's answers are longer, which GPT-4 likes"
    worst = min(pair["categories"], key=lambda each: each["difference"])
    assert (worst["category"], worst["questions"], worst["losses"]) == ("math", 3, 3)
    assert len(pair["categories"]) == 9 and pair["total_b"] == 638


def readings(paths: list[Path]) -> tuple[int, int, int]:
    """Rows, rows that our parser reads, and those of them with another recorded score."""
    judgements = [judgement for path in paths for judgement in read(path).judgements]
    seen = [judgement for judgement in judgements if judgement.reading is not None]
    return len(judgements), len(seen), sum(judgement.points != judgement.reading for judgement in seen)


def test_our_parser_reads_96_percent_of_gpt4s_reviews_and_none_against_its_recorded_score():
    blog = [*VICUNA.glob("*.jsonl"), *VICUNA.parent.glob("others/*.jsonl")]
    assert readings(blog) == (400, 385, 0)
    assert readings([*QLORA.glob("*.jsonl")]) == (5760, 5544, 0) and 5544 / 5760 > 0.96
    assert readings([*FOLDER.glob("llmbar/*result.json")]) == (838, 838, 0)


def test_gpt35s_reviews_are_read_less_often_and_never_against_their_recorded_score():
    assert readings([*VICUNA.parent.glob("gpt-3.5*/*.jsonl")]) == (400, 353, 0)


def test_question_70_is_never_read_as_10_and_4():
    paths = [*VICUNA.parent.rglob("*.jsonl"), *QLORA.glob("*.jsonl")]
    found = {judgement.reading for path in paths for judgement in read(path).judgements if judgement.question == 70}
    assert (10, 4) not in found and len(paths) == 82
    assert any("(10, 4)" in path.read_text(encoding="utf-8") for path in paths)


@cache
def qlora() -> dict[str, dict[str, Recording]]:
    """System -> {"chatgpt_first": …, "system_first": …}. The ids of the answers give the order, not the file's name."""
    answers = (FOLDER / "fastchat/answer/answer_gpt35.jsonl").read_text(encoding="utf-8").splitlines()
    chatgpt = {json.loads(line)["answer_id"] for line in answers}
    found: dict[str, dict[str, Recording]] = {}
    for path in QLORA.glob("*.jsonl"):
        left, right = path.name.removesuffix("-gpt4-reviewer.jsonl").split("-vs-")
        system = (right if left == "gpt-3.5" else left).removesuffix("-vicuna-generations-topp0.9-temp0.7")
        recording = read(path)
        assert (recording.a in chatgpt) != (recording.b in chatgpt)
        found.setdefault(system, {})["chatgpt_first" if recording.a in chatgpt else "system_first"] = recording
    return found


def columns(system: str) -> list[float]:
    """The system's total as a percentage of ChatGPT's, ChatGPT first and system first, as table 6 prints them."""
    return [float(f"{100 * share:.1f}") for share in shares(system)]


def shares(system: str) -> tuple[float, float]:
    """The system's total over ChatGPT's, with ChatGPT shown first and with the system shown first."""
    (chatgpt, second), (first, chatgpt_second) = (totals(recording) for recording in (
        qlora()[system]["chatgpt_first"], qlora()[system]["system_first"]))  # fmt: skip
    return second / chatgpt, first / chatgpt_second


def test_both_orders_of_36_systems_are_there_and_most_names_of_files_have_the_order_wrong():
    assert len(qlora()) == 36 and all(len(orders) == 2 for orders in qlora().values())
    files = [(kind, r.file.name.startswith("gpt-3.5-vs-")) for orders in qlora().values() for kind, r in orders.items()]
    assert sum((kind == "chatgpt_first") != named for kind, named in files) == 66


def test_nineteen_rows_of_qloras_table_6_are_exact_in_both_orders_with_two_known_exceptions():
    table = GOLDENS["qlora_table_6"]["rows"]
    exact = {system for system, printed in table.items() if columns(system) == printed[:2]}
    assert len(table) == 21 and set(table) - exact == {"gpt4", "30b-huggingchat"}
    assert columns("gpt4") == table["gpt4"][1::-1], "printed with its columns exchanged"
    # The row of Open Assistant 33B repeats that of Vicuna-13B, digit for digit; the recording has other figures.
    assert table["30b-huggingchat"] == table["vicuna-13b"] and columns("30b-huggingchat") == [73.4, 85.7]


def test_a_recorded_minus_one_is_in_neither_total_of_twenty_files():
    recordings = [recording for orders in qlora().values() for recording in orders.values()]
    left_out = [sum(judgement.points is None for judgement in recording.judgements) for recording in recordings]
    assert sorted(left_out) == [0] * 52 + [3] * 20


def test_the_answer_shown_first_gains_in_each_of_36_systems_19_points_at_the_median():
    shifts = {system: shares(system)[1] - shares(system)[0] for system in qlora()}  # of its share of ChatGPT's total
    assert len(shifts) == 36 and all(shift > 0 for shift in shifts.values())
    assert round(100 * statistics.median(shifts.values())) == 19
    # Two systems have other ids of answers in the other order, so that the files do not show one pair of answers.
    ordered = [orders[kind] for orders in qlora().values() for kind in ("chatgpt_first", "system_first")]
    found = sorted(both["shift"] for both in both_orders(ordered))
    assert found == sorted(shifts[system] for system in shifts if system not in ("13b-flan", "13b-hh-rlhf"))


NEAR_CHATGPT = ("7b-guanaco", "13b-guanaco", "30b-guanaco", "65b-guanaco", "bard", "vicuna-13b")
SEEN = {  # smallest difference with 80 % power by questions: 1, 3, 5 seeds that do not differ, 3 and 5 that do by 0.3
    20: (1.09, 1.01, 0.99, 1.18, 1.04),
    40: (0.75, 0.68, 0.66, 0.91, 0.77),
    80: (0.50, 0.46, 0.45, 0.83, 0.61),
    160: (0.35, 0.32, 0.31, 0.83, 0.54),
}


@cache
def spread() -> np.ndarray:
    """Differences of six systems from ChatGPT, which are near to it, less their means: the mean of both orders."""
    found = []
    for system in NEAR_CHATGPT:
        orders = qlora()[system]
        both = (*orders["chatgpt_first"].judgements, *map(exchanged, orders["system_first"].judgements))
        points = matched(both)
        found.append((points.mean_b - points.mean_a)[0])
    return np.concatenate([each - each.mean() for each in found])


@pytest.mark.parametrize("questions", SEEN)
def test_the_smallest_differences_of_real_scores_are_those_of_the_table(questions):
    rng, trials = stream(0, "judge", "power table", questions), 1000
    assert f"{spread().std(ddof=1):.2f}" == "1.54" and len(spread()) == 480
    for (seeds, seed_sd), printed in zip([(1, 0), (3, 0), (5, 0), (3, 0.3), (5, 0.3)], SEEN[questions], strict=True):
        lasting, passing = (rng.choice(spread(), (trials, n, questions)) for n in (1, seeds))
        values = 0.7**0.5 * lasting + 0.3**0.5 * passing + rng.normal(0, seed_sd, (trials, seeds, 1))
        found = list(map(two_way, values))
        half = np.array([one.stderr * stdtrit(one.degrees, 0.975) for one in found])
        # A difference is found where it is larger than `half` less the chance deviation: in 80 % of trials above this
        smallest = np.quantile(half - [one.value for one in found], 0.8)
        assert smallest == pytest.approx(printed, abs=0.05), (seeds, seed_sd)


def test_qloras_verdicts_are_read_but_for_thirteen(tmp_path):
    with tarfile.open(FOLDER / "qlora/vicuna-pairwise.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    recordings = [read(path) for path in tmp_path.rglob("*.jsonl")]
    judgements = [judgement for recording in recordings for judgement in recording.judgements]
    assert {recording.format for recording in recordings} == {"threeclass"} and len(recordings) == 56
    assert len(judgements) == 4480 and sum(judgement.points is None for judgement in judgements) == 13
    assert all(judgement.points == judgement.reading for judgement in judgements)
    first, second, tie = (sum(j.points == points for j in judgements) for points in ((1, 0), (0, 1), (0.5, 0.5)))
    assert (first, second, tie) == (2512, 1355, 600)


LLMBAR = ("Natural", "Adversarial-GPTInst", "Adversarial-GPTOut", "Adversarial-Manual", "Adversarial-Neighbor")


@pytest.mark.parametrize("part", LLMBAR)
def test_the_counts_of_llmbar_are_the_recorded_ones(part):
    (found,) = summarise([read(FOLDER / f"llmbar/{part}.gpt-4.vanilla.result.json")])["pairs"]
    recorded = json.loads((FOLDER / f"llmbar/{part}.gpt-4.vanilla.statistics.json").read_text(encoding="utf-8"))
    names = {"a_first": "correct_False", "b_first": "correct_True", "both": "correct_both", "same": "equal"}
    for ours, theirs in names.items():
        assert recorded[theirs].startswith(f"{found['right'][ours]} / {found['right']['pairs']} =")
    assert found["unparsed"] == 0 and found["orders"] == 2


ALPACA = {
    "NullModel": "weighted_alpaca_eval_gpt4_turbo",
    "gpt4_gamed": "weighted_alpaca_eval_gpt4_turbo",
    "claude-2": "weighted_alpaca_eval_gpt4_turbo",
    "alpaca-7b": "alpaca_eval_gpt4",
    "guanaco-65b": "alpaca_eval_gpt4",
}


@pytest.mark.parametrize("model", ALPACA)
def test_the_win_rates_of_alpaca_eval_are_those_of_its_leaderboards(model):
    (found,) = summarise([read(FOLDER / f"alpaca_eval/{model}.{ALPACA[model]}.jsonl")])["pairs"]
    board = (FOLDER / f"alpaca_eval/{ALPACA[model]}_leaderboard.csv").read_text(encoding="utf-8")
    (printed,) = (row for row in csv.DictReader(board.splitlines()) if row[""] == model)
    assert found["win_rate"] == pytest.approx(float(printed["win_rate"]), rel=1e-9)
    assert found["win_rate_stderr"] == pytest.approx(float(printed["standard_error"]), rel=1e-8)
    counts = [found[name] for name in ("wins", "losses", "ties")]
    assert counts == [int(printed[name]) for name in ("n_wins", "n_wins_base", "n_draws")]


@pytest.mark.parametrize(
    ("name", "right", "flips"), [("Natural", 0.955, 0.05), ("Adversarial-Neighbor", 0.7873, 0.0672)]
)
def test_gpt_4_is_calibrated_by_its_recorded_verdicts(name, right, flips):
    """Its statistics file has correct_average 95.5 and 78.73 %, and equal 95 and 93.28 %."""
    file = FOLDER / f"llmbar/{name}.gpt-4.vanilla.result.json"
    pair, labels = read_labelled(file)
    judgements = [dataclasses.replace(one, question=int(one.question) + 1) for one in read(file).judgements]
    found = calibration(judgements, labels)
    assert found["pairs"] == len(pair.items) and found["fit"] is True
    assert (found["accuracy"], found["flips"]) == pytest.approx((right, flips), abs=5e-4)
