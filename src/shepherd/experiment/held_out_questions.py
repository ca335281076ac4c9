"""Held-out rows of a run as questions: the prompts that its evaluation by generation has, with the references."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shepherd.errors import DataError, plural
from shepherd.evaluation.answers import Generation, sample_rows
from shepherd.evaluation.question_rows import Question
from shepherd.evaluation.questions import QuestionSet
from shepherd.experiment.remeasure import same_rows
from shepherd.recipe import load as load_config
from shepherd.serving.answering import LocalModel
from shepherd.types import Example

NAME = "held-out"


def held_out_questions(
    run: Path, model: LocalModel, max_new_tokens: int, count: int | None, note: Callable[[str], None]
) -> QuestionSet:
    """The held-out rows of a run, or `count` of them, taken in turn from each category.

    Left out, with a note: rows that were cut, that have no prompt, or that leave no room for an answer. Raises
    EvaluationError where data, held-out rows or tokenizer are not those of the run.
    """
    config = load_config(run / "config.toml")
    data = same_rows(run, config, model.base.tokenizer, model.base.tokenizer_digest)
    limits = Generation(count or len(data.held_out), max_new_tokens, config.data.max_length)
    reasons: dict[str, int] = {}
    questions: dict[int, Question] = {}

    def usable(index: int) -> bool:
        row = data.held_out[index]
        example = data.examples[row.id]
        reason = limits.why_not(row, example)
        if not reason and (len(example.messages) < 2 or example.messages[-2].role != "user"):
            reason = "without a turn of the user before the last answer"
        if not reason:
            questions[index] = _question(example)
            reason = model.too_long(questions[index], max_new_tokens) and "too long for the model's window"
        if reason:
            reasons[reason] = reasons.get(reason, 0) + 1
        return not reason

    picked = sample_rows(data.held_out, limits.rows, usable)
    if not picked:
        raise DataError(f"none of the {len(data.held_out)} held-out rows of {run} can be a question: {_why(reasons)}")
    note(f"{NAME}: {plural(len(picked), 'row')} of {data.dataset.name}, licence: {data.dataset.licence}")
    if reasons:
        note(f"{plural(sum(reasons.values()), 'held-out row')} left out: {_why(reasons)}")
    return QuestionSet(NAME, str(run), tuple(questions[index] for index in picked), data.dataset.licence)


def _question(example: Example) -> Question:
    *before, asked, answer = example.messages
    return Question(
        example.id,
        (asked.content,),
        example.category,
        (answer.content or answer.extra,),
        tuple(before),
        example.context,
        example.tools,
    )


def _why(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())
