"""The contents of judge.json: the figures of all pairs, and what is known of the judge, the questions and the arms.

    found = judged([replay.read(file)], known=Known(questions={"source": "vicuna", "licence": "Apache-2.0"}))

What is not recorded is None, which a reader is shown as "not recorded".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shepherd.evaluation.judge import agreement, pairs
from shepherd.evaluation.judge.labels import Label
from shepherd.evaluation.judge.points import matched
from shepherd.evaluation.judge.replay import Recording

VERSION = 1
"""Of the keys of judge.json; a reader refuses a later one."""


@dataclass(frozen=True)
class Known:
    """What the recordings themselves do not hold.

    questions: source, licence, sha256, trained_on (the categories that the arms were trained on). arms: by name,
    adapter_digest, base, base_digest, dtype, template, decoding, cut (share of answers that ended at their limit).
    budget: equal (whether all trained arms used as much) and differences (in words). probes: shift, shift_ci95, probes,
    and what else was measured. calls: cost, currency, cache_hits, wall_seconds and whatever adds to those of the
    recordings. calibration: accuracy, flips, fit.
    """

    questions: Mapping[str, Any] = field(default_factory=dict)
    arms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    budget: Mapping[str, Any] | None = None
    probes: Mapping[str, Any] | None = None
    calls: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] | None = None


def judged(
    recordings: Sequence[Recording],
    margin: float | None = None,
    labels: Sequence[tuple[str, Sequence[Label]]] = (),
    known: Known | None = None,
) -> dict[str, Any]:
    """Everything that is known of these recordings, with the keys of docs/judge.md.

    labels: people's verdicts by the file that they come from. DataError: a recording has no points.
    """
    known = known or Known()
    people = (agreement.with_people(recordings, each, file) for file, each in labels)
    return {
        "version": VERSION,
        "judge": _judge(recordings) | {"calibration": known.calibration},
        "questions": _questions(recordings, known),
        "arms": _arms(recordings, known),
        "budget": known.budget,
        "margin": margin,
        **pairs.summarise(recordings, margin),
        "left_out": _left_out(recordings),
        "agreement": [*agreement.between_judges(recordings), *(found for found in people if found)],
        "probes": known.probes,
        "calls": dict(known.calls) or None,
    }


def _judge(recordings: Sequence[Recording]) -> dict[str, Any]:
    asked = sorted({name for recording in recordings for name in agreement.judges_of(recording)})
    return {
        "asked": asked or None, "answered": None, "hosts": None, "first": None, "last": None, "decoding": None,
        "prompts": None, "ignored": None,
    }  # fmt: skip


def _questions(recordings: Sequence[Recording], known: Known) -> dict[str, Any]:
    category = {one.question: one.category for recording in recordings for one in recording.judgements}
    counts = Counter(category.values())
    return {
        "count": len(category),
        "ids": list(category),
        "categories": dict(counts) if any(category.values()) else None,
        **{name: known.questions.get(name) for name in ("source", "licence", "sha256", "trained_on")},
    }


_OF_ARM = ("adapter_digest", "base", "base_digest", "dtype", "template", "decoding", "cut")


def _arms(recordings: Sequence[Recording], known: Known) -> list[dict[str, Any]]:
    """One entry per arm, in order of first appearance."""
    lengths: dict[str, dict[Any, int]] = {}
    for recording in recordings:
        for one in recording.judgements:
            for side, name in enumerate((recording.a, recording.b)):
                measured = lengths.setdefault(name, {})
                if one.lengths:
                    measured[one.seed, one.question] = one.lengths[side]
    return [
        {
            "name": name,
            "mean_characters": sum(each.values()) / len(each) if each else None,
            **{key: known.arms.get(name, {}).get(key) for key in _OF_ARM},
        }
        for name, each in lengths.items()
    ]


def _left_out(recordings: Sequence[Recording]) -> dict[str, Any]:
    """Judgements that count in no figure, and texts that our parser does not read, by arm and by question."""
    by_arm: dict[str, Counter[str]] = {}
    by_question: dict[str, Counter[str]] = {}
    for recording in recordings:
        one_order = set(matched(recording.judgements).one_order)
        for one in recording.judgements:
            reasons = [one.outcome] if one.outcome != "answered" else []
            reasons += ["unparsed"] if one.text and one.reading is None else []
            reasons += ["left out"] if one.points is None else ["one order only"] if one.question in one_order else []
            for reason in reasons:
                by_question.setdefault(str(one.question), Counter())[reason] += 1
                for name in (recording.a, recording.b):
                    by_arm.setdefault(name, Counter())[reason] += 1
    return {"by_arm": by_arm, "by_question": by_question}
