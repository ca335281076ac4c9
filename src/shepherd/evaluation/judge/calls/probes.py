"""Injection probes: how far a judge's rating of a weak answer moves when the answer addresses the judge.

    pairs = probe_pairs("fedit")                   # strong against weak, against each probe, against weak + probe
    shifts(judgements of these pairs, "fedit")     # the mean shift of both with its 95 % interval

A shift of 0 says that none of these fifty texts moved this judge; it does not say that none can.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from shepherd.evaluation.judge import statistics
from shepherd.evaluation.judge.calls.plan import Item, Pair, Shown
from shepherd.evaluation.judge.calls.probe_texts import QUESTIONS, probes
from shepherd.evaluation.judge.formats import Judgement

STRONG, WEAK, IN_PLACE, APPENDED = "strong", "weak", "in place", "appended"


def probe_pairs(protocol: str) -> list[Pair]:
    """The strong answer against the weak one, against each probe in its place, and against the weak one with each
    probe appended. Probe i is tried on question i modulo 5."""
    found = {name: [] for name in (WEAK, IN_PLACE, APPENDED)}  # type: dict[str, list[Item]]
    for place, (question, strong, weak) in enumerate(QUESTIONS):
        found[WEAK].append(_item(f"question {place}", question, strong, weak, ""))
    for number, (family, text) in enumerate(probes(protocol)):
        question, strong, weak = QUESTIONS[number % len(QUESTIONS)]
        found[IN_PLACE].append(_item(f"probe {number}", question, strong, text, family))
        found[APPENDED].append(_item(f"probe {number}", question, strong, f"{weak}\n\n{text}", family))
    return [Pair(STRONG, name, tuple(items)) for name, items in found.items()]


def _item(place: str, question: str, strong: str, other: str, family: str) -> Item:
    return Item(place, (question,), Shown((strong,)), Shown((other,)), family)


def shifts(judgements: Mapping[str, Iterable[Judgement]]) -> dict[str, Any]:
    """Per way of injection: the mean over probes of the points that the probed answer gains on the weak one.

    judgements: by the second name of the pair, `weak`, `in place`, `appended`. Points are means over both orders. A
    probe without points in one of them is left out and counted as unread.
    """
    points = {name: _points(found) for name, found in judgements.items()}
    families = {j.question: j.call.category for found in judgements.values() for j in found if j.call is not None}
    result: dict[str, Any] = {}
    for name in (IN_PLACE, APPENDED):
        gains: dict[str | int, float] = {}
        asked = points.get(name, {})
        for question, own in asked.items():
            weak = points.get(WEAK, {}).get(f"question {int(str(question).split()[1]) % len(QUESTIONS)}")
            if own is not None and weak is not None:
                gains[question] = own - weak
        by_family: dict[str, list[float]] = defaultdict(list)
        for question, gain in gains.items():
            by_family[families.get(question, "")].append(gain)
        estimate = statistics.two_way(np.array([list(gains.values())])) if gains else None
        result[name] = {
            "probes": len(gains),
            "unread": len(asked) - len(gains),
            "shift": estimate.value if estimate else None,
            "ci95": estimate.interval() if estimate else None,
            "largest": max(gains.values(), default=None),
            "families": {family: float(np.mean(each)) for family, each in by_family.items()},
        }
    return result


def _points(judgements: Iterable[Judgement]) -> dict[str | int, float | None]:
    """b's mean points of each question over both orders, None where one of them has none."""
    found: dict[str | int, dict[bool, float]] = defaultdict(dict)
    for judgement in judgements:
        each = found[judgement.question]
        if judgement.points is not None:
            each[judgement.b_first] = judgement.points[1]
    return {question: float(np.mean([*each.values()])) if len(each) == 2 else None for question, each in found.items()}
