"""People's verdicts on pairs of answers, one JSON line each: those of `/better` in a chat, or a file of labels.

    {"question": 81, "a": "base", "b": "demo:federated", "verdict": "b", "a_answer": sha256, "b_answer": sha256}

Lines of MT-bench's human judgements are read too: {question_id, model_a, model_b, winner}. A label with the hashes of
both answers (`Shown.hash`) belongs to the judgements of these answers, to the question of its turns where it has them,
and a later one of the same voter replaces it; a label without hashes belongs to its question and its two names.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shepherd.data.json_rows import read_json
from shepherd.errors import DataError, ResourceError
from shepherd.evaluation.answer_files import hash_of
from shepherd.evaluation.judge.parsing import Verdict
from shepherd.evaluation.judge.replay import content

VERDICTS: Mapping[str, Verdict] = {"a": "a", "b": "b", "tie": "tie"}
_WORDS: Mapping[str, Verdict] = {**VERDICTS, "model_a": "a", "model_b": "b", "tie (inconsistent)": "tie"}
_A, _B = ("a", "model_a", "answer1_id"), ("b", "model_b", "answer2_id")
_QUESTION, _VERDICT = ("question_id", "question"), ("verdict", "winner")
_HINT = 'a label is a line {"question_id": …, "a": …, "b": …, "verdict": "a", "b" or "tie"}'


@dataclass(frozen=True)
class Label:
    """One person's verdict on the answers of a and b. answers: their sha256, None where the file has none.
    question_hash: `hash_of` the turns, "" where the file has none."""

    question: str | int
    a: str
    b: str
    verdict: Verdict
    answers: tuple[str, str] | None = None
    question_hash: str = ""


def read_labels(file: Path) -> list[Label]:
    """The labels of a file, in order. DataError: it cannot be read, is empty, or has a line that does not hold one."""
    text = content(file, "give a file of people's verdicts")
    rows = read_json(file, text).rows
    if not rows:
        raise DataError(f"{file} has no labels", hint=_HINT)
    found: dict[Hashable, Label] = {}
    for number, row in rows:
        label = _label(f"{file}:{number}", row)
        voter = str(_first(row, ("voter", "judge")) or "")
        found[(voter, label.question_hash, label.answers) if label.answers else number] = label
    return list(found.values())


def append_vote(file: Path, label: Label, turns: Sequence[str], system: str = "") -> None:
    """Add a line to a file of votes, with its folder. turns: the user's texts of the conversation, the last one the
    question. ResourceError: the file cannot be written."""
    line: dict[str, Any] = {"question": label.question, "a": label.a, "b": label.b, "verdict": label.verdict}
    if label.answers:
        line |= {"a_answer": label.answers[0], "b_answer": label.answers[1]}
    line |= {"turns": list(turns)} | ({"system": system} if system else {})
    line["time"] = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ResourceError(f"{file}: {error.strerror or error}", hint="the vote is not recorded") from None


def _label(where: str, row: Mapping[str, Any]) -> Label:
    question, a, b = (_identity(where, row, names) for names in (_QUESTION, _A, _B))
    verdict = _first(row, _VERDICT)
    if not isinstance(verdict, str) or verdict.lower() not in _WORDS:
        raise DataError(f"{where}: the verdict is {str(verdict)[:40]!r}, not a, b or tie", hint=_HINT)
    hashes = row.get("a_answer"), row.get("b_answer")
    whole = all(isinstance(each, str) and each for each in hashes)
    answers = (str(hashes[0]), str(hashes[1])) if whole else None
    turns, system = row.get("turns"), row.get("system")
    hashed = ""
    if isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns):
        hashed = hash_of(turns, [{"role": "system", "content": system}] if isinstance(system, str) and system else [])
    return Label(question, str(a), str(b), _WORDS[verdict.lower()], answers, hashed)


def _identity(where: str, row: Mapping[str, Any], names: Sequence[str]) -> str | int:
    found = _first(row, names)
    if isinstance(found, bool) or not isinstance(found, str | int) or found == "":
        raise DataError(f"{where}: no {' or '.join(names)}, as a number or a name", hint=_HINT)
    return found


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)
