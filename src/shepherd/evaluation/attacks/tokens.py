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

    observed: float[rows, d_j] of each layer j; atoms: float[V, d_j], the vector of each token there. `known` atoms do
    not count: they are explained away first, in a layer with fewer than d_j/2 of them, else when they fit. Fewer come
    where nothing is left to explain.
    """
    layers = [_Layer(*pair) for pair in zip(observed, atoms, strict=True) if np.any(pair[0])]
    apart = sorted(known)
    for layer in layers:
        for atom in apart if 2 * len(apart) < layer.unit.shape[1] else ():
            layer.explain(atom)
    free = np.ones(len(atoms[0]), bool)
    found: list[int] = []
    for _ in range(sum(layer.unit.shape[1] for layer in layers)):
        scores = sum((layer.scores() for layer in layers), np.zeros(len(free)))
        scores[~free] = -1.0
        best = int(scores.argmax())
        if scores[best] <= _NOTHING**2 or len(found) >= wanted:
            break
        free[best] = False
        if best not in apart:
            found.append(best)
        for layer in layers:
            layer.explain(best)
    return found


class _Layer:
    """What is left to explain of one layer, float[rows, d] of norm 1 at first, and its atoms at norm 1."""

    def __init__(self, observed: np.ndarray, atoms: np.ndarray) -> None:
        self.left = np.asarray(observed, np.float64) / np.linalg.norm(observed)
        norms = np.linalg.norm(atoms, axis=1, keepdims=True)
        self.unit = np.divide(atoms, norms, out=np.zeros_like(atoms), where=norms > 0)
        self.basis: list[np.ndarray] = []

    def scores(self) -> np.ndarray:
        """float[V]: the squared length of what is left along each atom."""
        return np.square(self.unit @ self.left.T.astype(self.unit.dtype)).sum(axis=1, dtype=np.float64)

    def explain(self, atom: int) -> None:
        """Take away what lies along the atom, as far as it is new."""
        direction = self.unit[atom].astype(np.float64)
        for earlier in self.basis:
            direction -= (direction @ earlier) * earlier
        size = np.linalg.norm(direction)
        if size > _NOTHING:
            self.basis.append(direction / size)
            self.left -= np.outer(self.left @ self.basis[-1], self.basis[-1])


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
