"""Documents of offline tasks: rows with the exact token ids that the harness evaluates.

A document holds `token_ids`, a sequence of token ids for each choice, and `answer_spans`, the [start, end) of the
answers in each: the harness evaluates every span given all ids before it. Both come from the tokenisation that training
and the held-out loss use, so no text is encoded a second time. The texts of a document are for display and hashes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shepherd.data.prompts import Template
from shepherd.data.tokenize import encode_prompt, tokenize
from shepherd.errors import plural
from shepherd.rng import stream
from shepherd.types import Example, Tokens

CHOICES = 4
"""Answers of a multiple-choice document: the reference, and responses of other rows."""

Document = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """Rows of one source, tokenised: what the offline tasks are built from.

    window: the positions of the model, or None. max_length: data.max_length. max_new_tokens: of a generated answer.
    """

    examples: Mapping[str, Example]
    tokens: Sequence[Tokens]
    template: Template
    tokenizer: Any
    max_length: int
    max_new_tokens: int
    window: int | None = None


@dataclass(frozen=True)
class Documents:
    """The documents of a task, and the number of rows that it leaves out by reason."""

    documents: tuple[Document, ...]
    left_out: Mapping[str, int]


def likelihood(rows: Rows) -> Documents:
    """Every row with all its answers: the targets of the held-out loss, token by token."""
    return Documents(tuple(_likelihood(row, rows.tokenizer) for row in rows.tokens), {})


def choice(rows: Rows) -> Documents:
    """Each row's reference among responses of other rows, at a place drawn by a fixed seed and the row's id.

    The draw does not depend on the seed of the run, so runs over the same rows are evaluated on the same choices. Left
    out: rows without a last answer that is a target, rows that truncation cut, and rows for which fewer than
    CHOICES − 1 other responses fit into data.max_length.
    """
    left_out: dict[str, int] = {}
    usable = [row for row in rows.tokens if not _left_out(row, rows.examples[row.id], left_out)]
    texts = {row.id: rows.examples[row.id].messages[-1].content for row in usable}
    sizes = {row.id: end - start for row in usable for start, end in _spans(row.loss_mask)[-1:]}
    drawn: list[tuple[Tokens, list[str]]] = []
    for row in usable:
        room = rows.max_length - (len(row.input_ids) - sizes[row.id])
        rng = stream(0, "benchmark choices", row.id)
        others: dict[str, None] = {}
        for number in rng.permutation(len(usable)):
            other = usable[int(number)].id
            if texts[other] != texts[row.id] and texts[other].strip() and sizes[other] <= room:
                others.setdefault(texts[other])
        if len(others) < CHOICES - 1 or not texts[row.id].strip():
            _count(left_out, "with too few other responses that fit")
            continue
        answers = [*others][: CHOICES - 1]
        answers.insert(int(rng.integers(CHOICES)), texts[row.id])
        drawn.append((row, answers))
    variants = [
        replace(example, id=f"{number}/{row.id}", messages=(*example.messages[:-1], _with(example, answer)))
        for row, answers in drawn
        for number, answer in enumerate(answers)
        for example in (rows.examples[row.id],)
    ]
    if not variants:
        return Documents((), left_out)
    encoded = tokenize(variants, rows.tokenizer, rows.template, rows.max_length).by_id
    found: list[Document] = []
    for row, answers in drawn:
        each = [encoded.get(f"{number}/{row.id}") for number in range(len(answers))]
        whole = [tokens for tokens in each if tokens is not None and not tokens.cut]
        if len(whole) < len(answers):
            _count(left_out, "cut to data.max_length")
            continue
        found.append(_choice(row, answers, texts[row.id], whole, rows.tokenizer))
    return Documents(tuple(found), left_out)


def generation(rows: Rows) -> Documents:
    """Each row's prompt, with its reference: the rows that a run answers by generation (`answers.Generation`)."""
    from shepherd.evaluation.answers import generation_record  # loads PyTorch, which names of tasks do not need

    left_out: dict[str, int] = {}
    found: list[Document] = []
    for row in rows.tokens:
        example = rows.examples[row.id]
        if _left_out(row, example, left_out):
            continue
        ids = encode_prompt(rows.template, rows.tokenizer, example.messages, example.context, example.tools)
        if rows.window is not None and len(ids) + rows.max_new_tokens > rows.window:
            _count(left_out, "without room for an answer in the positions of the model")
            continue
        shown = generation_record(example, {})
        found.append(
            {
                "id": row.id,
                "context": _text(ids, rows.tokenizer),
                "reference": shown["reference"],
                "conversation": shown["prompt"],
                "category": example.category,
                "prompt_token_ids": ids,
                "stops": list(rows.template.stops),
                "max_new_tokens": rows.max_new_tokens,
            }
        )
    return Documents(tuple(found), left_out)


KINDS = {"likelihood": likelihood, "choice": choice, "generation": generation}
"""The kinds of offline tasks."""


def none_left(name: str, found: Documents) -> str:
    """Why a task has no document."""
    reasons = [f"{plural(count, 'row')} {reason}" for reason, count in found.left_out.items()]
    return f"{name} has no document: {', '.join(reasons)}"


def _likelihood(row: Tokens, tokenizer: Any) -> Document:
    ids, spans = row.input_ids.tolist(), _spans(row.loss_mask)
    first = spans[0][0]
    return {
        "id": row.id,
        "context": _text(ids[:first], tokenizer),
        "target": _text(ids[first:], tokenizer),
        "token_ids": [ids],
        "answer_spans": [spans],
        "tokens": row.targets,
    }


def _choice(row: Tokens, answers: list[str], reference: str, each: Sequence[Tokens], tokenizer: Any) -> Document:
    spans = [[_spans(tokens.loss_mask)[-1]] for tokens in each]
    return {
        "id": row.id,
        "context": _text(each[0].input_ids[: spans[0][0][0]].tolist(), tokenizer),
        "choices": answers,
        "gold": answers.index(reference),
        "token_ids": [tokens.input_ids.tolist() for tokens in each],
        "answer_spans": spans,
    }


def _spans(mask: np.ndarray) -> list[list[int]]:
    """[start, end) of every run of targets. Position 0 has no predecessor, so it is never a target."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask[1:], [False])).astype(np.int8))) + 1
    return edges.reshape(-1, 2).tolist()


def _left_out(row: Tokens, example: Example, counts: dict[str, int]) -> bool:
    last = example.messages[-1]
    reason = (
        "plain text without a prompt"
        if last.role != "assistant"
        else "with a last answer that is not trained on"
        if not last.learned
        else "cut to data.max_length"
        if row.cut
        else ""
    )
    if reason:
        _count(counts, reason)
    return bool(reason)


def _count(counts: dict[str, int], reason: str) -> None:
    counts[reason] = counts.get(reason, 0) + 1


def _with(example: Example, answer: str) -> Any:
    """The last turn with another answer, and without the reasoning and the calls of the reference."""
    return replace(example.messages[-1], content=answer, reasoning="", extra="")


def _text(ids: Sequence[int], tokenizer: Any) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
