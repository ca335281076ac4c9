"""Token presence in one update: which tokens the rows of a client held, read from the change of the first layers.

The gradient of A in a layer that reads the embeddings is a sum of outer products with its inputs, one vector per token
of the vocabulary: the rows of ΔA are in the span of the tokens of the batch. Simultaneous orthogonal matching pursuit
(Tropp et al., 2006) picks the tokens. In a first round after one step, where B = 0, ΔA is 0, and ΔB holds the inputs
as A maps them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

_NOTHING = 1e-6


def matching_pursuit(
    observed: Sequence[np.ndarray], atoms: Sequence[np.ndarray], wanted: int, known: Collection[int] = ()
) -> list[int]:
    """The `wanted` atoms, by index, that explain the observations best, the most explaining first.

    observed: float[rows, d_j] of each layer j; atoms: float[V, d_j], the vector of each token in that layer. `known`
    atoms are explained away when they fit, and do not count. Fewer come where nothing is left to explain.
    """
    left = [np.array(one, np.float64) for one in observed]
    scale = [np.linalg.norm(one) for one in left]
    usable = [j for j, size in enumerate(scale) if size > 0]
    unit = {j: _unit(np.asarray(atoms[j], np.float64)) for j in usable}
    basis: dict[int, list[np.ndarray]] = {j: [] for j in usable}
    open_ = np.ones(len(atoms[0]), bool)
    found: list[int] = []
    room = sum(unit[j].shape[1] for j in usable)
    for _ in range(room):
        scores = sum((np.square(unit[j] @ (left[j].T / scale[j])).sum(axis=1) for j in usable), np.zeros(len(open_)))
        scores[~open_] = -1.0
        best = int(scores.argmax())
        if scores[best] <= _NOTHING**2 or len(found) >= wanted:
            break
        open_[best] = False
        if best not in known:
            found.append(best)
        for j in usable:
            direction = unit[j][best].copy()
            for earlier in basis[j]:
                direction -= (direction @ earlier) * earlier
            size = np.linalg.norm(direction)
            if size > _NOTHING:
                basis[j].append(direction / size)
                left[j] -= np.outer(left[j] @ basis[j][-1], basis[j][-1])
    return found


def recall(guessed: Collection[int], present: Collection[int]) -> float:
    """The share of the tokens present that were guessed; NaN where none is present."""
    return len(set(guessed) & set(present)) / len(set(present)) if present else float("nan")


def template_tokens(rows: Sequence[np.ndarray], share: float = 0.5) -> frozenset[int]:
    """Tokens in more than this share of the rows, int[n] each: those of the template, which say nothing of a client."""
    counts: dict[int, int] = {}
    for row in rows:
        for token in np.unique(row).tolist():
            counts[token] = counts.get(token, 0) + 1
    return frozenset(token for token, count in counts.items() if count > share * len(rows))


def most_frequent(rows: Sequence[np.ndarray], wanted: int, without: Collection[int] = ()) -> list[int]:
    """The tokens in most of these rows, without some: the guess of somebody who sees no update."""
    counts: dict[int, int] = {}
    for row in rows:
        for token in np.unique(row).tolist():
            counts[token] = counts.get(token, 0) + 1
    ranked = sorted((token for token in counts if token not in set(without)), key=lambda t: (-counts[t], t))
    return ranked[:wanted]


def _unit(atoms: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(atoms, axis=1, keepdims=True)
    return np.divide(atoms, norms, out=np.zeros_like(atoms), where=norms > 0)
