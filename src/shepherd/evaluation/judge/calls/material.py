"""Answers of runs to pairs of arms: which files, which pairs, and whether both arms answered the same questions.

arms = answers_of(Path("runs/demo"), "vicuna")              # {"federated": AnswerFile, "base": …}
pair_of(arms["base"], arms["federated"], ("base", "federated"), seed=0)
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from shepherd.errors import DataError, UsageError, did_you_mean, plural
from shepherd.evaluation.answer_files import AnswerFile, AnswerLine, read_answers
from shepherd.evaluation.judge.calls.plan import Item, Pair, Shown
from shepherd.evaluation.judge.calls.protocols import FEDIT20
from shepherd.evaluation.judge.calls.quoting import encodable
from shepherd.updates.privacy.publication import place_of

FOLDER = "answers"
TWENTY, ITS_SET = "fedit20", "vicuna"
"""The name of our list of twenty questions, and of the set that it is drawn from."""
NAMED = 5


@dataclass(frozen=True)
class Asked:
    """The questions of a command. name: of the folder of their answers. ids: those that are judged, None for all."""

    name: str
    source: str
    ids: Collection[int] | None = None
    licence: str = ""
    digest: str = ""


def asked(source: str) -> Asked:
    """Our list of twenty, a bench by name, or a file of questions, which is read. Raises DataError for the latter."""
    if source == TWENTY:
        return Asked(ITS_SET, f"{TWENTY}, of {ITS_SET}", FEDIT20)
    if not Path(source).is_file():
        return Asked(source, source)
    from shepherd.evaluation.questions import read_questions

    found = read_questions(Path(source))
    return Asked(found.name, source, None, found.licence, found.digest)


def answers_of(run: Path, questions: Asked) -> dict[str, AnswerFile]:
    """The files of answers of a run to a question set, by arm.

    UsageError: there are none, with the command that writes them.
    """
    name = questions.name
    folder = place_of(run, FOLDER) / name
    files = [read_answers(file) for file in sorted(folder.rglob("*.jsonl"))] if folder.is_dir() else []
    if not files:
        others = sorted(path.name for path in place_of(run, FOLDER).glob("*") if path.is_dir())
        answered = f"; it has answers to {', '.join(others)}" if others else ""
        raise UsageError(
            f"{run} has no answers to {name!r}{answered}.{did_you_mean(name, others)}".removesuffix("."),
            hint=answer_command(run, questions),
        )
    found: dict[str, AnswerFile] = {}
    for file in files:
        arm = next(iter(file.lines.values())).arm
        if arm in found:
            raise DataError(f"{file.file} and {found[arm].file} both hold the answers of {arm}",
                            hint="remove one of them")  # fmt: skip
        found[arm] = file
    return found


def answer_command(run: Path, questions: Asked, arm: str = "") -> str:
    """The command that writes the answers which are missing."""
    name = f"{run}{arm}" if arm.startswith("@") else f"{run}:{arm}" if arm else str(run)
    source = questions.name if questions.ids is not None else questions.source
    return f"shepherd answer {shlex.quote(name)} --questions {shlex.quote(source)}"


def default_pairs(
    run: Path, arms: Mapping[str, AnswerFile], wanted: Collection[str], questions: Asked
) -> list[tuple[str, str]]:
    """(a, federated) for a = base, every local client, centralised: the arms of `wanted`, and any other with answers.

    UsageError: an arm of `wanted` has no answers, with the command that writes them.
    """
    missing = [arm for arm in ("federated", *wanted) if arm not in arms]
    if missing:
        raise UsageError(
            f"{run} has no answers of {', '.join(missing[:NAMED])} to {questions.name!r}",
            hint=answer_command(run, questions, missing[0] if len(missing) == 1 else ""),
        )
    others = [arm for arm in arms if arm != "federated" and "@" not in arm.partition("/")[0]]  # no round
    rank = {"base": 0, "centralised": 2}
    return [(arm, "federated") for arm in sorted(others, key=lambda arm: (rank.get(arm, 1), arm))]


def pair_of(
    a: AnswerFile, b: AnswerFile, names: tuple[str, str], seed: int | None, ids: Collection[int] | None = None
) -> Pair:
    """The questions that both answered. ids: only these.

    DataError: a question that one arm lacks, that differs between them, or whose text no file holds.
    """
    lines = _by_id(a), _by_id(b)
    wanted = {str(number) for number in ids} if ids is not None else lines[0].keys() | lines[1].keys()
    for file, found in zip((a, b), lines, strict=True):
        if lacking := sorted(wanted - found.keys(), key=_in_order):
            raise DataError(
                f"{file.file} lacks the answers to {plural(len(lacking), 'question')}: {', '.join(lacking[:NAMED])}"
                + (", …" if len(lacking) > NAMED else ""),
                hint="repeat the shepherd answer that wrote it: it adds what is missing",
            )
    return Pair(*names, tuple(_item(lines[0][key], lines[1][key], a, b) for key in sorted(wanted, key=_in_order)), seed)


def _by_id(answers: AnswerFile) -> dict[str, AnswerLine]:
    """The lines by the words of their ids, as 81 in one file is "81" in another. DataError: both are in one file."""
    found: dict[str, AnswerLine] = {}
    for key, line in answers.lines.items():
        if found.setdefault(str(key), line) is not line:
            raise DataError(f"{answers.file}: question {str(key)!r} stands there as a number and as a text",
                            hint="give each question its own id")  # fmt: skip
    return found


def _item(one: AnswerLine, other: AnswerLine, a: AnswerFile, b: AnswerFile) -> Item:
    question = one.question_id
    hashes = {line.question_hash for line in (one, other)} - {""}
    if len(hashes) > 1 or len(one.answers) != len(other.answers):
        raise DataError(
            f"question {question!r} is not the same in {a.file} and {b.file}",
            hint="write the answers of both arms anew with shepherd answer, from one file of questions",
        )
    references = {line.reference for line in (one, other) if any(line.reference)}
    if len(references) > 1:
        raise DataError(f"the reference answers to question {question!r} differ in {a.file} and {b.file}",
                        hint="repeat shepherd answer for both: it keeps the answers")  # fmt: skip
    turns = one.turns or other.turns
    if len(turns) != len(one.answers):
        raise DataError(
            f"neither {a.file} nor {b.file} holds the text of question {question!r}",
            hint="one of the two must be a file of shepherd answer, which holds the questions",
        )
    return Item(
        question,
        tuple(map(encodable, turns)),
        _shown(one),
        _shown(other),
        one.category or other.category,
        next(iter(hashes), ""),
        tuple({key: encodable(text) for key, text in turn.items()} for turn in one.before or other.before),
        tuple(map(encodable, next(iter(references), ()))),
    )


def _shown(line: AnswerLine) -> Shown:
    return Shown(tuple(map(encodable, line.answers)), line.name, any(line.cut))


def _in_order(key: str) -> tuple[bool, int, str]:
    return (False, int(key), "") if key.isdecimal() else (True, 0, key)
