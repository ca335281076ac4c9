"""Formats of recorded judgements, recognised by the keys of a row.

    fastchat     {question_id, answer1_id, answer2_id, text, score: [a, b]}   FastChat's reviews, QLoRA's relative files
    threeclass   {question_id, answer1_id, answer2_id, text, score: 1|2|3}    QLoRA's pairwise files
    alpaca_eval  {preference: 1…2, …}                                         AlpacaEval's annotations
    llmbar       {output_1, output_2, label, results: [{"swap = False": …}]}  LLMBar's results, both orders
    calls        {key, protocol, prompt_hash, a, b, order, text, …}           calls.jsonl of `shepherd judge`

A recorded score is taken as it is. A score of −1, or an empty preference, stands for a text that nobody could read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from shepherd.evaluation.judge import parsing
from shepherd.evaluation.judge.calls.protocols import reading_of
from shepherd.evaluation.judge.calls.record import Call
from shepherd.evaluation.judge.parsing import Verdict

Points = tuple[float, float]
"""The points of answer a and answer b: their two scores, or 1 for a win, ½ for a tie, 0 for a loss."""
OF_VERDICT: Mapping[Verdict, Points] = parsing.POINTS


class Malformed(Exception):
    """A row that is not of its file's format; the text is the reason."""


@dataclass(frozen=True)
class Judgement:
    """One judgement of a pair of answers.

    points: as recorded, None where nobody could read the judge. reading: the points that our parser reads from the
    text, None where it reads nothing. text: whether there is one. b_first: the judge was shown b's answer first.
    answers: identities of the answers of a and b, ids or hashes; lengths: theirs, in characters. outcome: "refused" or
    "failed" where the judge gave no text. seed: of the training of both, where it is known. judge: its name.
    call: the recorded call, in a file of ours.
    """

    question: str | int
    points: Points | None
    reading: Points | None
    text: bool
    b_first: bool = False
    right: Verdict | None = None
    category: str = ""
    answers: tuple[str, str] | None = None
    lengths: tuple[int, int] | None = None
    seed: int | None = None
    judge: str = ""
    outcome: str = "answered"
    call: Call | None = None


TURNED: Mapping[Verdict, Verdict] = {"a": "b", "b": "a", "tie": "tie"}


def exchanged(judgement: Judgement) -> Judgement:
    """The same judgement with a and b exchanged."""

    def turned(pair: Any) -> Any:
        return pair and pair[::-1]

    return dataclasses.replace(
        judgement,
        points=turned(judgement.points),
        reading=turned(judgement.reading),
        b_first=not judgement.b_first,
        right=judgement.right and TURNED[judgement.right],
        answers=turned(judgement.answers),
        lengths=turned(judgement.lengths),
    )


class Format(NamedTuple):
    """A recorded format: what its rows look like, and how one is read.

    names: what the row calls a and b. judgements: those of a row, which may hold several, from the row and its place
    in the file (from 0). scores: points are ratings, not verdicts. own: each row names its pair and its protocol.
    """

    recognises: Callable[[Mapping[str, Any]], bool]
    names: Callable[[Mapping[str, Any]], tuple[str, str]]
    judgements: Callable[[Mapping[str, Any], int], list[Judgement]]
    scores: bool
    own: bool = False


MOST_POINTS = 1e6
"""Largest score that counts as one."""


def _is_review(row: Mapping[str, Any]) -> bool:
    ids = row.get("answer1_id"), row.get("answer2_id")
    return all(isinstance(one, str | int) and one != "" for one in ids) and ("text" in row or "score" in row)


def _is_threeclass(row: Mapping[str, Any]) -> bool:
    return _is_review(row) and isinstance(row.get("score"), int)


def _answer_ids(row: Mapping[str, Any]) -> tuple[str, str]:
    return str(row["answer1_id"]), str(row["answer2_id"])


def _about(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "answers": _answer_ids(row),
        "judge": str(row.get("reviewer_id", "")),
        "category": str(row.get("category") or ""),
    }


def _question(row: Mapping[str, Any]) -> str | int:
    found = row.get("question_id")
    if isinstance(found, bool) or not isinstance(found, str | int) or found == "":
        raise Malformed(f"question_id is {found!r}, not a number or a name" if found is not None else "no question_id")
    return found


def _text(row: Mapping[str, Any]) -> str | None:
    text = row.get("text")
    if text is not None and not isinstance(text, str):
        raise Malformed(f"text is {type(text).__name__}, not a text")
    return text


def _within(value: Any, low: float, high: float) -> bool:
    """Whether it is a number from low to high; NaN and booleans are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _scored(row: Mapping[str, Any], _: int) -> list[Judgement]:
    text = _text(row)
    reading = parsing.first_line_scores(text) if text is not None else None
    if "score" not in row:
        return [Judgement(_question(row), reading, reading, text is not None, **_about(row))]
    score = row["score"]
    pair = score if isinstance(score, list) and len(score) == 2 else [None, None]
    if not all(_within(value, 0, MOST_POINTS) or value == -1 for value in pair):
        raise Malformed(f"score is {_short(score)}, not two numbers, which are −1 where the judge was not understood")
    points = None if -1 in score else (float(score[0]), float(score[1]))
    return [Judgement(_question(row), points, reading, text is not None, **_about(row))]


def _classed(row: Mapping[str, Any], _: int) -> list[Judgement]:
    text, score = _text(row), row["score"]
    classes: dict[int, Points | None] = {
        -1: None, 1: OF_VERDICT["a"], 2: OF_VERDICT["b"], 3: OF_VERDICT["tie"],
    }  # fmt: skip
    if isinstance(score, bool) or not isinstance(score, int) or score not in classes:
        raise Malformed(f"score is {_short(score)}, not 1, 2, 3 or −1")
    verdict = parsing.last_line_class(text) if text is not None else None
    reading = OF_VERDICT[verdict] if verdict else None
    return [Judgement(_question(row), classes[score], reading, text is not None, **_about(row))]


def _generators(row: Mapping[str, Any]) -> tuple[str, str]:
    return str(row.get("generator_1") or "output_1"), str(row.get("generator_2") or "output_2")


def _preferred(row: Mapping[str, Any], place: int) -> list[Judgement]:
    """A preference p from 1 (a) to 2 (b) gives 2 − p and p − 1 points; 0 is AlpacaEval 1's tie."""
    value = row["preference"]
    about: dict[str, Any] = {"category": str(row.get("dataset") or ""), "lengths": _lengths(row)}
    if value is None or value == -1 or (isinstance(value, float) and math.isnan(value)):
        return [Judgement(place, None, None, False, **about)]
    if not _within(value, 1, 2) and (value != 0 or isinstance(value, bool)):
        raise Malformed(f"preference is {_short(value)}, not 0 or a number from 1 to 2")
    points = OF_VERDICT["tie"] if not value else (2.0 - value, value - 1.0)
    return [Judgement(place, points, None, False, **about)]


def _lengths(row: Mapping[str, Any]) -> tuple[int, int] | None:
    """Characters of the two outputs, from the texts or as recorded."""
    counts = [
        len(row[f"output_{n}"]) if isinstance(row.get(f"output_{n}"), str) else row.get(f"length_{n}") for n in (1, 2)
    ]
    known = [count for count in counts if isinstance(count, int) and not isinstance(count, bool) and count >= 0]
    return (known[0], known[1]) if len(known) == 2 else None


def _is_llmbar(row: Mapping[str, Any]) -> bool:
    return {"output_1", "output_2", "results"} <= row.keys()


def _both_orders(row: Mapping[str, Any], place: int) -> list[Judgement]:
    """Winners are recorded by answer, texts by position: with `swap = True` the first position is b's."""
    winners: dict[str, Points] = {"1": OF_VERDICT["a"], "2": OF_VERDICT["b"]}
    labels: dict[Any, Verdict] = {1: "a", 2: "b"}
    if (label := row.get("label")) not in (None, 1, 2):
        raise Malformed(f"label is {_short(label)}, not 1 or 2")
    if not isinstance(row["results"], list) or not row["results"]:
        raise Malformed("results is not a list of judgements")
    found = []
    for result in row["results"]:
        for swap in (False, True):
            one = result.get(f"swap = {swap}") if isinstance(result, dict) else None
            if not isinstance(one, dict):
                raise Malformed(f"results has no judgement 'swap = {swap}'")
            completion = one.get("completion")
            text = completion[0] if isinstance(completion, list) and completion else completion
            verdict = parsing.preferred_output(text) if isinstance(text, str) else None
            reading = OF_VERDICT[verdict] if verdict else None
            reading = (reading[1], reading[0]) if reading and swap else reading
            points = winners.get(str(one.get("winner")))
            found.append(
                Judgement(place, points, reading, isinstance(text, str), swap, labels.get(label), lengths=_lengths(row))
            )
    return found


def _is_call(row: Mapping[str, Any]) -> bool:
    return {"key", "protocol", "prompt_hash", "order"} <= row.keys()


def call_of(row: Mapping[str, Any]) -> Call:
    """A row of calls.jsonl. Raises Malformed."""
    try:
        return Call.from_row(row)
    except ValueError as reason:
        raise Malformed(str(reason)) from None


def judgement_of(call: Call) -> Judgement:
    """What a call says of a and b, in the order of the pair, whichever was shown first."""
    reading = reading_of(call)
    b_first = call.order == "ba"
    reading = (reading[1], reading[0]) if reading and b_first else reading
    return Judgement(
        call.question,
        reading,
        reading,
        call.outcome == "answered",
        b_first,
        category=call.category,
        answers=(call.a_answer, call.b_answer) if call.a_answer and call.b_answer else None,
        lengths=(call.a_chars, call.b_chars) if call.a_answer and call.b_answer else None,
        seed=call.seed,
        judge=call.model,
        outcome=call.outcome,
        call=call,
    )


def _short(value: Any) -> str:
    return text if len(text := repr(value)) <= 60 else f"{text[:57]}…"


FORMATS: Mapping[str, Format] = {
    "calls": Format(
        _is_call,
        lambda row: (str(row["a"]), str(row["b"])),
        lambda row, _: [judgement_of(call_of(row))],
        scores=True,
        own=True,
    ),
    "threeclass": Format(_is_threeclass, _answer_ids, _classed, scores=False),
    "fastchat": Format(_is_review, _answer_ids, _scored, scores=True),
    "llmbar": Format(_is_llmbar, lambda _: ("output_1", "output_2"), _both_orders, scores=False),
    "alpaca_eval": Format(lambda row: "preference" in row, _generators, _preferred, scores=False),
}
"""Recorded formats by name; a file has the first one that recognises its first row."""
