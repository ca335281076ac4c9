"""Files of answers to questions: one JSON line per question, ours or FastChat's.

    answers = read_answers("runs/demo/answers/vicuna/federated.jsonl")
    answers.name                     # "demo:federated"
    answers.lines[81].answers        # ("The answer of the first turn …", "… of the second")

A file grows only at its end. The last line of a question is the one that counts, so lines of earlier settings may stand
before it; a torn last line, which a killed process leaves, is not read.

FastChat's lines are {question_id, answer_id, model_id, text} (Vicuna) and {question_id, model_id, choices: [{turns}]}
(MT-bench), of which the first choice is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shepherd.data.json_rows import read_json
from shepherd.errors import DataError, EvaluationError

QuestionId = str | int

SETTINGS = ("run", "arm", "adapter_digest", "base", "base_digest", "endpoint", "dtype", "template", "decoding")
"""Fields that are the same in all lines of a file that count."""
ROLES = ("tools", "system", "user", "assistant", "tool")
"""Of turns before a question; "tools" are those that may be called."""


@dataclass(frozen=True)
class AnswerLine:
    """The answers of one model to the turns of one question.

    turns: the user's texts; empty in files of FastChat, which do not hold them. question_hash: `hash_of` the turns
    and what stands before them. before: the conversation that preceded the first turn, {role, content} each, with
    `extra` (JSON) where a turn calls tools. reference: answers known to be right, by turn. tokens: of
    each answer, as generated; None where an endpoint did not count. cut: the answer ended at the limit of new tokens;
    empty where nobody noted it. key: identifies everything that decides the answers. adapter_digest: "" for the base
    and for models without an adapter. dtype: precision of the base, with the quantisation where there is one.
    endpoint: the host, where the model is behind one. decoding: `max_new_tokens`, `temperature` and, where answers
    are drawn, `top_p` and `seed`.
    """

    question_id: QuestionId
    answers: tuple[str, ...]
    turns: tuple[str, ...] = ()
    question_hash: str = ""
    category: str = ""
    before: tuple[Mapping[str, str], ...] = ()
    reference: tuple[str, ...] = ()
    tokens: tuple[int | None, ...] = ()
    cut: tuple[bool, ...] = ()
    run: str = ""
    arm: str = ""
    adapter_digest: str = ""
    base: str = ""
    base_digest: str = ""
    endpoint: str = ""
    dtype: str = ""
    template: str = ""
    decoding: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""

    @property
    def name(self) -> str:
        """The arm with its run: "demo:federated", "demo@3"; the arm alone where it belongs to no run."""
        return f"{self.run}{'' if self.arm.startswith('@') else ':'}{self.arm}" if self.run else self.arm

    def to_json(self) -> str:
        """The line of a file, without its line break. What only some questions have is left out where it is empty."""
        some = ("before", "reference", "endpoint")
        row = {name: value for name, value in asdict(self).items() if value or name not in some}
        return json.dumps(row, ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True)
class AnswerFile:
    """The answers that count in a file: `lines` by question id, in the order of the file.

    name: "demo:federated", or FastChat's `model_id`.
    """

    file: Path
    name: str
    lines: Mapping[QuestionId, AnswerLine]


def digest_of(hashes: Iterable[tuple[str, str]]) -> str:
    """sha256 (hex) of a question set, over the ids of its questions and the hashes of their texts, in any order."""
    return hashlib.sha256(json.dumps(sorted(hashes), ensure_ascii=False).encode()).hexdigest()


def hash_of(turns: Sequence[str], before: Sequence[Mapping[str, str]] = ()) -> str:
    """sha256 (hex, 16 digits) of the turns of a question, and of a conversation that stands before them."""
    content = [list(turns), *([list(map(dict, before))] if before else [])]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]


def read_answers(path: Path | str) -> AnswerFile:
    """Read a file of answers. Raises DataError for one that is empty or malformed, with the line; EvaluationError for
    lines of different settings, which an interrupted command leaves."""
    file = Path(path)
    lines = {line.question_id: line for line in read_lines(file)}
    first = next(iter(lines.values()))
    for line in lines.values():
        differing = [name for name in SETTINGS if getattr(line, name) != getattr(first, name)]
        if differing:
            raise EvaluationError(
                f"{file}: the answers to {first.question_id!r} and {line.question_id!r} differ in {differing[0]}: "
                f"{getattr(first, differing[0])!r} and {getattr(line, differing[0])!r}",
                hint="repeat the shepherd answer that was interrupted: it adds what is missing",
            )
    return AnswerFile(file, first.name, lines)


def read_lines(file: Path) -> list[AnswerLine]:
    """All lines of a file of answers, in order, those of earlier settings too. Raises DataError as `read_answers`."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"file not found: {file}", hint="shepherd answer writes files of answers") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not a text in UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}") from None
    rows = read_json(file, whole_lines(text)).rows
    if not rows:
        raise DataError(f"{file} has no answers", hint="shepherd answer writes them; FastChat's files are read too")
    found = [_line(f"{file}:{number}", row) for number, row in rows]
    _check_twice(file, found)
    return found


def whole_lines(text: str) -> str:
    """The text of a file of ours without a torn last line: one that has no line break and is not JSON."""
    end = text.rfind("\n") + 1
    try:
        json.loads(text[end:] or "{}")
    except ValueError:
        return text[:end] if ', "answers": [' in text else text
    return text


def _line(where: str, row: Mapping[str, Any]) -> AnswerLine:
    if "answers" in row:
        return _ours(where, row)
    question = _question_id(where, row)
    choices = row.get("choices")
    if isinstance(choices, list) and len(choices) > 1:
        raise DataError(f"{where}: {len(choices)} answers to {question!r}, and nobody knows which is meant",
                        hint="keep one of its choices")  # fmt: skip
    if isinstance(choices, list) and choices and isinstance(choices[0], Mapping):
        answers = _texts(where, "choices[0].turns", choices[0].get("turns"))
    else:
        answers = _texts(where, "text", [row.get("text", row.get("output"))])
    name = row.get("model_id")
    if not isinstance(name, str | int) or name == "":
        raise DataError(f"{where}: an answer without model_id", hint="add the name of the model that gave it")
    return AnswerLine(question, answers, category=str(row.get("category") or ""), arm=str(name))


def _ours(where: str, row: Mapping[str, Any]) -> AnswerLine:
    known = {key: row[key] for key in AnswerLine.__dataclass_fields__ if key in row}
    for name in ("question_hash", "category", "run", "arm", "adapter_digest", "base", "base_digest", "dtype",
                 "endpoint", "template", "key"):  # fmt: skip
        if not isinstance(known.get(name, ""), str):
            raise DataError(f"{where}: {name} is not a text")
    lists = {name: known.get(name, []) for name in ("tokens", "cut", "before", "reference")}
    if not isinstance(known.get("decoding", {}), Mapping) or not all(isinstance(v, list) for v in lists.values()):
        raise DataError(f"{where}: not a line of shepherd answer", hint="restore the file, or write it again")
    for turn in lists["before"]:
        if (
            not isinstance(turn, Mapping)
            or not _all_texts([turn.get("content"), *turn.values()])
            or (turn.get("role") not in ROLES)
        ):
            raise DataError(f"{where}: before is not a list of turns with role and content", hint="write it again")
    return AnswerLine(
        **known
        | {name: tuple(value) for name, value in lists.items()}
        | {
            "question_id": _question_id(where, row),
            "answers": _texts(where, "answers", row["answers"]),
            "turns": _texts(where, "turns", row.get("turns", [])),
            "reference": _texts(where, "reference", lists["reference"]),
        }
    )


def _question_id(where: str, row: Mapping[str, Any]) -> QuestionId:
    found = row.get("question_id")
    if isinstance(found, bool) or not isinstance(found, str | int) or found == "":
        reason = "no question_id" if found is None else f"question_id is {found!r}, not a number or a name"
        raise DataError(f"{where}: {reason}", hint="a line of answers names its question: question_id, and text, "
                        "choices or answers")  # fmt: skip
    return found


def _texts(where: str, name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not _all_texts(value):
        raise DataError(f"{where}: {name} is not text", hint='an answer is a text; an empty one is ""')
    return tuple(value)


def _all_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(text, str) for text in values)


def _check_twice(file: Path, lines: Iterable[AnswerLine]) -> None:
    """In files of others a question stands once: nobody knows which of two answers is meant."""
    seen: dict[QuestionId, AnswerLine] = {}
    for line in lines:
        before = seen.setdefault(line.question_id, line)
        if not line.key and before.answers != line.answers:
            raise DataError(
                f"{file}: question {line.question_id!r} is answered twice, with different texts",
                hint="keep one of the two lines",
            )
