"""What other files add to recordings, and recordings as files of FastChat's reviews."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shepherd.errors import DataError, ResourceError
from shepherd.evaluation.judge.export import export_reviews
from shepherd.evaluation.judge.pairs import totals
from shepherd.evaluation.judge.replay import read, read_pairs
from shepherd.evaluation.judge.supplement import Answered, read_categories, with_categories

RECORDINGS = Path(__file__).parent / "recordings"


def lines(file: Path, *rows: dict) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def test_calls_are_exported_as_reviews_that_read_as_the_same_points(tmp_path):
    ratings, verdicts = read_pairs(RECORDINGS / "calls.jsonl")
    files = export_reviews([ratings, verdicts], tmp_path / "reviews")
    assert sorted(file.name for file in files) == [
        "review_base_federated_seed0.jsonl", "review_centralised_federated_seed0_threeclass.jsonl",
        "review_federated_base_seed0.jsonl", "review_federated_centralised_seed0_threeclass.jsonl",
    ]  # fmt: skip
    for recording in (ratings, verdicts):
        orders = [[], []]
        for judgement in recording.judgements:
            orders[judgement.b_first].append(judgement.points)
        for b_first, kept in enumerate(orders):
            a, b = (recording.b, recording.a) if b_first else (recording.a, recording.b)
            kind = "" if recording.scores else "_threeclass"
            back = read(tmp_path / "reviews" / f"review_{a}_{b}_seed0{kind}.jsonl")
            assert back.format == ("fastchat" if recording.scores else "threeclass")
            points = [one.points[::-1] if one.points and b_first else one.points for one in back.judgements]
            assert points == kept
    first = json.loads((tmp_path / "reviews/review_base_federated_seed0.jsonl").read_text("utf-8").splitlines()[0])
    assert first.keys() >= {"review_id", "question_id", "answer1_id", "answer2_id", "text", "score", "reviewer_id"}
    assert first["score"] == [6, 8] and first["text"].endswith("SCORES: 6 8") and first["reviewer_id"] == "judge"


def test_a_pair_that_was_judged_by_two_prompts_is_exported_to_files_of_each(tmp_path):
    rows = [json.loads(line) for line in (RECORDINGS / "calls.jsonl").read_text("utf-8").splitlines()]
    rows += [row | {"key": f"{row['key']}+", "prompt": "other", "prompt_hash": "1f"} for row in rows]
    recordings = read_pairs(lines(tmp_path / "calls.jsonl", *rows))
    files = export_reviews(recordings, tmp_path / "reviews")
    once = export_reviews(read_pairs(RECORDINGS / "calls.jsonl"), tmp_path / "once")
    assert len(files) == 2 * len(once) and tmp_path / "reviews" / "review_base_federated_seed0_2.jsonl" in files
    assert [len(file.read_text("utf-8").splitlines()) for file in sorted(files)[:2]] == [3, 3]


def test_an_export_over_a_file_is_refused(tmp_path):
    (tmp_path / "reviews").write_text("")
    with pytest.raises(ResourceError, match="reviews"):
        export_reviews(read_pairs(RECORDINGS / "calls.jsonl"), tmp_path / "reviews")


def test_answers_give_names_and_lengths_and_questions_their_categories(tmp_path):
    recording = read(RECORDINGS / "fastchat.jsonl")
    ids = [one.answers for one in recording.judgements]
    answers = lines(
        tmp_path / "answers.jsonl",
        *({"answer_id": a, "model_id": "fox", "text": "four"} for a, _ in ids),
        *({"answer_id": b, "model_id": "owl", "text": "eleven"} for _, b in ids[:-1]),
    )
    found = Answered.read([answers]).added_to(recording)
    assert (found.a, found.b) == ("fox", recording.b), "not all answers of b are known"
    assert found.judgements[0].lengths == (4, 6) and found.judgements[-1].lengths is None
    assert totals(found) == totals(recording)
    questions = lines(tmp_path / "questions.jsonl", {"question_id": 1, "category": "generic"}, {"question_id": 2})
    named = with_categories(recording, read_categories(questions))
    assert [one.category for one in named.judgements][:2] == ["generic", ""]


def test_files_without_what_is_wanted_are_refused(tmp_path):
    bare = lines(tmp_path / "bare.jsonl", {"question_id": 1, "text": "…"})
    with pytest.raises(DataError, match=r"bare.jsonl:1: an answer without answer_id"):
        Answered.read([bare])
    with pytest.raises(DataError, match="no question has question_id and category"):
        read_categories(bare)
    with pytest.raises(DataError, match="file not found"):
        read_categories(tmp_path / "none")
