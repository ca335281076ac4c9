"""The effect of order: what the answer shown first gains, verdicts that turn, one pair in two recordings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from shepherd.evaluation.judge import statistics
from shepherd.evaluation.judge.formats import Judgement, Points, exchanged
from shepherd.evaluation.judge.parsing import Verdict
from shepherd.evaluation.judge.points import Matched, matched
from shepherd.evaluation.judge.replay import Recording


def order_effect(found: Matched) -> dict[str, Any]:
    """What the answer shown first gains, in points, with its interval; wins of b, losses and ties in each order; the
    shares of cells with one verdict in both orders, and with opposite winners. Of a pair judged in both orders."""
    gaps = np.stack([_gaps(found, b_first) for b_first in (False, True)])
    if not gaps.size:
        return {"first_gain": None, "first_gain_ci95": None, "same_verdict": None, "reversed_verdict": None}
    gain = statistics.two_way((gaps[1] - gaps[0]) / 2)
    a_first, b_first = np.sign(gaps)
    return {
        "first_gain": gain.value,
        "first_gain_ci95": gain.interval(),
        "same_verdict": float(np.mean(a_first == b_first)),
        "reversed_verdict": float(np.mean(a_first * b_first < 0)),
        "by_order": {
            name: {
                "wins": int((signs > 0).sum()),
                "losses": int((signs < 0).sum()),
                "ties": int((signs == 0).sum()),
            }
            for name, signs in (("a_first", a_first), ("b_first", b_first))
        },
    }


def _gaps(found: Matched, b_first: bool) -> np.ndarray:
    """b − a in one order, float[seeds, questions]: the mean over repeats."""
    chosen = matched([judgement for judgement in found.used if judgement.b_first is b_first])
    return chosen.mean_b - chosen.mean_a


def right_answers(judgements: Sequence[Judgement]) -> dict[str, int]:
    """Of the judgements with a known right answer: right with a shown first, with b first, in both; same in both."""
    counts = {"pairs": 0, "a_first": 0, "b_first": 0, "both": 0, "same": 0}
    labelled = [judgement for judgement in judgements if judgement.right]
    halves = ([j for j in labelled if j.b_first is first] for first in (False, True))
    for one, other in zip(*halves, strict=True):
        hits = [winner(judgement.points) == judgement.right for judgement in (one, other)]
        counts["pairs"] += 1
        counts["a_first"] += hits[0]
        counts["b_first"] += hits[1]
        counts["both"] += all(hits)
        counts["same"] += winner(one.points) == winner(other.points) is not None
    return counts


def winner(points: Points | None) -> Verdict | None:
    """The answer with more points; None without points."""
    if points is None:
        return None
    a, b = points
    return "a" if a > b else "b" if b > a else "tie"


def in_both_orders(recordings: Sequence[Recording]) -> Iterator[tuple[Recording, Recording, Recording]]:
    """Two recordings of one judge that show one pair in both orders, and both as one in the order of the first."""
    left = list(recordings)
    while left:
        one = left.pop(0)
        other = next((r for r in left if _turned(r) == _kind(one)), None)
        if other is not None and one.a != one.b:
            left.remove(other)
            joined = (*one.judgements, *map(exchanged, other.judgements))
            left_out = one.superseded + other.superseded
            yield one, other, dataclasses.replace(one, judgements=joined, superseded=left_out)


_Kind = tuple[str, str, bool, frozenset[tuple[str, str]]]


def _kind(recording: Recording) -> _Kind:
    """The pair, the kind of its points, and who judged by which prompt."""
    judges = frozenset((one.judge, one.call.prompt_hash if one.call else "") for one in recording.judgements)
    return recording.a, recording.b, recording.scores, judges


def _turned(recording: Recording) -> _Kind:
    a, b, scores, judges = _kind(recording)
    return b, a, scores, judges
