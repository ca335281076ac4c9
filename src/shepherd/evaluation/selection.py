"""The best of several models, chosen on other rows than it is compared on.

The model with the lowest loss on some rows is lowest partly by chance there, so on these rows it looks better than it
is. Here each half of the rows is compared with the model that is best on the other half (cross-fitting, two folds;
Chernozhukov et al., 2018).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shepherd.evaluation.row_losses import RowLosses

FEWEST = 40
"""Held-out rows below which halves are too small to choose on."""


@dataclass(frozen=True)
class Best:
    """The best of several models: on each row the losses of the model that the other rows chose.

    chosen: the models, at most two, the one that the first half chose first. same_rows: there were too few rows, so
    that the one model was chosen on the rows that it is compared on, which favours it.
    """

    losses: RowLosses
    chosen: tuple[str, ...]
    same_rows: bool = False


def best_of(models: Mapping[str, RowLosses], groups: Sequence[str], rng: np.random.Generator) -> Best:
    """The best of these models on the same rows, cross-fitted over two halves of the rows, drawn by `rng`.

    groups: of each row; every group is halved. With fewer than 40 rows the best on all rows; of one model, that model.
    """
    rows = len(groups)
    if len(models) == 1 or rows < FEWEST:
        name = _lowest(models, np.arange(rows))
        return Best(models[name], (name,), same_rows=len(models) > 1)
    first = halves(groups, rng)
    chosen = _lowest(models, first), _lowest(models, ~first)
    one, other = (models[name] for name in chosen)
    picked = RowLosses(np.where(first, other.nll, one.nll), one.tokens, np.where(first, other.hits, one.hits))
    return Best(picked, tuple(dict.fromkeys(chosen)))


def halves(groups: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """bool[rows]: one half of the rows, with half of the rows of each group, up to one."""
    first, turn = np.zeros(len(groups), bool), 0
    of_group = np.array(groups)
    for group in sorted(set(groups)):
        rows = rng.permutation(np.flatnonzero(of_group == group))
        first[rows[turn::2]] = True
        turn = (turn + len(rows)) % 2  # so that the halves are equal in all, too
    return first


def _lowest(models: Mapping[str, RowLosses], rows: np.ndarray) -> str:
    """The model with the lowest loss on these rows; the first by name among equal ones."""
    return min(models, key=lambda name: (models[name].select(rows).stat.mean, name))
