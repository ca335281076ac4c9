"""Recordings to the figures of each pair of systems: totals, wins, intervals, what was left out, the effect of order.

One recording is one pair. Verdicts are adjusted over all recordings given together, which are one table.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from shepherd.errors import DataError
from shepherd.evaluation.judge import significance, statistics
from shepherd.evaluation.judge.formats import Judgement, Points
from shepherd.evaluation.judge.replay import Recording
from shepherd.evaluation.judge.statistics import Comparison, Estimate
from shepherd.rng import stream

BCA_SEED = 0
"""Seed of the resamples of the BCa interval of ratings, in the stream ("judge", "bca")."""


def summarise(recordings: Sequence[Recording], margin: float | None = None) -> dict[str, Any]:
    """{"pairs": [one entry per recording], "orders": [one per two recordings that show one pair in both orders]}.

    DataError: a recording without a single question that has points.
    """
    compared = statistics.table([_comparison(recording, margin) for recording in recordings])
    entries = [_entry(recording, found) for recording, found in zip(recordings, compared, strict=True)]
    return {"pairs": entries, "orders": list(both_orders(recordings))}


def _comparison(recording: Recording, margin: float | None) -> Comparison:
    """Of the mean points of each question; the ratios of sums are those of all judgements."""
    questions = list(points_of_questions(recording.judgements).values())
    if not questions:
        raise DataError(
            f"{recording.file}: none of its {len(recording.judgements)} judgements has a score or a verdict"
        )
    a, b = (np.array([float(np.mean([points[side] for points in each])) for each in questions]) for side in (0, 1))
    found = statistics.compare(a, b, margin)
    a, b = _sums(recording)
    relative, inverse = (statistics.relative_score(x[None], y[None]) for x, y in ((a, b), (b, a)))
    total_a, total_b = totals(recording)
    return dataclasses.replace(found, total_a=total_a, total_b=total_b, relative=relative, inverse=inverse)


def points_of_questions(judgements: Iterable[Judgement]) -> dict[str | int, list[Points]]:
    """The recorded points of each question, in order of first appearance; judgements without points are left out."""
    found: dict[str | int, list[Points]] = defaultdict(list)
    for judgement in judgements:
        if judgement.points is not None:
            found[judgement.question].append(judgement.points)
    return dict(found)


def totals(recording: Recording) -> Points:
    """The recorded points of a and of b, summed over all judgements that have them."""
    a, b = _sums(recording)
    return math.fsum(a), math.fsum(b)


def _sums(recording: Recording) -> tuple[np.ndarray, np.ndarray]:
    questions = points_of_questions(recording.judgements).values()
    a, b = ([math.fsum(points[side] for points in each) for each in questions] for side in (0, 1))
    return np.array(a), np.array(b)


def _entry(recording: Recording, found: Comparison) -> dict[str, Any]:
    a, b = _sums(recording)
    bca = [
        significance.bca_ratio(x, y, stream(BCA_SEED, "judge", "bca")) if recording.scores else None
        for x, y in ((a, b), (b, a))
    ]
    entry: dict[str, Any] = {
        "file": recording.file,
        "format": recording.format,
        "a": recording.a,
        "b": recording.b,
        "judgements": len(recording.judgements),
        "questions": found.questions,
        "seeds": found.seeds,
        "orders": len({judgement.b_first for judgement in recording.judgements}),
        "total_a": found.total_a,
        "total_b": found.total_b,
        **_ratio("relative", found.relative, bca[0]),
        **_ratio("inverse", found.inverse, bca[1]),
        "difference": found.difference.value,
        "stderr": found.difference.stderr,
        "degrees": found.difference.degrees,
        "ci95": found.difference.interval(),
        "p": found.p,
        "holm_p": found.holm_p,
        "wilcoxon_p": found.wilcoxon_p,
        "sign_p": found.sign_p,
        "permutation_p": found.permutation_p,
        "equal_p": found.equal_p,
        "smallest_difference": found.smallest,
        "wins": found.wins,
        "losses": found.losses,
        "ties": found.ties,
        "verdict": found.verdict,
        "scope": found.scope,
        **_readings(recording.judgements),
    }
    if not recording.scores:
        entry |= _win_rate(recording)
    if entry["orders"] == 2:
        entry |= _order_effect(recording.judgements)
    if any(judgement.right for judgement in recording.judgements):
        entry["right"] = _right(recording.judgements)
    return entry


def _ratio(name: str, found: Estimate | None, bca: tuple[float, float] | None) -> dict[str, Any]:
    return {
        name: found.value if found else None,
        f"{name}_stderr": found.stderr if found else None,
        f"{name}_ci95": found.interval() if found else None,
        f"{name}_bca95": bca,
    }


def _readings(judgements: Sequence[Judgement]) -> dict[str, int]:
    """Counts of recorded scores left out, of the texts that our parser reads, and of its disagreements with a score."""
    read = [judgement for judgement in judgements if judgement.reading is not None]
    texts = sum(judgement.text for judgement in judgements)
    return {
        "left_out": sum(judgement.points is None for judgement in judgements),
        "texts": texts,
        "unparsed": texts - len(read),
        "disagreements": sum(judgement.points != judgement.reading for judgement in read),
    }


def _win_rate(recording: Recording) -> dict[str, float | None]:
    """The mean points of b, in percent, as AlpacaEval's leaderboards print them, with their standard error."""
    questions = points_of_questions(recording.judgements).values()
    found = statistics.two_way(np.array([[np.mean([points[1] for points in each]) for each in questions]]))
    return {"win_rate": 100 * found.value, "win_rate_stderr": None if found.stderr is None else 100 * found.stderr}


def _order_effect(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """What the answer shown first gains, in points, and the share of questions with one verdict in both orders."""
    orders = [points_of_questions(j for j in judgements if j.b_first is b_first) for b_first in (False, True)]
    gains, same = [], []
    for question in (question for question in orders[0] if question in orders[1]):
        a_first, b_first = (float(np.mean([b - a for a, b in order[question]])) for order in orders)
        gains.append((b_first - a_first) / 2)
        same.append(np.sign(a_first) == np.sign(b_first))
    if not gains:
        return {"first_gain": None, "first_gain_ci95": None, "same_verdict": None}
    found = statistics.two_way(np.array([gains]))
    return {"first_gain": found.value, "first_gain_ci95": found.interval(), "same_verdict": float(np.mean(same))}


def _right(judgements: Sequence[Judgement]) -> dict[str, int]:
    """Of the judgements with a known right answer: right with a shown first, with b first, in both; same in both."""
    counts = {"pairs": 0, "a_first": 0, "b_first": 0, "both": 0, "same": 0}
    labelled = [judgement for judgement in judgements if judgement.right]
    halves = ([j for j in labelled if j.b_first is first] for first in (False, True))
    for one, other in zip(*halves, strict=True):
        hits = [_winner(judgement) == judgement.right for judgement in (one, other)]
        counts["pairs"] += 1
        counts["a_first"] += hits[0]
        counts["b_first"] += hits[1]
        counts["both"] += all(hits)
        counts["same"] += _winner(one) == _winner(other) is not None
    return counts


def _winner(judgement: Judgement) -> str | None:
    if judgement.points is None:
        return None
    a, b = judgement.points
    return "a" if a > b else "b" if b > a else "tie"


def both_orders(recordings: Sequence[Recording]) -> Iterable[Mapping[str, Any]]:
    """Recordings of one pair in both orders: b's share of a's total when shown second and first, and what it gains."""
    left = list(recordings)
    while left:
        one = left.pop(0)
        other = next((r for r in left if (r.a, r.b, r.scores) == (one.b, one.a, one.scores)), None)
        if other is None or one.a == one.b:
            continue
        left.remove(other)
        second, first = (_share(one, 0, 1), _share(other, 1, 0))
        if second is not None and first is not None:
            yield {
                "a": one.a,
                "b": one.b,
                "files": [one.file, other.file],
                "relative_b_second": second,
                "relative_b_first": first,
                "shift": first - second,
            }


def _share(recording: Recording, below: int, above: int) -> float | None:
    sums = totals(recording)
    return sums[above] / sums[below] if sums[below] else None
