"""Files of recorded judgements: recognised by content, read whole, or refused with the lines at fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shepherd.errors import DataError
from shepherd.evaluation.judge.pairs import summarise
from shepherd.evaluation.judge.replay import read

RECORDINGS = Path(__file__).parent / "recordings"


def pair(name: str, folder: Path = RECORDINGS) -> dict:
    (found,) = summarise([read(folder / name)])["pairs"]
    return found


def figures(found: dict, *names: str) -> list:
    return [found[name] for name in names or ("total_a", "total_b", "wins", "losses", "ties", "left_out", "unparsed")]


def test_recorded_scores_are_summed_and_a_recorded_minus_one_is_in_neither_total():
    found = pair("fastchat.jsonl")
    assert (found["format"], found["a"], found["b"]) == ("fastchat", "fox1", "owl1")
    # 8 + 7 + 9 + 6 and 9 + 7 + 6.5 + 8: the scores of question 70 were recorded, though its text is not one to read.
    assert figures(found) == [30, 30.5, 2, 1, 1, 1, 2]
    assert found["relative"] == 30.5 / 30 and found["difference"] == 0.125 and found["questions"] == 4


def test_classes_are_wins_and_ties_of_half_a_point():
    found = pair("threeclass.jsonl")
    assert (found["format"], found["a"], found["b"]) == ("threeclass", "fox1", "owl1")
    assert figures(found) == [1.5, 2.5, 2, 1, 1, 1, 1]
    assert found["win_rate"] == 62.5


def test_preferences_of_alpaca_eval_are_shares_and_zero_is_its_tie():
    found = pair("alpaca_eval.json")
    assert (found["format"], found["a"], found["b"]) == ("alpaca_eval", "baseline", "owl")
    assert figures(found) == [2.25, 2.75, 2, 1, 2, 1, 0]  # 0, 1, 2, 1.5, 1.75 give b ½, 0, 1, ½, ¾
    assert found["win_rate"] == pytest.approx(55)
    # Variance of ½, 0, 1, ½, ¾: (0.05² + 0.55² + 0.45² + 0.05² + 0.2²) / 4 = 0.1375
    assert found["win_rate_stderr"] == pytest.approx(100 * (0.1375 / 5) ** 0.5)


def test_both_orders_of_llmbar_are_compared_and_counted_against_its_labels():
    found = pair("llmbar.json")
    # Item 4 has no verdict with b first; with a first alone it would favour a, so it is in no total.
    assert figures(found) == [3, 3, 1, 1, 1, 1, 1] and (found["orders"], found["one_order"]) == (2, 1)
    assert found["disagreements"] == 0, "with b first, `Output (b)` is a's answer"
    # Right with a first: items 1, 2, 3; with b first: 1, 3, 4; in both: 1, 3. Equal in both: 1, 3.
    assert found["right"] == {"pairs": 4, "a_first": 3, "b_first": 3, "both": 2, "same": 2}
    # Over items 1 to 3: item 2 prefers what it is shown first, a gain of one point.
    assert found["first_gain"] == pytest.approx(1 / 3) and found["same_verdict"] == pytest.approx(2 / 3)


def test_two_orders_without_a_verdict_are_not_the_same_verdict(tmp_path):
    items = json.loads((RECORDINGS / "llmbar.json").read_text(encoding="utf-8"))
    none = {"completion": ["Neither.", "stop"], "winner": None}
    items.append({**items[0], "results": [{"swap = False": none, "swap = True": none}]})
    (tmp_path / "bar.json").write_text(json.dumps(items), encoding="utf-8")
    assert pair("bar.json", tmp_path)["right"] == {"pairs": 5, "a_first": 3, "b_first": 3, "both": 2, "same": 2}


def test_two_files_that_show_one_pair_in_both_orders_give_the_shift_of_the_relative_score():
    recordings = [
        read(RECORDINGS / name) for name in ("fastchat.jsonl", "threeclass.jsonl", "fastchat-exchanged.jsonl")
    ]
    (both,) = summarise(recordings)["orders"]
    assert (both["a"], both["b"]) == ("fox1", "owl1")
    assert both["relative_b_second"] == 30.5 / 30 and both["relative_b_first"] == 40 / 33
    assert both["shift"] == 40 / 33 - 30.5 / 30


def rows_of(name: str) -> list[dict]:
    return [json.loads(line) for line in (RECORDINGS / name).read_text(encoding="utf-8").splitlines()]


def written(folder: Path, rows: list) -> Path:
    path = folder / "recorded.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def test_a_list_and_lines_are_the_same(tmp_path):
    rows = rows_of("fastchat.jsonl")
    (tmp_path / "list.json").write_text(json.dumps(rows), encoding="utf-8")
    assert read(tmp_path / "list.json").judgements == read(RECORDINGS / "fastchat.jsonl").judgements


def test_without_a_recorded_score_the_reading_counts_and_the_unread_is_left_out(tmp_path):
    rows = [{key: value for key, value in row.items() if key != "score"} for row in rows_of("fastchat.jsonl")]
    written(tmp_path, rows)
    # 8 9, 7 7, 9 6.5; questions 70 and 71 are not read
    assert figures(pair("recorded.jsonl", tmp_path)) == [24, 22.5, 1, 1, 1, 2, 2]


def test_a_question_that_was_judged_twice_counts_once(tmp_path):
    first, second = rows_of("fastchat.jsonl")[:2]
    written(tmp_path, [first, {**first, "text": "8 6", "score": [8, 6]}, second])
    found = pair("recorded.jsonl", tmp_path)
    assert figures(found, "questions", "judgements", "total_a", "total_b") == [2, 3, 23, 22]
    assert found["relative"] == 22 / 23 and figures(found, "wins", "losses", "ties") == [0, 1, 1]
    assert found["difference"] == -0.25  # question 1: +1 and −2, question 2: 0


def both_orders(questions: int) -> list[dict]:
    """Rows of two systems by name, each question in both orders; the answer shown first gains two points."""
    return [
        {"question_id": q, "answer1_id": one, "answer2_id": two, "score": [8, 6], "text": "8 6"}
        for q in range(questions) for one, two in (("fox", "owl"), ("owl", "fox"))
    ]  # fmt: skip


def test_a_row_that_names_the_second_system_first_is_turned(tmp_path):
    written(tmp_path, both_orders(3))
    found = pair("recorded.jsonl", tmp_path)
    assert (found["a"], found["orders"], found["difference"], found["first_gain"]) == ("fox", 2, 0, 2)
    assert figures(found, "questions", "total_a", "total_b") == [3, 42, 42]
    rows = rows_of("fastchat.jsonl")[:2]
    turned = {**rows[0], "answer1_id": rows[0]["answer2_id"], "answer2_id": rows[0]["answer1_id"]}
    written(tmp_path, [*rows, {**turned, "text": "again"}, {**rows[1], "text": "again"}])
    found = pair("recorded.jsonl", tmp_path)
    assert (found["orders"], found["questions"], found["one_order"]) == (2, 1, 1), (
        "ids of answers, question by question"
    )


@pytest.mark.parametrize(
    "rows, reason",
    [
        ([*both_orders(2), {**both_orders(1)[0], "answer2_id": "cat"}], "line 5: of fox and cat, not"),
        ([{"preference": 1.9, "generator_1": "g", "generator_2": name} for name in "xxy"], "line 3: of g and y, not"),
        ([{**row, "review_id": "r"} for row in (*both_orders(2), both_orders(1)[0])], "line 5: the review 'r' stands"),
    ],
)  # fmt: skip
def test_a_row_of_another_pair_and_a_row_that_stands_twice_are_malformed(tmp_path, rows, reason):
    written(tmp_path, rows)
    with pytest.raises(DataError, match=reason):
        pair("recorded.jsonl", tmp_path)


def test_a_score_that_differs_from_its_text_is_taken_as_recorded_and_counted(tmp_path):
    first, second = rows_of("fastchat.jsonl")[:2]
    written(tmp_path, [{**first, "score": [9, 8]}, second])
    assert figures(pair("recorded.jsonl", tmp_path), "total_a", "total_b", "disagreements") == [16, 15, 1]


GOOD = rows_of("fastchat.jsonl")[0]
MALFORMED = [
    ({**GOOD, "score": [9]}, "score is [9], not two numbers"),
    ({**GOOD, "score": [9, "8"]}, "score is [9, '8'], not two numbers"),
    ({**GOOD, "score": [9, True]}, "not two numbers"),
    ({**GOOD, "score": [9, -2]}, "not two numbers"),
    ({**GOOD, "score": None}, "score is None, not two numbers"),
    ({**GOOD, "score": [float("nan"), 1]}, "not two numbers"),
    ({**GOOD, "score": [10**400, 1]}, "not two numbers"),
    ({**GOOD, "text": 3}, "text is int, not a text"),
    ({**GOOD, "question_id": None}, "no question_id"),
    ({key: value for key, value in GOOD.items() if key != "question_id"}, "no question_id"),
    ({"instruction": "Name a bird."}, "not a row of the format 'fastchat'"),
    ([1, 2], "list, not an object with keys"),
    ("{", "not JSON"),
    ("[" * 100_000, "not JSON"),
]


@pytest.mark.parametrize(("row", "reason"), MALFORMED, ids=[reason for _, reason in MALFORMED])
def test_a_malformed_line_is_named_with_its_file_and_number(tmp_path, row, reason):
    path = written(tmp_path, [GOOD, "", row, GOOD])
    with pytest.raises(DataError) as error:
        read(path)
    assert error.value.message.startswith(f"{path}, line 3: ") and reason in error.value.message


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"preference": 2.5}, "preference is 2.5"), ({"preference": True}, "preference is True"),
        ({"preference": "m"}, "preference is 'm'"), ({"preference": False}, "preference is False"),
    ],
)  # fmt: skip
def test_a_preference_outside_its_scale_is_malformed(tmp_path, row, reason):
    with pytest.raises(DataError, match=f"line 2: {reason}, not 0 or a number from 1 to 2"):
        read(written(tmp_path, [{"preference": 1}, row]))


def test_many_malformed_lines_are_counted(tmp_path):
    with pytest.raises(DataError) as error:
        read(written(tmp_path, [GOOD, *[{**GOOD, "score": 8}] * 9]))
    assert error.value.message.count(", line ") == 5 and error.value.message.endswith("and 4 more lines")


def test_a_class_that_is_none_is_malformed(tmp_path):
    with pytest.raises(DataError, match="line 2: score is 4, not 1, 2, 3 or −1"):
        read(written(tmp_path, [{**GOOD, "score": 3}, {**GOOD, "score": 4}]))


def test_a_result_of_llmbar_without_both_orders_is_malformed(tmp_path):
    items = json.loads((RECORDINGS / "llmbar.json").read_text(encoding="utf-8"))
    del items[1]["results"][0]["swap = True"]
    (tmp_path / "bar.json").write_text(json.dumps(items), encoding="utf-8")
    with pytest.raises(DataError, match="entry 2: results has no judgement 'swap = True'"):
        read(tmp_path / "bar.json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no recorded judgements"), (b"[]", "no recorded judgements"), (b"not json", "not JSON"),
        (b"[1, 2", "not a list in JSON"), (b"\x1f\x8b\x08\xff", "not a text in UTF-8"),
        (b'{"instruction": "Name a bird."}', "not a known format of recorded judgements: a row has 'instruction'"),
    ],
)  # fmt: skip
def test_a_file_of_no_known_format_is_refused(tmp_path, content, reason):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError) as error:
        read(tmp_path / "file")
    assert str(tmp_path / "file") in error.value.message and reason in error.value.message


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.jsonl"):
        with pytest.raises(DataError, match=path.name):
            read(path)


def test_a_file_where_nothing_was_scored_is_refused(tmp_path):
    with pytest.raises(DataError, match="none of its 1 judgements has a score"):
        summarise([read(written(tmp_path, [{**GOOD, "score": [-1, -1]}]))])
