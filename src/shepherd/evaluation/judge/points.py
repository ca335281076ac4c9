"""Judgements of a pair to the points of each question under each seed.

A cell is one question under one seed; its points are the mean over the two orders of the mean over repeats. Where a
pair was judged in both orders, a cell with points in one of them only would favour the answer shown first: it is left
out, and counted.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from shepherd.evaluation.judge.formats import Judgement, Points

Question = str | int
Seed = int | None
Cell = tuple[Seed, Question]
"""A seed, None where none is recorded, and a question."""


@dataclass(frozen=True)
class Matched:
    """Points of a and b on the same questions under the same seeds, each float[seeds, questions].

    means are over orders and repeats, sums over all judgements of a cell. used: the judgements in them. one_order:
    questions that were left out because a cell has points in one of two orders only. lacking: questions that were left
    out because another cell has no points.
    """

    questions: tuple[Question, ...]
    seeds: tuple[Seed, ...]
    mean_a: np.ndarray
    mean_b: np.ndarray
    sum_a: np.ndarray
    sum_b: np.ndarray
    used: tuple[Judgement, ...]
    one_order: tuple[Question, ...]
    lacking: tuple[Question, ...]

    @property
    def totals(self) -> Points:
        """The points of a and of b, summed over all judgements in use."""
        return math.fsum(self.sum_a.flat), math.fsum(self.sum_b.flat)


def matched(judgements: Sequence[Judgement]) -> Matched:
    """The questions that have points under every seed, and in both orders where the pair was judged in both.

    In order of first appearance. Without any question the arrays have no column.
    """
    orders = {judgement.b_first for judgement in judgements}
    found = _by_cell(judgements)
    seeds = tuple(dict.fromkeys(judgement.seed for judgement in judgements))
    kept: list[Question] = []
    one_order: list[Question] = []
    lacking: list[Question] = []
    for question in dict.fromkeys(judgement.question for judgement in judgements):
        cells = [found.get((seed, question), {}) for seed in seeds]
        if all(cell.keys() == orders for cell in cells):
            kept.append(question)
        elif any(cell and cell.keys() != orders for cell in cells):
            one_order.append(question)
        else:
            lacking.append(question)
    shape = (len(seeds), len(kept))
    means, sums = np.zeros((2, *shape)), np.zeros((2, *shape))
    for i, seed in enumerate(seeds):
        for j, question in enumerate(kept):
            cell = found[seed, question]
            for side in (0, 1):
                means[side, i, j] = np.mean([np.mean([one[side] for one in cell[order]]) for order in sorted(orders)])
                sums[side, i, j] = math.fsum(one[side] for each in cell.values() for one in each)
    chosen = set(kept)
    used = tuple(j for j in judgements if j.points is not None and j.question in chosen)
    return Matched(tuple(kept), seeds, means[0], means[1], sums[0], sums[1], used, tuple(one_order), tuple(lacking))


def _by_cell(judgements: Iterable[Judgement]) -> dict[Cell, dict[bool, list[Points]]]:
    """Cell -> b first? -> the recorded points; judgements without points are left out."""
    found: dict[Cell, dict[bool, list[Points]]] = defaultdict(dict)
    for judgement in judgements:
        if judgement.points is not None:
            cell = found[judgement.seed, judgement.question]
            cell.setdefault(judgement.b_first, []).append(judgement.points)
    return found


def repeats_sd(judgements: Iterable[Judgement]) -> tuple[int, float | None]:
    """The most judgements of one cell in one order, and the standard deviation of b − a between them, pooled over all
    cells that were judged more than once; None where none was."""
    squares, degrees, most = 0.0, 0, 0
    for cell in _by_cell(judgements).values():
        for points in cell.values():
            gaps = np.array([b - a for a, b in points])
            most = max(most, len(gaps))
            squares += float(np.square(gaps - gaps.mean()).sum())
            degrees += len(gaps) - 1
    return most, math.sqrt(squares / degrees) if degrees else None
