"""Recordings to the figures of each pair of systems: totals, wins, intervals, what was left out, the effect of order.

One recording is one pair. Verdicts are adjusted over all recordings given together, which are one table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shepherd.errors import DataError
from shepherd.evaluation.judge import significance, statistics
from shepherd.evaluation.judge.formats import Judgement, Points
from shepherd.evaluation.judge.lengths import length_controlled, length_gaps
from shepherd.evaluation.judge.orders import in_both_orders, order_effect, right_answers
from shepherd.evaluation.judge.points import Matched, matched, repeats_sd
from shepherd.evaluation.judge.replay import Recording
from shepherd.evaluation.judge.statistics import Comparison, Estimate
from shepherd.rng import stream

BCA_SEED = 0
"""Seed of the resamples of the BCa interval of ratings, in the stream ("judge", "bca")."""


def summarise(recordings: Sequence[Recording], margin: float | None = None) -> dict[str, Any]:
    """{"pairs": [one entry per recording], "orders": [one per two recordings that show one pair in both orders]}.

    An entry of "orders" has the figures of both recordings as one comparison under "both", with p adjusted over these
    comparisons; None where no question is in both. DataError: a recording without a single question that has points.
    """
    orders = both_orders(recordings)
    joined = [joint for one, other, joint in in_both_orders(recordings) if _shares(one, other)]
    whole = [bool(matched(joint.judgements).questions) for joint in joined]
    figures = iter(entries([joint for joint, there in zip(joined, whole, strict=True) if there], margin))
    both = [next(figures) if there else None for there in whole]
    return {
        "pairs": entries(recordings, margin),
        "orders": [found | {"both": each} for found, each in zip(orders, both, strict=True)],
    }


def entries(recordings: Sequence[Recording], margin: float | None = None) -> list[dict[str, Any]]:
    """The figures of each recording, with p adjusted over all of them."""
    points = [matched(recording.judgements) for recording in recordings]
    compared = [_comparison(recording, found, margin) for recording, found in zip(recordings, points, strict=True)]
    together = zip(recordings, points, statistics.table(compared), strict=True)
    return [_entry(recording, found, comparison) for recording, found, comparison in together]


def both_orders(recordings: Sequence[Recording]) -> list[dict[str, Any]]:
    """Recordings of one pair in both orders: b's share of a's total when shown second and first, and what it gains."""
    found = []
    for one, other, _ in in_both_orders(recordings):
        if shares := _shares(one, other):
            second, first = shares
            found.append(
                {
                    "a": one.a,
                    "b": one.b,
                    "files": [one.file, other.file],
                    "relative_b_second": second,
                    "relative_b_first": first,
                    "shift": first - second,
                }
            )
    return found


def _shares(one: Recording, other: Recording) -> Points | None:
    """b's total over a's in two orders; None where a has no points in one of them."""
    (a, b_second), (b_first, also_a) = totals(one), totals(other)
    return (b_second / a, b_first / also_a) if a and also_a else None


def totals(recording: Recording) -> Points:
    """The recorded points of a and of b, summed over all judgements in use."""
    return matched(recording.judgements).totals


def _comparison(recording: Recording, found: Matched, margin: float | None) -> Comparison:
    """Of the mean points of each question; the ratios of sums are those of all judgements in use."""
    if not found.questions:
        of = f"{recording.file}, {recording.b} against {recording.a}: "
        if found.one_order:
            raise DataError(f"{of}no question has a score or a verdict in both orders", hint="judge what is missing")
        if len(found.seeds) > 1 and found.lacking and any(one.points for one in recording.judgements):
            raise DataError(f"{of}no question has a score or a verdict under each of {len(found.seeds)} seeds",
                            hint="all seeds are judged on the same questions")  # fmt: skip
        raise DataError(f"{of}none of its {len(recording.judgements)} judgements has a score or a verdict")
    compared = statistics.compare(found.mean_a, found.mean_b, margin)
    total_a, total_b = found.totals
    relative, inverse = (
        statistics.relative_score(x, y) for x, y in ((found.sum_a, found.sum_b), (found.sum_b, found.sum_a))
    )
    return dataclasses.replace(compared, total_a=total_a, total_b=total_b, relative=relative, inverse=inverse)


def _entry(recording: Recording, points: Matched, found: Comparison) -> dict[str, Any]:
    a, b = points.sum_a.sum(axis=0), points.sum_b.sum(axis=0)
    bca = [
        significance.bca_ratio(x, y, stream(BCA_SEED, "judge", "bca")) if recording.scores else None
        for x, y in ((a, b), (b, a))
    ]
    most, sd = repeats_sd(points.used)
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
        "repeats": most,
        "repeats_sd": sd,
        "lengths": _lengths(points),
        "categories": _categories(points),
        **_readings(recording.judgements),
        "one_order": len(points.one_order),
        "lacking": len(points.lacking),
        "superseded": recording.superseded,
    }
    if not recording.scores:
        entry |= _win_rate(points)
    if entry["orders"] == 2:
        entry |= order_effect(points)
        b_first = sum(one.b_first for one in points.used)
        entry["in_order"] = {"a_first": len(points.used) - b_first, "b_first": b_first}
    if any(judgement.right for judgement in recording.judgements):
        entry["right"] = right_answers(recording.judgements)
    return entry


def _ratio(name: str, found: Estimate | None, bca: tuple[float, float] | None) -> dict[str, Any]:
    return {
        name: found.value if found else None,
        f"{name}_stderr": found.stderr if found else None,
        f"{name}_ci95": found.interval() if found else None,
        f"{name}_bca95": bca,
    }


def _lengths(points: Matched) -> dict[str, Any] | None:
    """Mean characters of the answers, and the difference at equal lengths; None where a length is not recorded."""
    known = [judgement.lengths for judgement in points.used if judgement.lengths is not None]
    gaps = length_gaps(points)
    if gaps is None:
        return None
    controlled = length_controlled(points.mean_b - points.mean_a, gaps)
    return {
        "mean_a": float(np.mean([a for a, _ in known])),
        "mean_b": float(np.mean([b for _, b in known])),
        "a_longer": float(np.mean(gaps < 0)),
        "b_longer": float(np.mean(gaps > 0)),
        "controlled": controlled and controlled.controlled.value,
        "controlled_ci95": controlled and controlled.controlled.interval(),
        "controlled_p": controlled and controlled.controlled.p(),
        "slope": controlled and controlled.slope,
    }


def _categories(points: Matched) -> list[dict[str, Any]]:
    """The difference on the questions of each category, with an interval and without adjustment, in order of first
    appearance; empty where no category is recorded."""
    category = {judgement.question: judgement.category for judgement in points.used}
    found = []
    for name in dict.fromkeys(category.values()) if any(category.values()) else ():
        columns = [place for place, question in enumerate(points.questions) if category[question] == name]
        a, b = points.mean_a[:, columns], points.mean_b[:, columns]
        difference, each = statistics.two_way(b - a), (b - a).mean(axis=0)
        wins, losses = int((each > 0).sum()), int((each < 0).sum())
        found.append(
            {
                "category": name,
                "questions": len(columns),
                "mean_a": float(a.mean()),
                "mean_b": float(b.mean()),
                "difference": difference.value,
                "ci95": difference.interval(),
                "p": difference.p(),
                "wins": wins,
                "losses": losses,
                "ties": len(columns) - wins - losses,
            }
        )
    return found


def _readings(judgements: Sequence[Judgement]) -> dict[str, int]:
    """Counts of judgements without points, of the texts that our parser reads, of its disagreements with a score, and
    of judgements without a text."""
    read = [judgement for judgement in judgements if judgement.reading is not None]
    texts = sum(judgement.text for judgement in judgements)
    return {
        "left_out": sum(judgement.points is None for judgement in judgements),
        "texts": texts,
        "unparsed": texts - len(read),
        "disagreements": sum(judgement.points != judgement.reading for judgement in read),
        "refused": sum(judgement.outcome == "refused" for judgement in judgements),
        "failed": sum(judgement.outcome == "failed" for judgement in judgements),
    }


def _win_rate(points: Matched) -> Mapping[str, float | None]:
    """The mean points of b, in percent, as AlpacaEval's leaderboards print them, with their standard error."""
    found = statistics.two_way(points.mean_b)
    return {"win_rate": 100 * found.value, "win_rate_stderr": None if found.stderr is None else 100 * found.stderr}
