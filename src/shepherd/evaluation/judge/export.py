"""Judgements in FastChat's review format, one file per pair, order and seed, so that its viewers read them.

    {review_id, question_id, answer1_id, answer2_id, text, score, reviewer_id, metadata}

Answer 1 is the one that was shown first. A rating is [score 1, score 2], [-1, -1] where nobody could read it; a verdict
is QLoRA's class 1, 2 or 3 for a tie, or -1.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shepherd.errors import ResourceError
from shepherd.evaluation.judge.formats import Judgement, exchanged
from shepherd.evaluation.judge.orders import winner
from shepherd.evaluation.judge.replay import Recording

_CLASSES = {"a": 1, "b": 2, "tie": 3, None: -1}
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


def export_reviews(recordings: Sequence[Recording], folder: Path) -> list[Path]:
    """Write the judgements of all recordings below `folder`; returns the files.

    Judgements that failed are left out, as they have no text to review. ResourceError: a file cannot be written.
    """
    written: dict[Path, list[str]] = {}
    seen: Counter[tuple[frozenset[str], bool]] = Counter()
    for recording in recordings:
        alike = frozenset((recording.a, recording.b)), recording.scores
        seen[alike] += 1  # another prompt, judge or decoding on the same pair has further files
        for judgement in recording.judgements:
            if judgement.outcome != "failed":
                path = folder / _name(recording, judgement, seen[alike])
                written.setdefault(path, []).append(json.dumps(_review(recording, judgement), ensure_ascii=False))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, lines in written.items():
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"{folder}: {error.strerror or error}", hint="give a folder that can be written") from None
    return list(written)


def _name(recording: Recording, judgement: Judgement, number: int) -> str:
    names = (recording.b, recording.a) if judgement.b_first else (recording.a, recording.b)
    parts = [_NOT_IN_NAMES.sub("-", name) for name in names]
    parts += [] if judgement.seed is None else [f"seed{judgement.seed}"]
    parts += [] if recording.scores else ["threeclass"]
    parts += [] if number == 1 else [str(number)]
    return f"review_{'_'.join(parts)}.jsonl"


def _review(recording: Recording, judgement: Judgement) -> dict[str, Any]:
    shown = exchanged(judgement) if judgement.b_first else judgement
    call = judgement.call
    first, second = shown.answers or _named(recording, judgement)
    score: Any = _CLASSES[winner(shown.points)]
    if recording.scores:
        score = list(shown.points) if shown.points else [-1, -1]
    return {
        "review_id": call.key if call else f"{first}-{second}-{judgement.question}",
        "question_id": judgement.question,
        "answer1_id": first,
        "answer2_id": second,
        "text": call.text if call else "",
        "score": score,
        "reviewer_id": judgement.judge,
        "metadata": dict(_metadata(judgement)),
    }


def _named(recording: Recording, judgement: Judgement) -> tuple[str, str]:
    names = (recording.b, recording.a) if judgement.b_first else (recording.a, recording.b)
    return f"{names[0]}-{judgement.question}", f"{names[1]}-{judgement.question}"


def _metadata(judgement: Judgement) -> Iterator[tuple[str, Any]]:
    if call := judgement.call:
        yield from {
            "prompt": call.prompt, "prompt_hash": call.prompt_hash, "repeat": call.repeat, "seed": call.seed,
            "model": call.answered_model, "time": call.time, **call.decoding,
        }.items()  # fmt: skip
    if judgement.category:
        yield "category", judgement.category
