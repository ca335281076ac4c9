"""The contents of judge.json: the figures of all pairs, and what is known of the judge, the questions and the arms.

    found = judged([replay.read(file)], known=Known(questions={"source": "vicuna", "licence": "Apache-2.0"}))

What is not recorded is None, which a reader is shown as "not recorded".
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from shepherd.evaluation.answer_files import digest_of
from shepherd.evaluation.judge import agreement, pairs
from shepherd.evaluation.judge.calls.record import Call
from shepherd.evaluation.judge.labels import Label
from shepherd.evaluation.judge.points import matched
from shepherd.evaluation.judge.replay import Recording

if TYPE_CHECKING:
    from shepherd.evaluation.questions import Bench

UNFIT = "judge not fit"
"""In place of a verdict where the calibration of the judge failed."""
VERSION = 1
"""Of the keys of judge.json; a reader refuses a later one."""


@dataclass(frozen=True)
class Known:
    """What the recordings themselves do not hold.

    questions: source, licence, trained_on (the categories that the arms were trained on). arms: by name,
    adapter_digest, base, base_digest, dtype, template, decoding. budget: equal (whether all trained arms used as much)
    and differences (in words). probes: as `calls.probes.shifts` returns them. calls: cost, currency, cache_hits,
    wall_seconds and whatever adds to those of the recordings. calibration: as `calls.calibration.calibration` returns
    it; a judge that is not fit gives no verdicts.
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
    people = (found for file, each in labels for found in agreement.each_with_people(recordings, each, file))
    figures = pairs.summarise(recordings, margin)
    if known.calibration is not None and not known.calibration.get("fit"):
        for entry in (*figures["pairs"], *(found["both"] for found in figures["orders"] if found["both"])):
            entry["verdict"] = UNFIT
    return {
        "version": VERSION,
        "judge": _judge(recordings) | {"calibration": known.calibration},
        "questions": _questions(recordings, known),
        "arms": _arms(recordings, known),
        "budget": known.budget,
        "margin": margin,
        **figures,
        "left_out": _left_out(recordings),
        "agreement": [*agreement.between_judges(recordings), *people],
        "probes": known.probes,
        "calls": _spent(recordings, known),
    }


def _judge(recordings: Sequence[Recording]) -> dict[str, Any]:
    """As asked and as answered; what only calls of ours record is None for other formats."""
    calls = _calls(recordings)
    times = sorted(call.time for call in calls if call.time)
    prompts = sorted({(call.prompt, call.prompt_hash) for call in calls})
    decoding = {json.dumps(dict(call.decoding), sort_keys=True): dict(call.decoding) for call in calls}
    return {
        "asked": sorted({name for each in recordings for name in agreement.judges_of(each)}) or None,
        "answered": sorted({call.answered_model for call in calls if call.answered_model}) or None,
        "hosts": sorted({urlsplit(call.endpoint).netloc or call.endpoint for call in calls}) or None,
        "first": times[0] if times else None,
        "last": times[-1] if times else None,
        "decoding": list(decoding.values()) or None,
        "prompts": [{"id": name, "sha256": digest} for name, digest in prompts] or None,
        "ignored": sorted({name for call in calls for name in call.ignored}) or None,
    }


def _calls(recordings: Sequence[Recording]) -> list[Call]:
    return [one.call for recording in recordings for one in recording.judgements if one.call is not None]


def _spent(recordings: Sequence[Recording], known: Known) -> dict[str, Any] | None:
    """Calls, requests and tokens of the calls that count, and what else is known; None where nothing is. A call that
    serves several pairs or seeds, as their answers are the same, is one."""
    calls = list({call.key: call for call in _calls(recordings)}.values())
    if not calls:
        return dict(known.calls) or None
    counted = {
        name: sum(each) if (each := [count for call in calls if (count := getattr(call, name)) is not None]) else None
        for name in ("tokens_in", "tokens_out")
    }
    about = {"calls": len(calls), "requests": sum(call.tries for call in calls), **counted}
    return about | {"seconds": sum(call.seconds for call in calls)} | dict(known.calls)


def _questions(recordings: Sequence[Recording], known: Known) -> dict[str, Any]:
    category = {one.question: one.category for recording in recordings for one in recording.judgements}
    counts = Counter(category.values())
    hashes = {str(call.question): call.question_hash for call in _calls(recordings)}
    digest = digest_of(hashes.items()) if hashes and all(hashes.values()) else None
    bench = _bench(digest, known.questions.get("source"))
    return {
        "count": len(category),
        "ids": list(category),
        "categories": dict(counts) if any(category.values()) else None,
        "sha256": digest,
        "source": known.questions.get("source") or (bench and bench.title),
        "licence": known.questions.get("licence") or (bench and bench.licence),
        "trained_on": known.questions.get("trained_on"),
        "reference_answers_shown": len({one.question for recording in recordings for one in recording.judgements
                                    if one.call is not None and one.call.reference}),
    }  # fmt: skip


def _bench(digest: str | None, source: str | None) -> Bench | None:
    """The published question set that these are, or that they are taken from."""
    from shepherd.evaluation.questions import BENCHES

    return next((bench for bench in BENCHES.values() if bench.digest == digest), BENCHES.get(source or ""))


OF_ARM = ("adapter_digest", "base", "base_digest", "dtype", "template", "decoding")


def _arms(recordings: Sequence[Recording], known: Known) -> list[dict[str, Any]]:
    """One entry per arm, in order of first appearance."""
    lengths: dict[str, dict[Any, int]] = {}
    cut: dict[str, dict[Any, bool]] = {}
    for recording in recordings:
        for one in recording.judgements:
            for side, name in enumerate((recording.a, recording.b)):
                measured = lengths.setdefault(name, {})
                if one.lengths:
                    measured[one.seed, one.question] = one.lengths[side]
                if one.call is not None:
                    ended = (one.call.a_cut, one.call.b_cut)[side]
                    cut.setdefault(name, {})[one.seed, one.question] = ended
    return [
        {
            "name": name,
            "mean_characters": _mean(each.values()),
            "cut": _mean(cut.get(name, {}).values()),
            **{key: known.arms.get(name, {}).get(key) for key in OF_ARM},
        }
        for name, each in lengths.items()
    ]


def _mean(values: Collection[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _left_out(recordings: Sequence[Recording]) -> dict[str, Any]:
    """Judgements that count in no figure, and texts that our parser does not read, by arm and by question."""
    by_arm: dict[str, Counter[str]] = {}
    by_question: dict[str, Counter[str]] = {}
    for recording in recordings:
        found = matched(recording.judgements)
        one_order, lacking = set(found.one_order), set(found.lacking)
        for one in recording.judgements:
            reasons = [one.outcome] if one.outcome != "answered" else []
            reasons += ["unparsed"] if one.text and one.reading is None else []
            if one.points is None:
                reasons.append("left out")
            elif one.question in one_order | lacking:
                reasons.append("one order only" if one.question in one_order else "not under every seed")
            for reason in reasons:
                by_question.setdefault(str(one.question), Counter())[reason] += 1
                for name in (recording.a, recording.b):
                    by_arm.setdefault(name, Counter())[reason] += 1
    return {"by_arm": by_arm, "by_question": by_question}
