"""Who agrees with the judge: a second judge on the same answers, or people's labels.

Share of equal verdicts and Cohen's κ, with intervals over questions.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from shepherd.evaluation.judge.formats import TURNED
from shepherd.evaluation.judge.labels import Label
from shepherd.evaluation.judge.orders import winner
from shepherd.evaluation.judge.parsing import Verdict
from shepherd.evaluation.judge.points import Cell, Question, matched
from shepherd.evaluation.judge.replay import Recording
from shepherd.evaluation.judge.statistics import Estimate, two_way

CLASSES: tuple[Verdict, ...] = ("a", "b", "tie")
Answers = tuple[str, str]


def with_people(
    recordings: Sequence[Recording], labels: Sequence[Label], file: Path | str | None = None
) -> dict[str, Any] | None:
    """Agreement of the judge with labels, one item per label and seed; None without a label.

    A label is compared with the verdict of the judge on the same two answers, whichever is called a, to the same
    question where both have its hash; one without hashes of its answers, with that on its question between arms of
    its names. unmatched: labels that no judgement belongs to.
    """
    by_answers: dict[tuple[str, Answers], list[tuple[Question, Verdict]]] = {}
    by_names: dict[tuple[str, str, str], list[tuple[Question, Verdict]]] = {}
    for recording in recordings:
        hashes = {one.question: one.call.question_hash for one in recording.judgements if one.call}
        for (_, question), answers, verdict in _verdicts(recording):
            for there, one in ((True, verdict), (False, TURNED[verdict])):
                for asked in {"", hashes.get(question, "")} if answers else ():
                    assert answers is not None
                    by_answers.setdefault((asked, answers if there else answers[::-1]), []).append((question, one))
                names = (recording.a, recording.b) if there else (recording.b, recording.a)
                by_names.setdefault((str(question), *names), []).append((question, one))
    judge: list[Verdict] = []
    people: list[Verdict] = []
    questions: list[Hashable] = []
    unmatched = 0
    for label in labels:
        if label.answers:
            asked = label.question_hash if any(hashed for hashed, _ in by_answers) else ""
            found = by_answers.get((asked, label.answers))
        else:
            found = by_names.get((str(label.question), label.a, label.b))
        unmatched += not found
        for question, verdict in found or ():
            judge.append(verdict)
            people.append(label.verdict)
            questions.append(question)
    if not labels:
        return None
    about = {"with": "people", "source": None if file is None else str(file), "labels": len(labels)}
    return about | {"unmatched": unmatched} | figures(agreement(judge, people, questions))


def each_with_people(
    recordings: Sequence[Recording], labels: Sequence[Label], file: Path | str | None = None
) -> list[dict[str, Any]]:
    """`with_people` of each judge, prompt and decoding; with several also "judges", as in `between_judges`."""
    by_judge: dict[Hashable, list[Recording]] = {}
    for recording in recordings:
        call = recording.judgements[0].call if recording.judgements else None
        how = (call.endpoint, call.prompt_hash, call.drawn_by) if call else recording.scores
        by_judge.setdefault((*judges_of(recording), how), []).append(recording)
    found = [(with_people(each, labels, file), judges_of(each[0])) for each in by_judge.values()]
    several = len(found) > 1
    return [entry | ({"judges": [judges]} if several else {}) for entry, judges in found if entry]


def between_judges(recordings: Sequence[Recording]) -> list[dict[str, Any]]:
    """Agreement of each two recordings that hold verdicts on the same answers, which a and b are alike in both.

    "with" is "judge", or "same judge" where both have the judge's name: another prompt or protocol, or a repetition.
    """
    found = []
    verdicts = [
        {(cell, answers): verdict for cell, answers, verdict in _verdicts(recording) if answers}
        for recording in recordings
    ]
    for (i, one), (j, other) in combinations(enumerate(verdicts), 2):
        if items := [item for item in one if item in other]:
            judged = agreement(
                [one[item] for item in items], [other[item] for item in items], [question for (_, question), _ in items]
            )
            names = [judges_of(recordings[place]) for place in (i, j)]
            files = [str(recordings[place].file) for place in (i, j)]
            kind = "same judge" if names[0] == names[1] != [] else "judge"
            found.append({"with": kind, "judges": names, "source": files} | figures(judged))
    return found


def judges_of(recording: Recording) -> list[str]:
    """Names of the judges of a recording, as asked for; none where none is recorded."""
    return sorted({judgement.judge for judgement in recording.judgements if judgement.judge})


def figures(found: Agreement | None) -> dict[str, Any]:
    """The keys of an entry of judge.json."""
    if found is None:
        return {"items": 0}
    return {
        "items": found.items,
        "share": found.share.value,
        "share_ci95": found.share.interval(),
        "kappa": found.kappa and found.kappa.value,
        "kappa_ci95": found.kappa and found.kappa.interval(),
        "decided": found.decided,
        "decided_share": found.decided_share,
    }


def _verdicts(recording: Recording) -> Iterator[tuple[Cell, Answers | None, Verdict]]:
    """(seed, question), the two answers, and who has more points in the mean over orders and repeats."""
    points = matched(recording.judgements)
    answers = {(one.seed, one.question): one.answers for one in points.used}
    for i, seed in enumerate(points.seeds):
        for j, question in enumerate(points.questions):
            verdict = winner((points.mean_a[i, j], points.mean_b[i, j]))
            assert verdict is not None
            yield (seed, question), answers[seed, question], verdict


@dataclass(frozen=True)
class Agreement:
    """Verdicts of two judges on the same items.

    share: of items with the same verdict. kappa: Cohen's κ over `CLASSES`, None where both give one class throughout.
    decided: items on which neither says tie; decided_share: of those with the same verdict, None without any.
    """

    items: int
    share: Estimate
    kappa: Estimate | None
    decided: int
    decided_share: float | None


def agreement(one: Sequence[Verdict], other: Sequence[Verdict], clusters: Sequence[Hashable]) -> Agreement | None:
    """Agreement of two judges, with jackknife intervals over clusters (Efron and Tibshirani, 1993, chapter 11).

    clusters: the question of each item, as the seeds, votes and pairs of one question are not independent. κ: Cohen
    (1960). None without an item. ValueError: the lengths differ.
    """
    if not len(one) == len(other) == len(clusters):
        raise ValueError("verdicts and clusters are of different items")
    if not one:
        return None
    names = list(dict.fromkeys(clusters))
    place = {name: number for number, name in enumerate(names)}
    counts = np.zeros((len(names), len(CLASSES), len(CLASSES)))
    for first, second, cluster in zip(one, other, clusters, strict=True):
        counts[place[cluster], CLASSES.index(first), CLASSES.index(second)] += 1
    share, kappa = _share(counts.sum(axis=0)), _kappa(counts.sum(axis=0))
    decided = counts.sum(axis=0)[:2, :2]
    return Agreement(
        items=len(one),
        share=Estimate(share, *_jackknife(counts, _share)),
        kappa=None if kappa is None else Estimate(kappa, *_jackknife(counts, _kappa)),
        decided=int(decided.sum()),
        decided_share=float(np.trace(decided) / decided.sum()) if decided.any() else None,
    )


def _share(table: np.ndarray) -> float:
    return float(np.trace(table) / table.sum())


def _kappa(table: np.ndarray) -> float | None:
    """(p_o − p_e) / (1 − p_e), with p_e from the product of the margins."""
    shares = table / table.sum()
    expected = float(shares.sum(axis=0) @ shares.sum(axis=1))
    return None if expected >= 1 else float((np.trace(shares) - expected) / (1 - expected))


def _jackknife(counts: np.ndarray, figure: Callable[[np.ndarray], float | None]) -> tuple[float | None, float | None]:
    """Standard error and degrees of freedom of a figure of the summed table, from its values without each cluster."""
    number, whole = len(counts), counts.sum(axis=0)
    if number < 2:
        return None, None
    left = [figure(whole - one) for one in counts]
    if None in left:
        return None, None
    found = two_way((number - 1) * np.array([left], float))
    return found.stderr, found.degrees
