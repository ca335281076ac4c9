"""Answers of the arms of runs, and of other models, to questions: generated, or read back, and written.

    answer(arms_of(Path("runs/demo")), load_questions("vicuna"), AnswerDecoding(max_new_tokens=256))

Lines are appended and flushed batch by batch. A line whose key is already in a file of the runs that are named, the
base's in another run included, is copied and not generated again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shepherd.errors import NetworkError, ShepherdError, UsageError, plural
from shepherd.evaluation.answer_files import AnswerLine, read_lines
from shepherd.evaluation.judge.calls.faults import FINAL, CallError
from shepherd.evaluation.question_rows import Question
from shepherd.evaluation.questions import QuestionSet
from shepherd.experiment.held_out_questions import held_out_questions
from shepherd.serving.answering import (
    AnswerDecoding,
    AnsweringModel,
    EndpointModel,
    LocalModel,
    Reply,
    answer_batch,
    check_window,
)
from shepherd.serving.answering_models import BASE, SharedBase, run_model
from shepherd.store.adapters import FEDERATED, ArmName, KeptAdapter, find_adapter, kept_adapters
from shepherd.store.disk import DISK, make_folders
from shepherd.store.lines import append
from shepherd.updates.privacy.publication import place_of

FOLDER = "answers"
"""The folder of a run that holds answers, and the default place of those of other models."""

Note = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """A model that is to answer. place: the folder that holds its files, by question set; file: the name there.

    run: the folder of its run, or None. arm: "federated", "local/NAME", "@3", or the name of a model without a run.
    load: the model, on the base that is shared where it is the same.
    """

    arm: str
    place: Path
    file: str
    load: Callable[[SharedBase], AnsweringModel]
    run: Path | None = None

    @property
    def name(self) -> str:
        """As in the lines: "demo:federated", "demo@3", or the arm alone."""
        return AnswerLine("", (), run=self.run_name, arm=self.arm).name

    @property
    def run_name(self) -> str:
        return self.run.resolve().name if self.run is not None else ""


@dataclass(frozen=True)
class Answered:
    """What happened to one model: its file, and how many answers were generated, and read back; and how many were cut.

    tokens: mean over the answers of all turns, None where nobody counted.
    """

    name: str
    file: Path
    questions: int
    generated: int
    reused: int
    cut: int
    tokens: float | None


def asked_of(arm: ArmName) -> Asked:
    """An arm of a run, "base" included. Raises UsageError where the run does not hold it."""
    if arm.arm == BASE and arm.round is None and not arm.client:
        return _of_run(arm, BASE, BASE)
    kept = find_adapter(arm)
    return _kept(arm.run, kept)


def arms_of(run: Path) -> list[Asked]:
    """The arms that the default pairs need: federated, base, every kept client alone, centralised where it is there.

    Raises UsageError where the run has no adapter yet.
    """
    first = [asked_of(ArmName(run)), asked_of(ArmName(run, BASE))]
    kept = [one for one in kept_adapters(run) if one.round is None and one.arm != FEDERATED]
    return first + [_kept(run, one) for one in kept if one.arm == "centralised" or one.client]


def answer(
    asked: Sequence[Asked],
    questions: QuestionSet | int | None,
    decoding: AnswerDecoding,
    *,
    batch_size: int = 16,
    note: Note = lambda line: None,
) -> Iterator[Answered]:
    """Let each model answer the questions; None or a number stands for all or so many held-out rows of its run.

    Raises UsageError for two models with one file; DataError for questions that do not fit into a model's window,
    before any is asked; NetworkError for answers that an endpoint did not give, after all others are written.
    """
    _check_files(asked)
    known = _known({one.place for one in asked}, note)
    shared = SharedBase()
    rows: dict[Path, QuestionSet] = {}
    for one in asked:
        model = one.load(shared)
        if isinstance(questions, QuestionSet):
            found = questions
        else:
            assert one.run is not None and isinstance(model, LocalModel)
            if one.run not in rows:
                rows[one.run] = held_out_questions(one.run, model, decoding.max_new_tokens, questions, note)
            found = rows[one.run]
        if isinstance(model, LocalModel):
            check_window(model, found.questions, decoding, one.name)
        yield _answer(one, model, found, decoding, known, batch_size, note)
        del model  # its base must not stay in memory beside the next one


def _check_files(asked: Sequence[Asked]) -> None:
    """Raise UsageError where two models without a run would write one file, in which the later one alone counts."""
    files = [(one.place, one.file) for one in asked if one.run is None]
    if twice := next((file for file in files if files.count(file) > 1), None):
        raise UsageError(
            f"two of the models are both called {twice[1]} and would write one file of answers in {twice[0]}",
            hint="one command for each, with another --out",
        )


def _answer(
    one: Asked,
    model: AnsweringModel,
    questions: QuestionSet,
    decoding: AnswerDecoding,
    known: dict[str, AnswerLine],
    batch_size: int,
    note: Note,
) -> Answered:
    file = one.place / questions.name / f"{one.file}.jsonl"
    make_folders(DISK, file.parent)
    facts: dict[str, Any] = {**model.facts(), "run": one.run_name, "arm": one.arm, "decoding": decoding.to_row()}
    there = {line.question_id: line for line in _lines(file)}
    same = ("adapter_digest", "base", "base_digest", "endpoint")
    if one.run is None and any(getattr(line, f) != facts.get(f, "") for line in there.values() for f in same):
        note(f"{file} holds answers of another model of that name, which count no more; another --out keeps them")
    keys = {question.id: model.key(question, decoding) for question in questions.questions}
    lines: dict[Any, AnswerLine] = {}
    copies: list[AnswerLine] = []
    for question in questions.questions:
        if (line := known.get(keys[question.id])) is not None:
            lines[question.id] = replace(line, **facts, **_asked(question))
            if there.get(question.id) != lines[question.id]:
                copies.append(lines[question.id])
    _append(file, copies)
    missing = [question for question in questions.questions if question.id not in lines]
    failed: list[CallError] = []
    done = 0
    for batch in model.batches(missing, batch_size):
        new = []
        for question, replies in zip(batch, answer_batch(model, batch, decoding), strict=True):
            if isinstance(replies, CallError):
                failed.append(replies)
            else:
                new.append(_line(question, replies, keys[question.id], facts))
        _append(file, new)
        lines |= {line.question_id: line for line in new}
        known |= {line.key: line for line in new}
        done += len(new)
        if any(error.reason in FINAL for error in failed):
            break
        note(f"{one.name}: {done} of {len(missing)} answered")
    for deviation in model.notes if isinstance(model, EndpointModel) else ():
        note(deviation)
    if failed:
        raise NetworkError(
            f"{one.name}: {plural(len(missing) - done, 'question')} of {len(questions.questions)} without an answer: "
            f"{failed[-1].message}",
            hint=f"{failed[-1].hint or 'repeat the command'}; what was answered is in {file} and is not asked again",
        )
    counts = [count for line in lines.values() for count in line.tokens if count is not None]
    return Answered(
        name=one.name,
        file=file,
        questions=len(lines),
        generated=done,
        reused=len(lines) - done,
        cut=sum(any(line.cut) for line in lines.values()),
        tokens=sum(counts) / len(counts) if counts else None,
    )


def _asked(question: Question) -> dict[str, Any]:
    """The fields of a line that come from the question."""
    return {
        "question_id": question.id,
        "turns": question.shown,
        "question_hash": question.hash,
        "category": question.category,
        "before": tuple(question.preceding),
        "reference": question.reference,
    }


def _line(question: Question, replies: Sequence[Reply], key: str, facts: Mapping[str, Any]) -> AnswerLine:
    return AnswerLine(
        answers=tuple(reply.text for reply in replies),
        tokens=tuple(reply.tokens for reply in replies),
        cut=tuple(reply.cut for reply in replies),
        key=key,
        **_asked(question),
        **facts,
    )


def _append(file: Path, lines: Sequence[AnswerLine]) -> None:
    if lines:
        append(DISK, file, b"".join(line.to_json().encode() + b"\n" for line in lines))


def _known(places: set[Path], note: Note) -> dict[str, AnswerLine]:
    """All answers that these folders hold, by key. A file that cannot be read is named and left out."""
    found: dict[str, AnswerLine] = {}
    for place in sorted(places):
        for file in sorted(place.rglob("*.jsonl")):
            try:
                found |= {line.key: line for line in _lines(file) if line.key}
            except ShepherdError as error:
                note(f"not read: {error.message}")
    return found


def _lines(file: Path) -> list[AnswerLine]:
    """The lines of a file; none where it is missing or holds no whole line."""
    return read_lines(file) if file.is_file() and b"\n" in file.read_bytes() else []


def _kept(run: Path, kept: KeptAdapter) -> Asked:
    arm = ArmName(run, kept.arm, kept.client, kept.round)
    if kept.round is not None:
        return _of_run(arm, f"@{kept.round}", f"@{kept.round}")
    if kept.client:
        return _of_run(arm, f"{kept.arm}/{kept.label or kept.client}", f"{kept.arm}/{kept.client}")
    return _of_run(arm, kept.arm, kept.arm)


def _of_run(arm: ArmName, name: str, file: str) -> Asked:
    return Asked(name, place_of(arm.run, FOLDER), file, lambda shared: run_model(arm, shared), arm.run)
